//! Destroying a capsule.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::timeout;
use wrenn_core::{CapsuleId, CapsuleStatus, HostId, TeamId};
use wrenn_protocol::agent::DestroyCapsuleRequest;

use super::{agent_failure, find};
use crate::api::ApiError;
use crate::auth::Caller;
use crate::state::App;
use crate::store::Advance;

const DESTROY_DEADLINE: Duration = Duration::from_secs(300);
/// Capsules of an ended team that are removed at a time.
const AT_ONCE: usize = 8;
/// How often a destroy that joined another looks whether that one is done.
const JOIN_POLL: Duration = Duration::from_millis(100);

/// How a destroy went within the settle window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destroyed {
    /// It is gone.
    Settled,
    /// Under way.
    Accepted,
}

/// Destroys a capsule. Safe to repeat: a capsule that has ended, or is ending, is success.
pub(crate) async fn destroy(app: &App, caller: &Caller, id: CapsuleId) -> Result<Destroyed, ApiError> {
    let team = caller.team;
    let row = find(app, team, id).await?;
    if row.status.is_terminal() {
        return Ok(Destroyed::Settled);
    }
    let step = Advance::asked(&CapsuleStatus::DESTROYABLE, CapsuleStatus::Stopping, &caller.actor);
    let settled = if app.store.advance(id, step).await? {
        let work = app.tasks.spawn(remove(app.clone(), id, row.host));
        match timeout(app.config.settle, work).await {
            Ok(Ok(done)) => done?,
            Ok(Err(_)) => return Err(ApiError::internal()),
            Err(_) => false,
        }
    } else {
        timeout(app.config.settle, ended(app, team, id)).await.unwrap_or(Ok(false))?
    };
    Ok(if settled { Destroyed::Settled } else { Destroyed::Accepted })
}

/// Has the host remove the capsule. True when it is gone. An unreachable host is not the caller's problem: the row stays
/// `stopping`, and the link to the host finishes the work when it is back.
async fn remove(app: App, id: CapsuleId, host: HostId) -> Result<bool, ApiError> {
    let Some(transport) = app.hosts.transport(&app.store, host).await? else { return Ok(false) };
    let request = DestroyCapsuleRequest { id: id.to_string(), ..Default::default() };
    match timeout(DESTROY_DEADLINE, transport.agent().destroy_capsule(request)).await {
        Ok(Ok(_)) => {
            let step = Advance::new(&[CapsuleStatus::Stopping], CapsuleStatus::Stopped);
            app.store.advance(id, step).await?;
            Ok(true)
        }
        Ok(Err(error)) => {
            let answer = agent_failure(&error);
            tracing::warn!(capsule.id = %id, "capsule {id} is not yet removed: {}", answer.message);
            Ok(false)
        }
        Err(_) => Ok(false),
    }
}

/// What follows where keys have ended and capsules are `stopping` because a team or an account is gone.
pub(crate) fn let_go(app: &App, capsules: Vec<CapsuleId>) {
    app.keys.forget();
    app.hosts.nudge();
    remove_stopping(app, capsules);
}

/// Has the hosts remove capsules that are `stopping` already, some at a time, in the background. What does not succeed is
/// finished by the links to the hosts, and so is everything after a crash.
fn remove_stopping(app: &App, capsules: Vec<CapsuleId>) {
    if capsules.is_empty() {
        return;
    }
    let work = app.clone();
    app.tasks.spawn(async move {
        let hosts = match work.store.hosts_of(&capsules).await {
            Ok(hosts) => hosts,
            Err(error) => return tracing::warn!(%error, "capsules are left for later"),
        };
        let removals = hosts.into_iter().map(|(id, host)| remove(work.clone(), id, host));
        let mut removals = futures::stream::iter(removals).buffer_unordered(AT_ONCE);
        while let Some(removed) = removals.next().await {
            if let Err(error) = removed {
                tracing::warn!(%error, "a capsule is left for later");
            }
        }
    });
}

async fn ended(app: &App, team: TeamId, id: CapsuleId) -> Result<bool, ApiError> {
    while !find(app, team, id).await?.status.is_terminal() {
        tokio::time::sleep(JOIN_POLL).await;
    }
    Ok(true)
}
