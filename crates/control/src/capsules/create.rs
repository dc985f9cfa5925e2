//! Creating a capsule.

use std::time::Duration;

use connectrpc::ConnectError;
use wrenn_core::{CapsuleId, CapsuleStatus, HostId, Metadata, SafeName, Shape, TeamId, metadata, shape};
use wrenn_protocol::agent::{Capsule, CreateCapsuleRequest};

use super::placement::{self, Lack};
use super::work::{ask, remove, settled};
use super::{Outcome, agent_failure, find, generation, system_labels};
use crate::api::ApiError;
use crate::auth::Caller;
use crate::hosts::HostTransport;
use crate::state::App;
use crate::store::{Advance, HostLoad, NewCapsule, TemplateRow};
use crate::templates;

/// Boot and everything before it.
const CREATE_DEADLINE: Duration = Duration::from_secs(600);

const DEFAULT_TEMPLATE: &str = "minimal";

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

/// Creates a capsule; answers when it runs, or with what is known after the settle window.
pub(crate) async fn create(app: &App, caller: &Caller, request: CreateRequest) -> Result<Outcome, ApiError> {
    let team = caller.team;
    let name = template_name(request.template.as_deref())?;
    let labels = request.metadata.unwrap_or_default();
    metadata::validate(&labels).map_err(|error| ApiError::invalid(error.to_string()))?;
    let template = templates::find(app, team, &name).await?;
    let shape = Shape::from_request(
        request.vcpus,
        request.memory_mb,
        request.disk_size_mb,
        template.shape,
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
        default_user: &template.default_user,
        default_env: &template.default_env,
        actor: &caller.actor,
    };
    let host = place(app, &new, template.host).await?;
    let booting = Boot { app: app.clone(), id: new.id, host, request: boot_request(&new, &template) };
    match settled(app, app.tasks.spawn(booting.run())).await {
        Err(error) => settled_badly(app, team, new.id, error).await,
        Ok(_) => Ok(Outcome::of(find(app, team, new.id).await?, CapsuleStatus::Running)),
    }
}

/// Finds a host and stores the capsule there; on the `only` host, where its template is on no other.
async fn place(app: &App, new: &NewCapsule<'_>, only: Option<HostId>) -> Result<HostId, ApiError> {
    let reserve = app.config.reserve;
    let choose = |hosts: &[HostLoad]| match only {
        Some(host) => placement::choose_one(hosts, host, new.shape, reserve),
        None => placement::choose(hosts, new.shape, reserve),
    };
    app.store.place_capsule(new, choose).await?.map_err(|lack| match lack {
        Lack::NoHost => ApiError::host_unavailable(lack.to_string()),
        _ => ApiError::host_unavailable(format!("template {} cannot be used now: {lack}", new.template_name)),
    })
}

/// A create that failed because the capsule was destroyed meanwhile is not an error.
async fn settled_badly(app: &App, team: TeamId, id: CapsuleId, error: ApiError) -> Result<Outcome, ApiError> {
    match find(app, team, id).await {
        Ok(row) if matches!(row.status, CapsuleStatus::Stopping | CapsuleStatus::Stopped) => {
            Ok(Outcome::Pending(row))
        }
        _ => Err(error),
    }
}

fn template_name(asked: Option<&str>) -> Result<String, ApiError> {
    let name = asked.filter(|name| !name.is_empty()).unwrap_or(DEFAULT_TEMPLATE);
    let safe: SafeName = name.parse().map_err(|error| ApiError::invalid(format!("template {error}")))?;
    Ok(safe.to_string())
}

fn boot_request(new: &NewCapsule<'_>, template: &TemplateRow) -> CreateCapsuleRequest {
    CreateCapsuleRequest {
        id: new.id.to_string(),
        template_path: templates::path(template.team, template.id),
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
                remove(&transport, self.id).await;
                self.failed(&answer.message, Some(answer.clone())).await
            }
        }
    }

    async fn ask(&self, transport: &HostTransport) -> Result<Capsule, ConnectError> {
        let agent = transport.agent();
        let answer =
            ask(CREATE_DEADLINE, |options| agent.create_capsule_with_options(self.request.clone(), options))
                .await?;
        Ok(answer.into_owned().capsule.into_option().unwrap_or_default())
    }

    async fn booted(&self, transport: &HostTransport, capsule: &Capsule) -> Result<(), ApiError> {
        self.app.store.capsule_runs(self.id, generation(capsule), &system_labels(capsule)).await?;
        // A destroy may have come first, and reached the host before the create did.
        if self.app.store.ended_or_ending(self.id).await? {
            remove(transport, self.id).await;
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
