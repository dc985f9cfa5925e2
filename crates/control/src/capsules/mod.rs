//! The life of capsules as the control plane sees it: choosing a host, asking it, keeping the row truthful.
//!
//! The work runs in tasks of its own, never in the future of the request: a client that hangs up changes nothing. A
//! request waits for its task for the settle window and then answers with what is known.

mod create;
mod destroy;
mod fork;
mod pause;
mod placement;
mod snapshot;
mod work;

use std::collections::BTreeMap;
use std::time::Duration;

use connectrpc::{ConnectError, ErrorCode};
use tokio::time::timeout;
use wrenn_core::{CapsuleId, CapsuleStatus, TeamId};
use wrenn_protocol::agent::{Capsule, GetCapsuleRequest, PingCapsuleRequest};

use crate::api::ApiError;
use crate::guest::Guest;
use crate::hosts::{HostError, HostTransport, host_error};
use crate::state::App;
use crate::store::CapsuleRow;

pub(crate) use create::{CreateRequest, create};
pub(crate) use destroy::{Destroyed, destroy, let_go};
pub(crate) use fork::{ForkRequest, Forked, fork};
pub(crate) use pause::{pause, resume};
pub use placement::Reserve;
pub(crate) use snapshot::{SnapshotRequest, snapshot};
pub(crate) use work::Outcome;

/// How long a read may wait for a host's live figures.
const LIVE_TIMEOUT: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The host's count of changes in the form the store keeps.
pub(crate) fn generation(capsule: &Capsule) -> i64 {
    i64::try_from(capsule.generation).unwrap_or(i64::MAX)
}

/// The labels that the platform sets on a running capsule.
pub(crate) fn system_labels(capsule: &Capsule) -> BTreeMap<String, String> {
    let Some(versions) = capsule.versions.as_option() else { return BTreeMap::new() };
    [
        ("kernel_version", &versions.kernel),
        ("vmm_version", &versions.vmm),
        ("agent_version", &versions.agent),
        ("envd_version", &versions.guest),
    ]
    .into_iter()
    .filter(|(_, version)| !version.is_empty())
    .map(|(label, version)| (label.to_owned(), version.clone()))
    .collect()
}

/// What a host knows of a capsule right now; `None` where it does not say in time.
pub(crate) async fn live(transport: &HostTransport, id: CapsuleId) -> Option<Capsule> {
    let request = GetCapsuleRequest { id: id.to_string(), ..Default::default() };
    let answer = timeout(LIVE_TIMEOUT, transport.agent().get_capsule(request)).await.ok()?.ok()?;
    answer.into_owned().capsule.into_option()
}

/// One capsule of a team.
pub(crate) async fn find(app: &App, team: TeamId, id: CapsuleId) -> Result<CapsuleRow, ApiError> {
    app.store.capsule(team, id).await?.ok_or_else(|| ApiError::not_found(format!("there is no capsule {id}")))
}

/// One capsule with live figures, where its host gives them.
pub(crate) async fn find_live(
    app: &App,
    team: TeamId,
    id: CapsuleId,
) -> Result<(CapsuleRow, Option<Capsule>), ApiError> {
    let row = find(app, team, id).await?;
    if !matches!(row.status, CapsuleStatus::Running | CapsuleStatus::Paused) {
        return Ok((row, None));
    }
    let figures = match app.hosts.transport(&app.store, row.host).await? {
        Some(transport) => live(&transport, id).await,
        None => None,
    };
    Ok((row, figures))
}

/// The way into a running capsule.
pub(crate) async fn guest(app: &App, team: TeamId, id: CapsuleId) -> Result<Guest, ApiError> {
    let row = find(app, team, id).await?;
    let transport = running(app, &row).await?;
    Ok(Guest::new(transport, id))
}

/// The way to the host of a running capsule.
async fn running(app: &App, row: &CapsuleRow) -> Result<HostTransport, ApiError> {
    if row.status != CapsuleStatus::Running {
        return Err(not_running(row));
    }
    transport(app, row).await
}

fn not_running(row: &CapsuleRow) -> ApiError {
    ApiError::invalid_state(format!("capsule {} is {}, not running", row.id, row.status))
}

/// The way to a capsule's host.
async fn transport(app: &App, row: &CapsuleRow) -> Result<HostTransport, ApiError> {
    let transport = app.hosts.transport(&app.store, row.host).await?;
    transport.ok_or_else(|| ApiError::host_unavailable("the capsule's host has no address"))
}

/// Resets a capsule's inactivity clock.
pub(crate) async fn ping(app: &App, team: TeamId, id: CapsuleId) -> Result<(), ApiError> {
    let row = find(app, team, id).await?;
    let agent = running(app, &row).await?.agent();
    let request = PingCapsuleRequest { id: id.to_string(), ..Default::default() };
    match timeout(PING_TIMEOUT, agent.ping_capsule(request)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(agent_failure(&error)),
        Err(_) => return Err(ApiError::host_unavailable("the capsule's host does not answer")),
    }
    Ok(app.store.capsules_active(&[(id, time::OffsetDateTime::now_utc())]).await?)
}

/// What a failed call to an agent means to the client.
pub(crate) fn agent_failure(error: &ConnectError) -> ApiError {
    if let Some(HostError::Unreachable(cause)) = host_error(error) {
        tracing::warn!(error = ?cause, "a host cannot be reached");
        return ApiError::host_unavailable("the capsule's host cannot be reached");
    }
    let text = error.message.clone().unwrap_or_else(|| error.code.as_str().to_owned());
    match error.code {
        ErrorCode::ResourceExhausted | ErrorCode::Unavailable => ApiError::host_unavailable(text),
        ErrorCode::NotFound => ApiError::invalid_state("the capsule's host does not have it (any more)"),
        ErrorCode::FailedPrecondition => ApiError::invalid_state(text),
        ErrorCode::InvalidArgument => ApiError::invalid(text),
        ErrorCode::Unimplemented => ApiError::unsupported(text),
        _ => ApiError::agent(text),
    }
}
