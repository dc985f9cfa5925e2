//! Destroying a capsule.

use std::time::Duration;

use tokio::time::timeout;
use wrenn_core::{CapsuleId, CapsuleStatus, TeamId};
use wrenn_protocol::agent::DestroyCapsuleRequest;

use super::{agent_failure, find};
use crate::api::ApiError;
use crate::state::App;
use crate::store::{Advance, CapsuleRow};

const DESTROY_DEADLINE: Duration = Duration::from_secs(300);
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
pub(crate) async fn destroy(app: &App, team: TeamId, id: CapsuleId) -> Result<Destroyed, ApiError> {
    let row = find(app, team, id).await?;
    if row.status.is_terminal() {
        return Ok(Destroyed::Settled);
    }
    let step = Advance::new(&CapsuleStatus::DESTROYABLE, CapsuleStatus::Stopping);
    let settled = if app.store.advance(id, step).await? {
        let work = app.tasks.spawn(remove(app.clone(), row));
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
async fn remove(app: App, row: CapsuleRow) -> Result<bool, ApiError> {
    let Some(transport) = app.hosts.transport(&app.store, row.host).await? else { return Ok(false) };
    let request = DestroyCapsuleRequest { id: row.id.to_string(), ..Default::default() };
    match timeout(DESTROY_DEADLINE, transport.agent().destroy_capsule(request)).await {
        Ok(Ok(_)) => {
            let step = Advance::new(&[CapsuleStatus::Stopping], CapsuleStatus::Stopped);
            app.store.advance(row.id, step).await?;
            Ok(true)
        }
        Ok(Err(error)) => {
            let answer = agent_failure(&error);
            tracing::warn!(capsule.id = %row.id, "capsule {} is not yet removed: {}", row.id, answer.message);
            Ok(false)
        }
        Err(_) => Ok(false),
    }
}

async fn ended(app: &App, team: TeamId, id: CapsuleId) -> Result<bool, ApiError> {
    while !find(app, team, id).await?.status.is_terminal() {
        tokio::time::sleep(JOIN_POLL).await;
    }
    Ok(true)
}
