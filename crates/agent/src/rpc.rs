//! `AgentService`: what the control plane asks of this host.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
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

use crate::capsule::{Capsule, State};
use crate::error::CapsuleError;
use crate::host;
use crate::manager::{Change, Made, Manager};
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
            Phase::Pausing => pb::CapsulePhase::CAPSULE_PHASE_PAUSING,
            Phase::Paused => pb::CapsulePhase::CAPSULE_PHASE_PAUSED,
            Phase::Resuming => pb::CapsulePhase::CAPSULE_PHASE_RESUMING,
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
                vmm: state.vmm.clone(),
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

/// A template's path, which must stay below `templates/`.
fn template_path(text: &str) -> Result<PathBuf, ConnectError> {
    let path = PathBuf::from(text);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && path.components().count() == 2 {
        return Ok(path);
    }
    Err(ConnectError::invalid_argument(format!("`{text}` is not a template's path")))
}

/// The spec in a create request; its template path must stay below `templates/`.
fn spec_of(request: pb::CreateCapsuleRequest) -> Result<CapsuleSpec, ConnectError> {
    Ok(CapsuleSpec {
        id: parse_id(&request.id)?,
        template_path: template_path(&request.template_path)?,
        template_name: request.template_name,
        shape: Shape { vcpus: request.vcpus, memory_mb: request.memory_mb, disk_mb: request.disk_mb },
        timeout_sec: request.timeout_sec,
        default_user: request.default_user,
        default_env: request.default_env.into_iter().collect(),
    })
}

/// Bytes that the layers of a capsule's disk take on the host, those that it shares with others too; the base not.
fn disk_bytes(dir: &Path) -> io::Result<u64> {
    std::fs::read_dir(dir)?.try_fold(0, |sum, entry| {
        let entry = entry?;
        let is_layer = entry.file_name().to_str().is_some_and(wrenn_disk::is_layer_name);
        Ok(if is_layer { sum + entry.metadata()?.blocks() * 512 } else { sum })
    })
}

impl AgentRpc {
    /// What a caller is told, who may be a user: where the data directory lies is the operator's to know.
    fn refusal(&self, error: &CapsuleError) -> ConnectError {
        let message = error.chain_below(&self.manager.env().config.dir);
        match error {
            CapsuleError::Unknown(_) => ConnectError::not_found(message),
            CapsuleError::Stopping(_) => ConnectError::aborted(message),
            CapsuleError::Template { .. } | CapsuleError::Phase { .. } => {
                ConnectError::failed_precondition(message)
            }
            CapsuleError::TemplateExists { .. } => ConnectError::already_exists(message),
            CapsuleError::DiskTooSmall { .. } => ConnectError::invalid_argument(message),
            _ => ConnectError::internal(message),
        }
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
            accelerator: self.manager.env().drivers.default().accelerator.to_string(),
            ..Default::default()
        })
    }

    async fn create_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, pb::CreateCapsuleRequest>,
    ) -> ServiceResult<impl Encodable<pb::CreateCapsuleResponse> + Send + use<>> {
        let capsule = self.manager.create(spec_of(request.to_owned_message())?);
        let state = capsule.booted().await.map_err(|error| self.refusal(&error))?;
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

    async fn pause_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, pb::PauseCapsuleRequest>,
    ) -> ServiceResult<impl Encodable<pb::PauseCapsuleResponse> + Send + use<>> {
        let capsule = self.find(&request.to_owned_message().id)?;
        let state = capsule.pause().await.map_err(|error| self.refusal(&error))?;
        let report = self.report(&capsule, &state);
        Response::ok(pb::PauseCapsuleResponse { capsule: report.into(), ..Default::default() })
    }

    async fn resume_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, pb::ResumeCapsuleRequest>,
    ) -> ServiceResult<impl Encodable<pb::ResumeCapsuleResponse> + Send + use<>> {
        let capsule = self.find(&request.to_owned_message().id)?;
        let state = capsule.resume().await.map_err(|error| self.refusal(&error))?;
        let report = self.report(&capsule, &state);
        Response::ok(pb::ResumeCapsuleResponse { capsule: report.into(), ..Default::default() })
    }

    async fn create_snapshot(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, pb::CreateSnapshotRequest>,
    ) -> ServiceResult<impl Encodable<pb::CreateSnapshotResponse> + Send + use<>> {
        let request = request.to_owned_message();
        let (capsule, path) = (self.find(&request.capsule_id)?, template_path(&request.template_path)?);
        // In a task: where the caller goes away the directory must not, in which the snapshot is being written.
        let (manager, name) = (self.manager.clone(), request.template_name);
        let made = tokio::spawn(async move { manager.make_template(&capsule, &path, &name).await }).await;
        let made = made.map_err(|error| ConnectError::internal(error.to_string()))?;
        let Made { size_bytes, shape } = made.map_err(|error| self.refusal(&error))?;
        Response::ok(pb::CreateSnapshotResponse {
            size_bytes,
            vcpus: shape.vcpus,
            memory_mb: shape.memory_mb,
            disk_mb: shape.disk_mb,
            ..Default::default()
        })
    }

    async fn delete_template(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, pb::DeleteTemplateRequest>,
    ) -> ServiceResult<impl Encodable<pb::DeleteTemplateResponse> + Send + use<>> {
        let path = template_path(&request.to_owned_message().template_path)?;
        let env = self.manager.env().clone();
        crate::blocking(move || env.templates.remove(&path, &env.staging))
            .await
            .map_err(|error| ConnectError::internal(format!("the template's files do not go: {error}")))?;
        Response::ok(pb::DeleteTemplateResponse::default())
    }

    async fn fork_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, pb::ForkCapsuleRequest>,
    ) -> ServiceResult<impl Encodable<pb::ForkCapsuleResponse> + Send + use<>> {
        let request = request.to_owned_message();
        let source = self.find(&request.id)?;
        let ids = request.clone_ids.iter().map(|id| parse_id(id)).collect::<Result<Vec<_>, _>>()?;
        // In a task: all or none holds also where the caller goes away.
        let manager = self.manager.clone();
        let forked = tokio::spawn(async move { manager.fork(&source, &ids).await }).await;
        let forked = forked.map_err(|error| ConnectError::internal(error.to_string()))?;
        let clones = forked.map_err(|error| self.refusal(&error))?;
        let clones = clones.iter().map(|clone| self.report(clone, &clone.state())).collect();
        Response::ok(pb::ForkCapsuleResponse { clones, ..Default::default() })
    }

    async fn get_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, pb::GetCapsuleRequest>,
    ) -> ServiceResult<impl Encodable<pb::GetCapsuleResponse> + Send + use<>> {
        let capsule = self.find(&request.to_owned_message().id)?;
        let mut report = self.report(&capsule, &capsule.state());
        let dir = self.manager.env().config.capsules_dir().join(capsule.id().to_string());
        let used = crate::blocking(move || disk_bytes(&dir)).await.unwrap_or(0);
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
