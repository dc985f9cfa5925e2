//! How the acted-out host pauses, resumes, forks and makes templates.

use connectrpc::ConnectError;
use wrenn_protocol::agent::*;

use super::agent::{World, found};

/// What pauses, resumes, forks and snapshots do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Works,
    /// Waits until the mode changes or the capsule is destroyed.
    Hangs,
    /// Fails and leaves the capsule as it was.
    Refuses,
    /// Fails and loses the VM without a word.
    Loses,
}

const DISK_FULL: &str = "the host's disk is full";

fn phase(capsule: &Capsule) -> CapsulePhase {
    capsule.phase.as_known().unwrap()
}

impl World {
    /// Changes a capsule and reports it.
    pub fn change(&self, id: &str, phase: CapsulePhase, reason: &str) -> Result<Capsule, ConnectError> {
        let mut capsules = self.capsules.lock().unwrap();
        let capsule = capsules.get_mut(id).ok_or_else(|| ConnectError::aborted("it was destroyed"))?;
        capsule.phase = phase.into();
        capsule.generation += 1;
        reason.clone_into(&mut capsule.reason);
        let _ = self.changes.send(capsule.clone());
        Ok(capsule.clone())
    }

    /// Does as the mode says; what was destroyed meanwhile fails.
    async fn act(&self, id: &str, call: &str) -> Result<(), ConnectError> {
        self.calls.lock().unwrap().push(format!("{call} {id}"));
        let mut modes = self.act.subscribe();
        loop {
            let mode = *modes.borrow_and_update();
            found(self, id).map_err(|_| ConnectError::aborted("it was destroyed"))?;
            match mode {
                Act::Works => return Ok(()),
                Act::Refuses => return Err(ConnectError::failed_precondition(DISK_FULL)),
                Act::Loses => {
                    self.capsules.lock().unwrap().remove(id);
                    return Err(ConnectError::internal("the VM is gone"));
                }
                Act::Hangs => modes.changed().await.unwrap(),
            }
        }
    }

    /// From one phase through another to a third.
    pub async fn turn(
        &self,
        id: &str,
        phases: [CapsulePhase; 3],
        call: &str,
    ) -> Result<Capsule, ConnectError> {
        let [from, during, to] = phases;
        let capsule = found(self, id)?;
        match phase(&capsule) {
            now if now == to => return Ok(capsule),
            now if now == from => {}
            now => return Err(ConnectError::failed_precondition(format!("it is {now:?}"))),
        }
        self.change(id, during, "")?;
        match self.act(id, call).await {
            Ok(()) => self.change(id, to, ""),
            Err(error) => {
                // Nobody hears of what is gone.
                let _ = self.change(id, from, DISK_FULL);
                Err(error)
            }
        }
    }

    pub async fn snapshot(
        &self,
        request: CreateSnapshotRequest,
    ) -> Result<CreateSnapshotResponse, ConnectError> {
        let lasts = [CapsulePhase::CAPSULE_PHASE_RUNNING, CapsulePhase::CAPSULE_PHASE_PAUSED];
        if !lasts.contains(&phase(&found(self, &request.capsule_id)?)) {
            return Err(ConnectError::failed_precondition("it is neither running nor paused"));
        }
        self.act(&request.capsule_id, "snapshot").await?;
        if !self.templates.lock().unwrap().insert(request.template_path) {
            return Err(ConnectError::already_exists("there are files already"));
        }
        Ok(CreateSnapshotResponse {
            size_bytes: 123_456,
            vcpus: 2,
            memory_mb: 768,
            disk_mb: 6000,
            ..Default::default()
        })
    }

    pub async fn fork(&self, request: ForkCapsuleRequest) -> Result<ForkCapsuleResponse, ConnectError> {
        let source = found(self, &request.id)?;
        if phase(&source) != CapsulePhase::CAPSULE_PHASE_RUNNING {
            return Err(ConnectError::failed_precondition("it does not run"));
        }
        self.act(&request.id, "fork").await?;
        let mut clones = Vec::new();
        for id in request.clone_ids {
            let clone = Capsule { id: id.clone(), generation: 2, ..source.clone() };
            self.capsules.lock().unwrap().insert(id, clone.clone());
            let _ = self.changes.send(clone.clone());
            clones.push(clone);
        }
        Ok(ForkCapsuleResponse { clones, ..Default::default() })
    }

    pub async fn delete_template(&self, path: &str) -> Result<(), ConnectError> {
        self.calls.lock().unwrap().push(format!("delete {path}"));
        let mode = *self.act.subscribe().wait_for(|mode| *mode != Act::Hangs).await.unwrap();
        if mode == Act::Refuses {
            return Err(ConnectError::internal("the file system is read-only"));
        }
        self.templates.lock().unwrap().remove(path);
        Ok(())
    }
}
