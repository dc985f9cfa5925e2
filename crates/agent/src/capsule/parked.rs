//! Machines that are no capsules yet: the seed of a warm template, which is booted, saved and removed, and a spare, which
//! is restored, stopped and handed to the first create that wants it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use wrenn_vmm::Machine;

use super::Answer;
use super::actor::{Actor, Plan, Start, Step, new_record};
use super::snapshot::SnapshotPlan;
use crate::environment::Environment;
use crate::error::CapsuleError;
use crate::record::CapsuleSpec;
use crate::saved::{About, Saved};
use crate::templates::Source;
use crate::warm::{Spare, Warmed};

/// What a guest does by itself after its daemon has come up is over by then.
const SETTLE: Duration = Duration::from_millis(500);
const MIB: u64 = 1 << 20;

/// Where a spare waits for whoever wants it.
pub(crate) type Claimed = oneshot::Receiver<oneshot::Sender<Spare>>;

impl Start {
    /// Boots a machine, saves it as `plan` says, and removes it.
    ///
    /// # Errors
    /// Why it was not saved; nothing of it is left then but what is in the plan's directory.
    pub(crate) async fn seed(env: Arc<Environment>, spec: CapsuleSpec, plan: SnapshotPlan) -> Answer<Saved> {
        let (reply, made) = oneshot::channel();
        let gone = Arc::new(CapsuleError::Stopping(spec.id));
        let seed = Self::spawn_with(new_record(spec), Plan::Seed(plan, reply), env, || {});
        let made = made.await.unwrap_or(Err(gone));
        seed.stopped().await;
        made
    }

    /// Makes a spare, which from then on waits for a claim.
    ///
    /// # Errors
    /// Why there is none; nothing of it is left then.
    pub(crate) async fn spare(
        env: Arc<Environment>,
        spec: CapsuleSpec,
        from: Warmed,
        claimed: Claimed,
    ) -> Answer<()> {
        let (reply, ready) = oneshot::channel();
        let gone = Arc::new(CapsuleError::Stopping(spec.id));
        Self::spawn_with(new_record(spec), Plan::Spare(from, reply, claimed), env, || {});
        ready.await.unwrap_or(Err(gone))
    }
}

impl Actor {
    pub(super) async fn be_seed(
        &mut self,
        plan: &SnapshotPlan,
        reply: oneshot::Sender<Answer<Saved>>,
    ) -> Step {
        let _gone = reply.send(self.grow(plan).await.map_err(Arc::new));
        Step::End(String::new(), None)
    }

    async fn grow(&mut self, plan: &SnapshotPlan) -> Result<Saved, CapsuleError> {
        let path = self.record.spec.template_path.clone();
        let Source::Base(template) = self.env.templates.load(&path)? else {
            return Err(CapsuleError::Template { path, source: std::io::Error::other("it is a snapshot") });
        };
        self.record.access_token.clear();
        let (machine, endpoint) = self.power_on(&template).await?;
        self.wait_for_guest(&*machine, endpoint.wait_until_healthy()).await?;
        self.wait_for_guest(&*machine, tokio::time::sleep(SETTLE)).await?;
        let prepared = self.wait_for_guest(&*machine, endpoint.prepare()).await?;
        prepared.map_err(|error| CapsuleError::Prepare(error.to_string()))?;
        let about = About { guest: None, ..self.about() };
        self.snapshot_running(plan, about).await
    }

    pub(super) async fn be_spare(
        &mut self,
        from: &Warmed,
        reply: oneshot::Sender<Answer<()>>,
        claimed: Claimed,
    ) -> Step {
        let machine = match self.get_ready(from).await {
            Ok(machine) => machine,
            Err(failure) => {
                let _gone = reply.send(Err(Arc::new(failure)));
                return Step::End(String::new(), None);
            }
        };
        let _gone = reply.send(Ok(()));
        let claim = tokio::select! {
            claim = claimed => claim.ok(),
            _ = machine.exited() => None,
            () = self.env.detach.cancelled() => None,
        };
        let Some(claim) = claim else { return Step::End(String::new(), None) };
        drop(machine);
        let held = std::mem::take(&mut self.held);
        let spare = Spare { dir: self.dir.clone(), record: self.record.clone(), held };
        match claim.send(spare) {
            Ok(()) => Step::Detach,
            Err(spare) => {
                self.held = spare.held;
                Step::End(String::new(), None)
            }
        }
    }

    /// Brings the machine back, lets it run up to its daemon's answer, and stops it. What an emulator has translated by
    /// then is what the machine will run first when it is claimed.
    async fn get_ready(&mut self, from: &Warmed) -> Result<Arc<dyn Machine>, CapsuleError> {
        let saved = self.link_saved(&from.saved, &from.dir).await?;
        let (machine, _) = self.bring_back(&saved).await?;
        machine.cont().await?;
        let endpoint = self.endpoint(&saved.access_token)?;
        self.wait_for_guest(&*machine, endpoint.wait_until_healthy()).await?;
        machine.pause().await?;
        Ok(machine)
    }

    /// Makes a spare this capsule.
    pub(super) async fn take_spare(&mut self, spare: Spare) -> Result<(), CapsuleError> {
        let Spare { dir, record, held } = spare;
        self.held = held;
        self.record.slot = record.slot;
        self.record.machine = record.machine.map(|mut machine| {
            let name = machine.socket.file_name().unwrap_or_default().to_owned();
            machine.socket = self.dir.join("run").join(name);
            machine
        });
        self.record.disk = record.disk;
        self.record.saved = record.saved;
        // In this order the directory's record names all that is to be removed, whatever becomes of this agent.
        self.record.write(&dir)?;
        fs::rename(&dir, &self.dir)?;
        let gone = || CapsuleError::Stopping(self.capsule.id());
        let machine = self.held.machine.clone().ok_or_else(gone)?;
        let saved = self.record.saved.clone().ok_or_else(gone)?;
        self.introduce(&*machine, u64::from(saved.shape.disk_mb) * MIB, &saved.access_token).await
    }
}
