//! Templates as names that capsules are made from: finding, listing and deleting them, and removing files that are left
//! over.

use std::time::Duration;

use http::StatusCode;
use tokio::time::timeout;
use uuid::Uuid;
use wrenn_core::{HostId, SafeName, TeamId};
use wrenn_protocol::agent::DeleteTemplateRequest;

use crate::api::ApiError;
use crate::auth::Caller;
use crate::capsules::agent_failure;
use crate::hosts::{HostError, HostTransport, host_error};
use crate::state::App;
use crate::store::{HostStatus, StoreError, TemplateRow};

/// How long a host may take to remove a template's files.
const DELETE_TIMEOUT: Duration = Duration::from_secs(60);

/// Other names of a template of the platform.
const ALIASES: [(&str, &str); 2] = [("minimal-ubuntu", "minimal"), ("minimal-debian", "minimal")];

fn meant(name: &str) -> Option<&'static str> {
    ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, meant)| *meant)
}

/// Directory of a template's files on a host, below its `templates`.
pub(crate) fn path(team: TeamId, id: Uuid) -> String {
    format!("{}/{id}", team.uuid())
}

/// The template that a name means to a team: its own, else the platform's.
pub(crate) async fn find(app: &App, team: TeamId, name: &str) -> Result<TemplateRow, ApiError> {
    if let Some(found) = app.store.template(team, name).await? {
        return Ok(found);
    }
    let aliased = match meant(name) {
        Some(meant) => app.store.template(team, meant).await?,
        None => None,
    };
    aliased.ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> ApiError {
    ApiError::not_found(format!("there is no template {name}"))
}

async fn is_reserved(app: &App, name: &str) -> Result<bool, StoreError> {
    Ok(meant(name).is_some() || app.store.is_platform_template(name).await?)
}

/// Refuses names that a template may not have: the platform's to its teams, and to the platform those of templates that
/// are built in.
pub(crate) async fn refuse_reserved(app: &App, team: TeamId, name: &str) -> Result<(), ApiError> {
    if team.uuid().is_nil() {
        if meant(name).is_some() || app.store.is_protected(name).await? {
            return Err(ApiError::forbidden(format!("{name} is built in; choose another name")));
        }
        return Ok(());
    }
    if is_reserved(app, name).await? {
        return Err(ApiError::conflict(format!("{name} is a template of the platform; choose another name")));
    }
    Ok(())
}

/// Deletes a template of the caller's team with its files. Capsules made from it are not hurt.
pub(crate) async fn delete(app: &App, caller: &Caller, name: &str) -> Result<(), ApiError> {
    let team = caller.team;
    let name: SafeName = name.parse().map_err(|error| ApiError::invalid(format!("name {error}")))?;
    let Some((id, host)) = app.store.begin_delete(team, name.as_str(), &caller.actor).await? else {
        return Err(if is_reserved(app, name.as_str()).await? {
            ApiError::forbidden(format!("{name} is a template of the platform and cannot be deleted"))
        } else {
            unknown(name.as_str())
        });
    };
    // In a task of its own: a client that hangs up must not leave it half deleted.
    let work = app.tasks.spawn(remove(app.clone(), team, id, host));
    match work.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            Err(ApiError::conflict(format!("the files of {name} cannot be removed: {}", error.message)))
        }
        Err(_) => Err(ApiError::internal()),
    }
}

/// Why a template's files are not known to be gone.
enum NotRemoved {
    /// They are as they were.
    Kept(ApiError),
    /// Their host was asked, and it is not known what it did.
    Unknown(ApiError),
}

impl NotRemoved {
    fn error(&self) -> &ApiError {
        match self {
            Self::Kept(error) | Self::Unknown(error) => error,
        }
    }
}

impl<E: Into<ApiError>> From<E> for NotRemoved {
    fn from(error: E) -> Self {
        Self::Kept(error.into())
    }
}

async fn remove(app: App, team: TeamId, id: Uuid, host: Option<HostId>) -> Result<(), ApiError> {
    let removed = match host {
        Some(host) => remove_files(&app, host, team, id).await,
        None => Ok(()),
    };
    match removed {
        Ok(()) => app.store.end_delete(team, id, false).await?,
        Err(NotRemoved::Kept(error)) => {
            tracing::warn!(host.id = ?host, "a template is not deleted: {}", error.message);
            app.store.undo_delete(team, id, &error.message).await?;
            return Err(error);
        }
        // A template without files must not be offered again, so there is no way back.
        Err(NotRemoved::Unknown(error)) => {
            tracing::warn!(host.id = ?host, "a deleted template may have left files: {}", error.message);
            app.store.end_delete(team, id, true).await?;
        }
    }
    Ok(())
}

async fn remove_files(app: &App, host: HostId, team: TeamId, id: Uuid) -> Result<(), NotRemoved> {
    let status = app.store.host(host).await?.map_or(HostStatus::Offline, |row| row.status);
    if !matches!(status, HostStatus::Online | HostStatus::Draining) {
        return Err(ApiError::host_unavailable(format!("their host is {}", status.as_str())).into());
    }
    let transport = app.hosts.transport(&app.store, host).await?;
    let transport = transport.ok_or_else(|| ApiError::host_unavailable("their host has no address"))?;
    delete_files(&transport, team, id).await
}

async fn delete_files(transport: &HostTransport, team: TeamId, id: Uuid) -> Result<(), NotRemoved> {
    let request = DeleteTemplateRequest { template_path: path(team, id), ..Default::default() };
    match timeout(DELETE_TIMEOUT, transport.agent().delete_template(request)).await {
        Ok(Ok(_)) => Ok(()),
        // The agent's own word.
        Ok(Err(error)) if host_error(&error).is_none_or(HostError::was_not_sent) => {
            Err(NotRemoved::Kept(agent_failure(&error)))
        }
        Ok(Err(error)) => Err(NotRemoved::Unknown(agent_failure(&error))),
        Err(_) => Err(NotRemoved::Unknown(ApiError::host_unavailable("their host does not answer"))),
    }
}

/// Has a host remove the files of templates that no longer exist, as far as they are due. What fails falls due again.
pub(crate) async fn remove_left_over(app: App, host: HostId) {
    if let Err(error) = remove_due(&app, host).await {
        tracing::warn!(host.id = %host, error = error.message, "files of templates are left on host {host}");
    }
}

async fn remove_due(app: &App, host: HostId) -> Result<(), ApiError> {
    let due = app.store.claim_deletions(host).await?;
    if due.is_empty() {
        return Ok(());
    }
    let transport = app.hosts.transport(&app.store, host).await?;
    let transport = transport.ok_or_else(|| ApiError::host_unavailable("the host has no address"))?;
    for (team, id) in due {
        match delete_files(&transport, team, id).await {
            Ok(()) => app.store.deletion_done(host, team, id).await?,
            // The link asks again as soon as the host is back.
            Err(failure) if failure.error().status == StatusCode::SERVICE_UNAVAILABLE => {
                app.store.release_deletion(host, team, id).await?;
            }
            Err(failure) => {
                let (path, error) = (path(team, id), &failure.error().message);
                tracing::warn!(host.id = %host, error, "host {host} does not remove template {path}");
            }
        }
    }
    Ok(())
}
