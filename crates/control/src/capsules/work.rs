//! What all work on capsules has in common: waiting for it, asking a host, and finding out what became of it.

use std::future::Future;
use std::time::Duration;

use connectrpc::client::CallOptions;
use connectrpc::{ConnectError, ErrorCode};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use wrenn_core::{CapsuleId, CapsuleStatus, TeamId};
use wrenn_protocol::agent::{Capsule, CapsulePhase, DestroyCapsuleRequest, GetCapsuleRequest};

use super::{agent_failure, find, generation, system_labels};
use crate::api::ApiError;
use crate::hosts::{HostError, HostTransport, host_error};
use crate::state::App;
use crate::store::{Advance, CapsuleRow, StoreError};

/// A host that does not answer is asked again this often before the work fails.
const CONNECT_ATTEMPTS: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// How work went within the settle window.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The capsule is what it was to become.
    Settled(CapsuleRow),
    /// Still under way, or ended by a destroy meanwhile.
    Pending(CapsuleRow),
}

impl Outcome {
    /// Settled where the capsule is what it was to become.
    pub(super) fn of(row: CapsuleRow, wanted: CapsuleStatus) -> Self {
        if row.status == wanted { Self::Settled(row) } else { Self::Pending(row) }
    }
}

/// Waits for work for the settle window: what it came to, or `None` where it goes on.
pub(super) async fn settled<T>(
    app: &App,
    work: JoinHandle<Result<T, ApiError>>,
) -> Result<Option<T>, ApiError> {
    match timeout(app.config.settle, work).await {
        Ok(Ok(outcome)) => outcome.map(Some),
        Ok(Err(_)) => Err(ApiError::internal()),
        Err(_) => Ok(None),
    }
}

/// Why work on a capsule failed: what it says, unless a destroy came in between.
pub(super) async fn unless_destroyed(app: &App, team: TeamId, id: CapsuleId, error: ApiError) -> ApiError {
    match find(app, team, id).await {
        Ok(row) if matches!(row.status, CapsuleStatus::Stopping | CapsuleStatus::Stopped) => {
            ApiError::invalid_state(format!("capsule {id} is {}: it was destroyed meanwhile", row.status))
        }
        _ => error,
    }
}

/// Makes a call that joins an earlier one of its kind, and so may be made again where the host cannot be reached.
pub(super) async fn ask<T, F: Future<Output = Result<T, ConnectError>>>(
    within: Duration,
    call: impl Fn(CallOptions) -> F,
) -> Result<T, ConnectError> {
    let deadline = Instant::now() + within;
    let mut attempt = 1;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match call(CallOptions::default().with_timeout(left)).await {
            Err(error)
                if attempt < CONNECT_ATTEMPTS
                    && matches!(host_error(&error), Some(HostError::Unreachable(_))) =>
            {
                attempt += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Has a host remove what there is of a capsule whose row has ended; whether it has.
pub(super) async fn remove(transport: &HostTransport, id: CapsuleId) -> bool {
    let request = DestroyCapsuleRequest { id: id.to_string(), ..Default::default() };
    match timeout(CLEANUP_TIMEOUT, transport.agent().destroy_capsule(request)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::warn!(capsule.id = %id, %error, "cannot clean up after capsule {id}");
            false
        }
        Err(_) => false,
    }
}

/// What a host says of a capsule after work on it has failed.
#[derive(Debug)]
enum Found {
    There(Box<Capsule>),
    Gone,
    /// The host does not answer.
    Silent,
}

async fn look(transport: &HostTransport, id: CapsuleId) -> Found {
    let request = GetCapsuleRequest { id: id.to_string(), ..Default::default() };
    match timeout(LOOK_TIMEOUT, transport.agent().get_capsule(request)).await {
        Ok(Ok(answer)) => match answer.into_owned().capsule.into_option() {
            Some(capsule) => Found::There(Box::new(capsule)),
            None => Found::Silent,
        },
        Ok(Err(error)) if host_error(&error).is_none() && error.code == ErrorCode::NotFound => Found::Gone,
        Ok(Err(_)) | Err(_) => Found::Silent,
    }
}

/// Work on a capsule that has failed.
#[derive(Debug)]
pub(super) struct Failed<'a> {
    pub(super) id: CapsuleId,
    /// The state it has while the work is under way.
    pub(super) during: CapsuleStatus,
    /// The state it had before.
    pub(super) back: CapsuleStatus,
    pub(super) cause: &'a str,
}

impl Failed<'_> {
    /// Brings the capsule to what its host says, or back where the host does not say. What stays in doubt is cured by the
    /// host's reports. True where the host says that what was wanted has come to be after all.
    pub(super) async fn recover(
        self,
        app: &App,
        transport: Option<&HostTransport>,
    ) -> Result<bool, StoreError> {
        let found = match transport {
            Some(transport) => look(transport, self.id).await,
            None => Found::Silent,
        };
        match found {
            Found::Silent => self.becomes(app, self.back, None).await?,
            Found::Gone => self.becomes(app, CapsuleStatus::Error, None).await?,
            Found::There(capsule) => return self.take_over(app, &capsule).await,
        }
        Ok(false)
    }

    async fn take_over(self, app: &App, capsule: &Capsule) -> Result<bool, StoreError> {
        let to = match capsule.phase.as_known() {
            Some(CapsulePhase::CAPSULE_PHASE_RUNNING) => CapsuleStatus::Running,
            Some(CapsulePhase::CAPSULE_PHASE_PAUSED) => CapsuleStatus::Paused,
            // It left the state it had before when the work was done with it.
            _ if self.during == CapsuleStatus::Snapshotting => self.back,
            _ => return Ok(false),
        };
        let generation = generation(capsule);
        if self.during == CapsuleStatus::Resuming && to == CapsuleStatus::Running {
            app.store.capsule_runs(self.id, generation, &system_labels(capsule)).await?;
        } else {
            self.becomes(app, to, Some(generation)).await?;
        }
        Ok(to != self.back)
    }

    async fn becomes(&self, app: &App, to: CapsuleStatus, generation: Option<i64>) -> Result<(), StoreError> {
        let from = [self.during];
        let step = Advance { reason: Some(self.cause), generation, ..Advance::new(&from, to) };
        app.store.advance(self.id, step).await.map(drop)
    }
}

/// What a failed call to an agent means to the client where the capsule's state allowed the call: a refusal of the agent
/// is then a failure of the work, not of the request.
pub(super) fn work_failure(error: &ConnectError) -> ApiError {
    match (error.code, &error.message) {
        (ErrorCode::FailedPrecondition, Some(text)) => ApiError::agent(text.clone()),
        _ => agent_failure(error),
    }
}
