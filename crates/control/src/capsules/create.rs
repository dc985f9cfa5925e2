//! Creating a capsule.

use std::time::Duration;

use connectrpc::ConnectError;
use connectrpc::client::CallOptions;
use tokio::time::{Instant, timeout};
use wrenn_core::{CapsuleId, CapsuleStatus, HostId, Metadata, SafeName, Shape, TeamId, metadata, shape};
use wrenn_protocol::agent::{Capsule, CreateCapsuleRequest, DestroyCapsuleRequest};

use super::{agent_failure, find, generation, placement, system_labels};
use crate::api::ApiError;
use crate::hosts::{HostError, HostTransport, host_error};
use crate::state::App;
use crate::store::{Advance, CapsuleRow, NewCapsule, TemplateRow};

/// Boot and everything before it.
const CREATE_DEADLINE: Duration = Duration::from_secs(600);
/// A host that does not answer is asked again this often before the create fails.
const CONNECT_ATTEMPTS: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(60);

const DEFAULT_TEMPLATE: &str = "minimal";
const ALIASES: [&str; 2] = ["minimal-ubuntu", "minimal-debian"];

/// A create request, unchecked.
#[derive(Debug, Default)]
pub(crate) struct CreateRequest {
    pub(crate) template: Option<String>,
    pub(crate) vcpus: Option<i64>,
    pub(crate) memory_mb: Option<i64>,
    pub(crate) disk_size_mb: Option<i64>,
    pub(crate) timeout_sec: Option<i64>,
    pub(crate) metadata: Option<Metadata>,
}

/// How a create went within the settle window.
#[derive(Debug)]
pub(crate) enum Created {
    /// It runs.
    Settled(CapsuleRow),
    /// Still under way, or ended by a destroy meanwhile.
    Pending(CapsuleRow),
}

/// Creates a capsule; answers when it runs, or with what is known after the settle window.
pub(crate) async fn create(app: &App, team: TeamId, request: CreateRequest) -> Result<Created, ApiError> {
    let name = template_name(request.template.as_deref())?;
    let labels = request.metadata.unwrap_or_default();
    metadata::validate(&labels).map_err(|error| ApiError::invalid(error.to_string()))?;
    let template = template(app, team, &name).await?;
    let shape = Shape::from_request(
        request.vcpus,
        request.memory_mb,
        request.disk_size_mb,
        template.disk_mb,
        app.config.shape_limits,
    )
    .map_err(|error| ApiError::invalid(error.to_string()))?;
    let new = NewCapsule {
        id: CapsuleId::random(),
        team,
        template_team: template.team,
        template: template.id,
        template_name: &name,
        shape,
        timeout_sec: shape::effective_timeout_sec(request.timeout_sec.unwrap_or_default()),
        metadata: &labels,
    };
    let reserve = app.config.reserve;
    let host =
        app.store.place_capsule(&new, |hosts| placement::choose(hosts, shape, reserve)).await?.ok_or_else(
            || ApiError::host_unavailable("no online host has room for this capsule; try a smaller one"),
        )?;
    let booting = Boot { app: app.clone(), id: new.id, host, request: boot_request(&new, &template) };
    let work = app.tasks.spawn(booting.run());
    match timeout(app.config.settle, work).await {
        Ok(Ok(Err(error))) => settled_badly(app, team, new.id, error).await,
        Ok(Err(_)) => Err(ApiError::internal()),
        Ok(Ok(Ok(()))) | Err(_) => {
            let row = find(app, team, new.id).await?;
            let runs = row.status == CapsuleStatus::Running;
            Ok(if runs { Created::Settled(row) } else { Created::Pending(row) })
        }
    }
}

/// A create that failed because the capsule was destroyed meanwhile is not an error.
async fn settled_badly(app: &App, team: TeamId, id: CapsuleId, error: ApiError) -> Result<Created, ApiError> {
    match find(app, team, id).await {
        Ok(row) if matches!(row.status, CapsuleStatus::Stopping | CapsuleStatus::Stopped) => {
            Ok(Created::Pending(row))
        }
        _ => Err(error),
    }
}

fn template_name(asked: Option<&str>) -> Result<String, ApiError> {
    let name = asked.filter(|name| !name.is_empty()).unwrap_or(DEFAULT_TEMPLATE);
    let safe: SafeName = name.parse().map_err(|error| ApiError::invalid(format!("template {error}")))?;
    Ok(safe.to_string())
}

async fn template(app: &App, team: TeamId, name: &str) -> Result<TemplateRow, ApiError> {
    if let Some(found) = app.store.template(team, name).await? {
        return Ok(found);
    }
    let meant =
        if ALIASES.contains(&name) { app.store.template(team, DEFAULT_TEMPLATE).await? } else { None };
    meant.ok_or_else(|| ApiError::not_found(format!("there is no template {name}")))
}

fn boot_request(new: &NewCapsule<'_>, template: &TemplateRow) -> CreateCapsuleRequest {
    CreateCapsuleRequest {
        id: new.id.to_string(),
        template_path: format!("{}/{}", template.team.uuid(), template.id),
        vcpus: new.shape.vcpus,
        memory_mb: new.shape.memory_mb,
        disk_mb: new.shape.disk_mb,
        timeout_sec: new.timeout_sec,
        template_name: new.template_name.to_owned(),
        default_user: template.default_user.clone(),
        default_env: template.default_env.clone().into_iter().collect(),
        ..Default::default()
    }
}

/// The task that has a host boot a capsule.
struct Boot {
    app: App,
    id: CapsuleId,
    host: HostId,
    request: CreateCapsuleRequest,
}

impl Boot {
    async fn run(self) -> Result<(), ApiError> {
        let transport = match self.app.hosts.transport(&self.app.store, self.host).await {
            Ok(Some(transport)) => transport,
            Ok(None) => return self.failed("its host has no address", None).await,
            Err(error) => {
                let error = ApiError::from(error);
                self.failed(&error.message.clone(), None).await?;
                return Err(error);
            }
        };
        match self.ask(&transport).await {
            Ok(capsule) => self.booted(&transport, &capsule).await,
            Err(error) => {
                let answer = agent_failure(&error);
                // The host may have begun: whatever there is of the capsule must go.
                self.remove(&transport).await;
                self.failed(&answer.message, Some(answer.clone())).await
            }
        }
    }

    /// Asks again where the host cannot be reached: a repeated call for the same id joins the first.
    async fn ask(&self, transport: &HostTransport) -> Result<Capsule, ConnectError> {
        let deadline = Instant::now() + CREATE_DEADLINE;
        let mut attempt = 1;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let options = CallOptions::default().with_timeout(left);
            match transport.agent().create_capsule_with_options(self.request.clone(), options).await {
                Ok(answer) => return Ok(answer.into_owned().capsule.into_option().unwrap_or_default()),
                Err(error)
                    if attempt < CONNECT_ATTEMPTS
                        && matches!(host_error(&error), Some(HostError::Unreachable(_))) =>
                {
                    attempt += 1;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn booted(&self, transport: &HostTransport, capsule: &Capsule) -> Result<(), ApiError> {
        self.app.store.capsule_runs(self.id, generation(capsule), &system_labels(capsule)).await?;
        // A destroy may have come first, and reached the host before the create did.
        if self.app.store.ended_or_ending(self.id).await? {
            self.remove(transport).await;
        }
        Ok(())
    }

    async fn failed(&self, reason: &str, answer: Option<ApiError>) -> Result<(), ApiError> {
        tracing::warn!(capsule.id = %self.id, host.id = %self.host, "capsule {} did not start: {reason}", self.id);
        let from = [CapsuleStatus::Pending, CapsuleStatus::Starting];
        let step = Advance { reason: Some(reason), ..Advance::new(&from, CapsuleStatus::Error) };
        self.app.store.advance(self.id, step).await?;
        Err(answer.unwrap_or_else(|| ApiError::host_unavailable(reason)))
    }

    async fn remove(&self, transport: &HostTransport) {
        let request = DestroyCapsuleRequest { id: self.id.to_string(), ..Default::default() };
        if let Ok(Err(error)) = timeout(CLEANUP_TIMEOUT, transport.agent().destroy_capsule(request)).await {
            tracing::warn!(capsule.id = %self.id, %error, "cannot clean up after capsule {}", self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_empty_template_is_the_default_one() {
        assert_eq!(template_name(None).unwrap(), "minimal");
        assert_eq!(template_name(Some("")).unwrap(), "minimal");
        assert_eq!(template_name(Some("mine")).unwrap(), "mine");
        assert_eq!(template_name(Some("../x")).unwrap_err().code, "invalid_request");
    }
}
