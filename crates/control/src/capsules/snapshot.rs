//! Making a template from a capsule, which afterwards is what it was before.

use std::time::Duration;

use connectrpc::client::CallOptions;
use connectrpc::{ConnectError, ErrorCode};
use uuid::Uuid;
use wrenn_core::{CapsuleId, CapsuleStatus, SafeName, TeamId};
use wrenn_protocol::agent::{CreateSnapshotRequest, CreateSnapshotResponse};

use super::work::{Failed, settled, unless_destroyed};
use super::{Outcome, agent_failure, find, transport};
use crate::api::ApiError;
use crate::auth::Caller;
use crate::hosts::{HostTransport, host_error};
use crate::secret;
use crate::state::App;
use crate::store::{Advance, Begun, CapsuleRow, Made, NewSnapshot, UNFINISHED};
use crate::templates;

const DEADLINE: Duration = Duration::from_secs(600);

/// A snapshot request, its name unchecked.
#[derive(Debug)]
pub(crate) struct SnapshotRequest {
    pub(crate) capsule: CapsuleId,
    pub(crate) name: Option<String>,
    pub(crate) overwrite: bool,
}

/// Makes a template; answers with its name when it is ready, or with what is known after the settle window.
pub(crate) async fn snapshot(
    app: &App,
    caller: &Caller,
    request: SnapshotRequest,
) -> Result<(Outcome, String), ApiError> {
    let team = caller.team;
    let name = match request.name.filter(|name| !name.is_empty()) {
        Some(name) => {
            let safe: SafeName = name.parse().map_err(|error| ApiError::invalid(format!("name {error}")))?;
            safe.to_string()
        }
        None => format!("template-{}", secret::random_hex::<4>()),
    };
    let capsule = find(app, team, request.capsule).await?;
    templates::refuse_reserved(app, team, &name).await?;
    let (id, overwrite) = (Uuid::new_v4(), request.overwrite);
    let new = NewSnapshot { team, id, name: &name, capsule: capsule.id, overwrite, actor: &caller.actor };
    let was = match app.store.begin_snapshot(&new).await? {
        Begun::Yes { was } => was,
        begun => return Err(refused(app, &new, begun).await),
    };
    let work = Making { app: app.clone(), team, id, name: name.clone(), capsule, was };
    let capsule = request.capsule;
    let ready = match settled(app, app.tasks.spawn(work.run())).await {
        Ok(outcome) => outcome.is_some(),
        Err(error) => return Err(unless_destroyed(app, team, capsule, error).await),
    };
    let row = find(app, team, capsule).await?;
    Ok((if ready { Outcome::Settled(row) } else { Outcome::Pending(row) }, name))
}

async fn refused(app: &App, new: &NewSnapshot<'_>, begun: Begun) -> ApiError {
    let name = new.name;
    match begun {
        Begun::InTheMaking => ApiError::conflict(format!("a template {name} is being made; try again later")),
        Begun::NameTaken => {
            ApiError::conflict(format!("there is a template {name}; choose another name or overwrite it"))
        }
        Begun::WrongState | Begun::Yes { .. } => match find(app, new.team, new.capsule).await {
            Ok(row) => ApiError::invalid_state(format!(
                "capsule {} is {}; templates are made from running and paused ones",
                row.id, row.status
            )),
            Err(error) => error,
        },
    }
}

/// The task that has a host make a template.
struct Making {
    app: App,
    team: TeamId,
    id: Uuid,
    name: String,
    capsule: CapsuleRow,
    was: CapsuleStatus,
}

impl Making {
    async fn run(self) -> Result<(), ApiError> {
        let host = match transport(&self.app, &self.capsule).await {
            Ok(host) => host,
            Err(error) => return self.failed(None, error, Duration::ZERO).await,
        };
        match self.call(&host).await {
            Ok(made) => self.made(&made).await,
            Err(error) => {
                // A host that was cut off may still write the files.
                let doubt = host_error(&error).is_some() || error.code == ErrorCode::DeadlineExceeded;
                let wait = if doubt { UNFINISHED } else { Duration::ZERO };
                self.failed(Some(&host), agent_failure(&error), wait).await
            }
        }
    }

    /// Asked once: a repeated call would find its files.
    async fn call(&self, host: &HostTransport) -> Result<CreateSnapshotResponse, ConnectError> {
        let request = CreateSnapshotRequest {
            capsule_id: self.capsule.id.to_string(),
            template_path: templates::path(self.team, self.id),
            template_name: self.name.clone(),
            ..Default::default()
        };
        let options = CallOptions::default().with_timeout(DEADLINE);
        Ok(host.agent().create_snapshot_with_options(request, options).await?.into_owned())
    }

    /// The template first: whoever sees the capsule back finds it in the list.
    async fn made(&self, made: &CreateSnapshotResponse) -> Result<(), ApiError> {
        let size = Made {
            size_bytes: i64::try_from(made.size_bytes).unwrap_or(i64::MAX),
            vcpus: made.vcpus.into(),
            memory_mb: made.memory_mb.into(),
            disk_mb: made.disk_mb.into(),
        };
        let finished = self.app.store.finish_snapshot(self.team, self.id, size).await;
        let back = Advance::new(&[CapsuleStatus::Snapshotting], self.was);
        self.app.store.advance(self.capsule.id, back).await?;
        let host = self.capsule.host;
        if finished? {
            tracing::info!(capsule.id = %self.capsule.id, "template {} was made", self.name);
            self.app.tasks.spawn(templates::remove_left_over(self.app.clone(), host));
            return Ok(());
        }
        self.app.store.remember_deletion(host, self.team, self.id).await?;
        Err(ApiError::conflict(format!("template {} took too long and was given up", self.name)))
    }

    async fn failed(
        &self,
        host: Option<&HostTransport>,
        error: ApiError,
        wait: Duration,
    ) -> Result<(), ApiError> {
        let (id, cause) = (self.capsule.id, &error.message);
        tracing::warn!(capsule.id = %id, "no template {} of capsule {id}: {cause}", self.name);
        let abandoned = self.app.store.abandon_snapshot(self.team, self.id, wait, cause).await;
        let failed = Failed { id, during: CapsuleStatus::Snapshotting, back: self.was, cause };
        failed.recover(&self.app, host).await?;
        abandoned?;
        Err(error)
    }
}
