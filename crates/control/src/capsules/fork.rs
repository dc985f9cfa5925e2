//! Forking: running copies of a running capsule, on its own host, all of them or none.

use std::time::Duration;

use connectrpc::ConnectError;
use connectrpc::client::CallOptions;
use futures::future::join_all;
use wrenn_core::{CapsuleId, CapsuleStatus, Metadata, Shape, metadata};
use wrenn_protocol::agent::{Capsule, ForkCapsuleRequest};

use super::work::{remove, settled};
use super::{agent_failure, find, generation, not_running, placement, system_labels, transport};
use crate::api::ApiError;
use crate::auth::Caller;
use crate::hosts::HostTransport;
use crate::state::App;
use crate::store::{Advance, CapsuleRow, NewForks};

/// As for a boot.
const DEADLINE: Duration = Duration::from_secs(600);
const MAX_COPIES: u32 = 100;

/// A fork request, unchecked.
#[derive(Debug, Default)]
pub(crate) struct ForkRequest {
    pub(crate) count: Option<i64>,
    pub(crate) metadata: Option<Metadata>,
}

/// How a fork went within the settle window.
#[derive(Debug)]
pub(crate) enum Forked {
    /// All copies run.
    Settled(Vec<CapsuleRow>),
    /// Still under way, or some were destroyed meanwhile.
    Pending(Vec<CapsuleRow>),
}

/// Forks a running capsule; answers when all copies run, or with what is known after the settle window.
pub(crate) async fn fork(
    app: &App,
    caller: &Caller,
    id: CapsuleId,
    request: ForkRequest,
) -> Result<Forked, ApiError> {
    let team = caller.team;
    let count = copies(request.count)?;
    let labels = request.metadata.filter(|labels| !labels.is_empty());
    if let Some(labels) = &labels {
        metadata::validate(labels).map_err(|error| ApiError::invalid(error.to_string()))?;
    }
    let source = find(app, team, id).await?;
    let ids: Vec<CapsuleId> = (0..count).map(|_| CapsuleId::random()).collect();
    let new = NewForks { team, source: id, ids: &ids, metadata: labels.as_ref(), actor: &caller.actor };
    place(app, &source, &new, count).await?;
    let work = Work { app: app.clone(), source, ids: ids.clone() };
    settled(app, app.tasks.spawn(work.run())).await?;
    let rows = app.store.capsules(team, &ids).await?;
    let all_run = rows.iter().all(|row| row.status == CapsuleStatus::Running);
    Ok(if all_run { Forked::Settled(rows) } else { Forked::Pending(rows) })
}

fn copies(asked: Option<i64>) -> Result<u32, ApiError> {
    match asked {
        None | Some(0) => Ok(1),
        Some(count) => u32::try_from(count).ok().filter(|count| *count <= MAX_COPIES).ok_or_else(|| {
            ApiError::invalid(format!("count must be between 1 and {MAX_COPIES}, not {count}"))
        }),
    }
}

async fn place(app: &App, source: &CapsuleRow, new: &NewForks<'_>, count: u32) -> Result<(), ApiError> {
    let times = |size: i64| u32::try_from(size.saturating_mul(i64::from(count))).unwrap_or(u32::MAX);
    let shape = Shape {
        vcpus: times(source.vcpus),
        memory_mb: times(source.memory_mb),
        disk_mb: times(source.disk_mb),
    };
    let reserve = app.config.reserve;
    let admit = |status, load: &_| placement::admit_copies(status, load, shape, reserve);
    match app.store.place_forks(new, admit).await? {
        Ok(true) => Ok(()),
        Ok(false) => Err(not_running(&find(app, new.team, source.id).await?)),
        Err(lack) => {
            let id = source.id;
            Err(ApiError::host_unavailable(format!(
                "capsule {id} cannot be forked {count} times now: {lack}"
            )))
        }
    }
}

/// The task that has a host make the copies.
struct Work {
    app: App,
    source: CapsuleRow,
    ids: Vec<CapsuleId>,
}

impl Work {
    async fn run(self) -> Result<(), ApiError> {
        let host = match transport(&self.app, &self.source).await {
            Ok(host) => host,
            Err(error) => {
                self.fail(&error).await?;
                return Err(error);
            }
        };
        match self.call(&host).await {
            Ok(copies) => self.run_all(&host, &copies).await,
            Err(error) => {
                let error = agent_failure(&error);
                self.fail(&error).await?;
                // The host may have begun: whatever there is of the copies must go.
                join_all(self.ids.iter().map(|id| self.remove(&host, *id))).await;
                Err(error)
            }
        }
    }

    /// Asked once: a repeated call would find its ids taken.
    async fn call(&self, host: &HostTransport) -> Result<Vec<Capsule>, ConnectError> {
        let request = ForkCapsuleRequest {
            id: self.source.id.to_string(),
            clone_ids: self.ids.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let options = CallOptions::default().with_timeout(DEADLINE);
        Ok(host.agent().fork_capsule_with_options(request, options).await?.into_owned().clones)
    }

    async fn run_all(&self, host: &HostTransport, copies: &[Capsule]) -> Result<(), ApiError> {
        for (id, copy) in self.ids.iter().zip(copies) {
            self.app.store.capsule_runs(*id, generation(copy), &system_labels(copy)).await?;
            // A destroy may have come first, and reached the host before the fork did.
            if self.app.store.ended_or_ending(*id).await? {
                remove(host, *id).await;
            }
        }
        Ok(())
    }

    async fn fail(&self, error: &ApiError) -> Result<(), ApiError> {
        let (id, cause) = (self.source.id, &error.message);
        tracing::warn!(capsule.id = %id, "capsule {id} was not forked: {cause}");
        let booting = [CapsuleStatus::Pending, CapsuleStatus::Starting];
        for id in &self.ids {
            let step = Advance { reason: Some(cause), ..Advance::new(&booting, CapsuleStatus::Error) };
            if !self.app.store.advance(*id, step).await? {
                // Its host may have reported it before the fork failed.
                let step = Advance { from: &CapsuleStatus::DESTROYABLE, to: CapsuleStatus::Stopping, ..step };
                self.app.store.advance(*id, step).await?;
            }
        }
        Ok(())
    }

    /// Where the host cannot be reached, the link to it finishes the work.
    async fn remove(&self, host: &HostTransport, id: CapsuleId) {
        if remove(host, id).await {
            let step = Advance::new(&[CapsuleStatus::Stopping], CapsuleStatus::Stopped);
            if let Err(error) = self.app.store.advance(id, step).await {
                tracing::warn!(capsule.id = %id, %error, "cannot record that capsule {id} is gone");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_copy_is_made_unless_asked_otherwise() {
        for (asked, made) in [(None, 1), (Some(0), 1), (Some(1), 1), (Some(100), 100)] {
            assert_eq!(copies(asked).unwrap(), made);
        }
        for refused in [-1, 101, i64::MAX, i64::MIN] {
            assert_eq!(copies(Some(refused)).unwrap_err().code, "invalid_request", "{refused}");
        }
    }
}
