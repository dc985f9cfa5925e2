//! `AgentService`: what the control plane asks of this host.

use std::pin::Pin;
use std::time::Duration;

use connectrpc::{
    ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::StreamExt;
use futures::stream::{self, Stream};
use tokio::sync::broadcast::error::RecvError;
use wrenn_core::{CapsuleId, Shape};
use wrenn_protocol::agent as pb;

use crate::capsule::{Capsule, DISK_FILE, State};
use crate::error::CapsuleError;
use crate::host;
use crate::manager::{Change, Manager};
use crate::record::{CapsuleSpec, Phase};

/// A watcher hears from the agent at least this often.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The service over a host's [`Manager`].
#[derive(Debug, Clone)]
pub(crate) struct AgentRpc {
    manager: Manager,
}

impl AgentRpc {
    /// Serves this host.
    pub(crate) fn new(manager: Manager) -> Self {
        Self { manager }
    }

    fn find(&self, id: &str) -> Result<Capsule, ConnectError> {
        let id = parse_id(id)?;
        self.manager.get(id).ok_or_else(|| ConnectError::not_found(CapsuleError::Unknown(id).to_string()))
    }

    fn report(&self, capsule: &Capsule, state: &State) -> pb::Capsule {
        let phase = match state.phase {
            Phase::Starting => pb::CapsulePhase::CAPSULE_PHASE_STARTING,
            Phase::Running => pb::CapsulePhase::CAPSULE_PHASE_RUNNING,
            Phase::Stopping => pb::CapsulePhase::CAPSULE_PHASE_STOPPING,
            Phase::Stopped => pb::CapsulePhase::CAPSULE_PHASE_STOPPED,
        };
        let guest = state.guest.as_ref();
        pb::Capsule {
            id: capsule.id().to_string(),
            phase: phase.into(),
            generation: state.generation,
            reason: state.reason.clone(),
            versions: pb::Versions {
                kernel: guest.map(|guest| guest.kernel.clone()).unwrap_or_default(),
                vmm: self.manager.env().vmm_version.clone(),
                agent: host::VERSION.to_owned(),
                guest: guest.map(|guest| guest.version.clone()).unwrap_or_default(),
                ..Default::default()
            }
            .into(),
            last_active: capsule.last_active(),
            ..Default::default()
        }
    }

    /// Every capsule in one message.
    fn everything(&self) -> pb::WatchResponse {
        let capsules = self.manager.all();
        let alive = capsules.iter().map(|capsule| (capsule, capsule.state()));
        let capsules = alive
            .filter(|(_, state)| state.phase != Phase::Stopped)
            .map(|(capsule, state)| self.report(capsule, &state))
            .collect();
        let all = pb::watch_response::All { capsules, ..Default::default() };
        pb::WatchResponse { event: Some(all.into()), ..Default::default() }
    }

    fn changed(&self, change: &Change) -> pb::WatchResponse {
        let capsule = self.report(&change.capsule, &change.state);
        pb::WatchResponse { event: Some(capsule.into()), ..Default::default() }
    }

    fn events(self) -> Pin<Box<dyn Stream<Item = pb::WatchResponse> + Send>> {
        // Subscribed before the list is made, so that nothing falls between the two.
        let changes = self.manager.changes();
        let first = self.everything();
        let rest = stream::unfold((self, changes), |(rpc, mut changes)| async move {
            let event = match tokio::time::timeout(HEARTBEAT, changes.recv()).await {
                Ok(Ok(change)) => rpc.changed(&change),
                Ok(Err(RecvError::Lagged(_))) => rpc.everything(),
                Ok(Err(RecvError::Closed)) => return None,
                Err(_elapsed) => {
                    let heartbeat = pb::watch_response::Heartbeat::default();
                    pb::WatchResponse { event: Some(heartbeat.into()), ..Default::default() }
                }
            };
            Some((event, (rpc, changes)))
        });
        Box::pin(stream::once(async { first }).chain(rest))
    }
}

fn parse_id(text: &str) -> Result<CapsuleId, ConnectError> {
    text.parse().map_err(|error: wrenn_core::IdError| ConnectError::invalid_argument(error.to_string()))
}

/// The spec in a create request; its template path must stay below `templates/`.
fn spec_of(request: pb::CreateCapsuleRequest) -> Result<CapsuleSpec, ConnectError> {
    let template_path = std::path::PathBuf::from(&request.template_path);
    let inside = template_path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if request.template_path.is_empty() || !inside {
        let message = format!("`{}` is not a template's path", request.template_path);
        return Err(ConnectError::invalid_argument(message));
    }
    Ok(CapsuleSpec {
        id: parse_id(&request.id)?,
        template_path,
        template_name: request.template_name,
        shape: Shape { vcpus: request.vcpus, memory_mb: request.memory_mb, disk_mb: request.disk_mb },
        timeout_sec: request.timeout_sec,
        default_user: request.default_user,
        default_env: request.default_env.into_iter().collect(),
    })
}

fn refusal(error: &CapsuleError) -> ConnectError {
    let message = error.chain();
    match error {
        CapsuleError::Unknown(_) => ConnectError::not_found(message),
        CapsuleError::Stopping(_) => ConnectError::aborted(message),
        CapsuleError::Template { .. } => ConnectError::failed_precondition(message),
        CapsuleError::DiskTooSmall { .. } => ConnectError::invalid_argument(message),
        _ => ConnectError::internal(message),
    }
}

#[expect(
    refining_impl_trait_internal,
    reason = "the answers borrow nothing, and saying so lets them be sent on"
)]
impl pb::AgentService for AgentRpc {
    async fn get_host(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, pb::GetHostRequest>,
    ) -> ServiceResult<impl Encodable<pb::GetHostResponse> + Send + use<>> {
        let capacity = host::Capacity::read(&self.manager.env().config.dir);
        Response::ok(pb::GetHostResponse {
            arch: std::env::consts::ARCH.to_owned(),
            cpu_cores: capacity.cpu_cores,
            memory_mb: capacity.memory_mb,
            disk_gb: capacity.disk_gb,
            agent_version: host::VERSION.to_owned(),
            accelerator: self.manager.env().accelerator.to_string(),
            ..Default::default()
        })
    }

    async fn create_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, pb::CreateCapsuleRequest>,
    ) -> ServiceResult<impl Encodable<pb::CreateCapsuleResponse> + Send + use<>> {
        let capsule = self.manager.create(spec_of(request.to_owned_message())?);
        let state = capsule.booted().await.map_err(|error| refusal(&error))?;
        let report = self.report(&capsule, &state);
        Response::ok(pb::CreateCapsuleResponse { capsule: report.into(), ..Default::default() })
    }

    async fn destroy_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, pb::DestroyCapsuleRequest>,
    ) -> ServiceResult<impl Encodable<pb::DestroyCapsuleResponse> + Send + use<>> {
        if let Some(capsule) = self.manager.get(parse_id(&request.to_owned_message().id)?) {
            capsule.destroy().await;
        }
        Response::ok(pb::DestroyCapsuleResponse::default())
    }

    async fn get_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, pb::GetCapsuleRequest>,
    ) -> ServiceResult<impl Encodable<pb::GetCapsuleResponse> + Send + use<>> {
        let capsule = self.find(&request.to_owned_message().id)?;
        let mut report = self.report(&capsule, &capsule.state());
        let env = self.manager.env();
        let disk = env.config.capsules_dir().join(capsule.id().to_string()).join(DISK_FILE);
        let used = wrenn_disk::allocated_bytes(&disk).unwrap_or(0);
        report.disk_used_mb = u32::try_from(used.div_ceil(1024 * 1024)).unwrap_or(u32::MAX);
        Response::ok(pb::GetCapsuleResponse { capsule: report.into(), ..Default::default() })
    }

    async fn ping_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, pb::PingCapsuleRequest>,
    ) -> ServiceResult<impl Encodable<pb::PingCapsuleResponse> + Send + use<>> {
        let capsule = self.find(&request.to_owned_message().id)?;
        if capsule.state().phase != Phase::Running {
            return Err(ConnectError::failed_precondition(format!(
                "capsule {} is not running",
                capsule.id()
            )));
        }
        capsule.touch();
        Response::ok(pb::PingCapsuleResponse::default())
    }

    async fn watch(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, pb::WatchRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<pb::WatchResponse> + Send + use<>>> {
        let detached = self.manager.env().detach.clone().cancelled_owned();
        let events = self.clone().events().map(Ok).take_until(detached);
        Response::stream_ok(events)
    }
}
