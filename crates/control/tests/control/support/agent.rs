//! An agent that acts out what a host does. It serves the real `AgentService` and the real tunnel over mutual TLS with
//! the certificates that registration gave it; there is no VM behind it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use connectrpc::{ConnectError, RequestContext, ServiceRequest, ServiceResult, ServiceStream};
use futures::StreamExt;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{BroadcastStream, IntervalStream};
use tower::ServiceExt;
use wrenn_protocol::agent::__buffa::oneof::watch_response::Event;
use wrenn_protocol::agent::*;
use wrenn_protocol::tunnel::{ERROR_HEADER, TunnelError};

use super::acts::Act;
use super::guest::FakeGuest;

/// What creates do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    Works,
    /// Waits until the mode changes.
    Hangs,
    Fails,
}

pub struct FakeAgent {
    pub world: Arc<World>,
    server: JoinHandle<()>,
}

/// What there is on the host.
pub struct World {
    pub(super) capsules: Mutex<HashMap<String, Capsule>>,
    pub(super) changes: broadcast::Sender<Capsule>,
    boot: watch::Sender<Boot>,
    pub(super) act: watch::Sender<Act>,
    /// What was asked for beside creates, in order: `pause cl-…`.
    pub(super) calls: Mutex<Vec<String>>,
    destroys: Mutex<Vec<String>>,
    pub creates: Mutex<Vec<CreateCapsuleRequest>>,
    /// Paths of the templates that were made here.
    pub templates: Mutex<BTreeSet<String>>,
    pub guest: Arc<FakeGuest>,
}

impl World {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            capsules: Mutex::default(),
            changes: broadcast::channel(64).0,
            boot: watch::channel(Boot::Works).0,
            act: watch::channel(Act::Works).0,
            calls: Mutex::default(),
            destroys: Mutex::default(),
            creates: Mutex::default(),
            templates: Mutex::default(),
            guest: Arc::default(),
        })
    }
}

impl FakeAgent {
    pub fn start(listener: TcpListener, credentials: &Value, world: Arc<World>) -> Self {
        let server = tokio::spawn(serve(listener, tls(credentials), world.clone()));
        Self { world, server }
    }

    /// Ends it, in the middle of whatever it does; nobody reaches it any more when this returns.
    pub async fn leave(mut self) {
        self.server.abort();
        let _aborted = (&mut self.server).await;
    }

    pub fn set_boot(&self, mode: Boot) {
        self.world.boot.send_replace(mode);
    }

    pub fn set_act(&self, mode: Act) {
        self.world.act.send_replace(mode);
    }

    /// How often something was asked for, for example `pause`.
    pub fn calls(&self, call: &str) -> usize {
        let calls = self.world.calls.lock().unwrap();
        calls.iter().filter(|line| line.split(' ').next() == Some(call)).count()
    }

    /// Waits until something was asked for.
    pub async fn called(&self, call: &str) {
        let poll = async {
            while self.calls(call) == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(super::PATIENCE, poll)
            .await
            .unwrap_or_else(|_| panic!("{call} was never asked for"));
    }

    /// The host changes a capsule by itself.
    pub fn change(&self, id: &str, phase: CapsulePhase, reason: &str) {
        self.world.change(id, phase, reason).unwrap();
    }

    /// A report arrives late: what was true `ago` changes before.
    pub fn repeat(&self, id: &str, phase: CapsulePhase, ago: u64) {
        let mut capsule = found(&self.world, id).unwrap();
        capsule.phase = phase.into();
        capsule.generation -= ago;
        let _ = self.world.changes.send(capsule);
    }

    /// A capsule is in a phase, and nobody hears of it.
    pub fn set_silently(&self, id: &str, phase: CapsulePhase) {
        self.world.capsules.lock().unwrap().get_mut(id).unwrap().phase = phase.into();
    }

    /// The VM dies by itself.
    pub fn lose(&self, id: &str, reason: &str) {
        let mut capsule = self.world.capsules.lock().unwrap().remove(id).unwrap();
        capsule.phase = CapsulePhase::CAPSULE_PHASE_STOPPED.into();
        capsule.generation += 1;
        reason.clone_into(&mut capsule.reason);
        let _ = self.world.changes.send(capsule);
    }

    pub fn has(&self, id: &str) -> bool {
        self.world.capsules.lock().unwrap().contains_key(id)
    }

    pub fn destroys(&self) -> Vec<String> {
        self.world.destroys.lock().unwrap().clone()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn tls(credentials: &Value) -> Arc<rustls::ServerConfig> {
    let pem = |name: &str| credentials[name].as_str().unwrap().as_bytes().to_vec();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem("ca_cert_pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(&pem("cert_pem")).unwrap()],
            PrivateKeyDer::from_pem_slice(&pem("key_pem")).unwrap(),
        )
        .unwrap();
    Arc::new(config)
}

async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, world: Arc<World>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let rpc = connectrpc::Router::new().add_service(Arc::new(Agent(world.clone()))).into_axum_service();
    let router = axum::Router::new()
        .route("/guest/{id}/{*path}", axum::routing::any(tunnel))
        .with_state(world)
        .fallback_service(rpc);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, router) = (acceptor.clone(), router.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper_util::service::TowerToHyperService::new(router);
            let io = hyper_util::rt::TokioIo::new(stream);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        });
    }
}

async fn tunnel(
    State(world): State<Arc<World>>,
    Path((id, _)): Path<(String, String)>,
    mut request: Request,
) -> Response {
    let phase = world.capsules.lock().unwrap().get(&id).and_then(|capsule| capsule.phase.as_known());
    let unreached = match phase {
        Some(CapsulePhase::CAPSULE_PHASE_RUNNING) => None,
        Some(_) => Some(TunnelError::NotRunning),
        None => Some(TunnelError::UnknownCapsule),
    };
    if let Some(error) = unreached {
        return (error.status(), [(ERROR_HEADER, error.as_str())]).into_response();
    }
    let target = request.uri().path_and_query().unwrap().as_str();
    let (_, path) = wrenn_protocol::tunnel::split(target).unwrap();
    *request.uri_mut() = path.parse().unwrap();
    world.guest.router().oneshot(request).await.unwrap()
}

struct Agent(Arc<World>);

pub(super) fn found(world: &World, id: &str) -> Result<Capsule, ConnectError> {
    world.capsules.lock().unwrap().get(id).cloned().ok_or_else(|| ConnectError::not_found("no such capsule"))
}

impl AgentService for Agent {
    async fn get_host(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, GetHostRequest>,
    ) -> ServiceResult<GetHostResponse> {
        connectrpc::Response::ok(GetHostResponse { arch: "x86_64".into(), ..Default::default() })
    }

    async fn create_capsule(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, CreateCapsuleRequest>,
    ) -> ServiceResult<CreateCapsuleResponse> {
        let request = request.to_owned_message();
        let id = request.id.clone();
        self.0.creates.lock().unwrap().push(request);
        let mut capsule = Capsule {
            id: id.clone(),
            phase: CapsulePhase::CAPSULE_PHASE_STARTING.into(),
            generation: 1,
            last_active: 1_700_000_000,
            disk_used_mb: 77,
            versions: Versions { kernel: "6.1".into(), vmm: "qemu".into(), ..Default::default() }.into(),
            ..Default::default()
        };
        self.0.capsules.lock().unwrap().insert(id.clone(), capsule.clone());
        let mut boot = self.0.boot.subscribe();
        let mode = *boot.wait_for(|mode| *mode != Boot::Hangs).await.unwrap();
        if !self.0.capsules.lock().unwrap().contains_key(&id) {
            return Err(ConnectError::aborted("the capsule was destroyed while it started"));
        }
        if mode == Boot::Fails {
            self.0.capsules.lock().unwrap().remove(&id);
            return Err(ConnectError::internal("the VM did not boot"));
        }
        capsule.phase = CapsulePhase::CAPSULE_PHASE_RUNNING.into();
        capsule.generation = 2;
        self.0.capsules.lock().unwrap().insert(id, capsule.clone());
        let _ = self.0.changes.send(capsule.clone());
        connectrpc::Response::ok(CreateCapsuleResponse { capsule: capsule.into(), ..Default::default() })
    }

    async fn destroy_capsule(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, DestroyCapsuleRequest>,
    ) -> ServiceResult<DestroyCapsuleResponse> {
        let id = request.to_owned_message().id;
        self.0.capsules.lock().unwrap().remove(&id);
        self.0.destroys.lock().unwrap().push(id);
        // What hangs looks whether its capsule is there.
        self.0.act.send_modify(|_| {});
        // A create that hangs wakes up and finds its capsule gone.
        self.0.boot.send_modify(|mode| {
            if *mode == Boot::Hangs {
                *mode = Boot::Works;
            }
        });
        connectrpc::Response::ok(DestroyCapsuleResponse::default())
    }

    async fn get_capsule(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, GetCapsuleRequest>,
    ) -> ServiceResult<GetCapsuleResponse> {
        let capsule = found(&self.0, &request.to_owned_message().id)?;
        connectrpc::Response::ok(GetCapsuleResponse { capsule: capsule.into(), ..Default::default() })
    }

    async fn pause_capsule(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, PauseCapsuleRequest>,
    ) -> ServiceResult<PauseCapsuleResponse> {
        let id = request.to_owned_message().id;
        let phases = [
            CapsulePhase::CAPSULE_PHASE_RUNNING,
            CapsulePhase::CAPSULE_PHASE_PAUSING,
            CapsulePhase::CAPSULE_PHASE_PAUSED,
        ];
        let capsule = self.0.turn(&id, phases, "pause").await?;
        connectrpc::Response::ok(PauseCapsuleResponse { capsule: capsule.into(), ..Default::default() })
    }

    async fn resume_capsule(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, ResumeCapsuleRequest>,
    ) -> ServiceResult<ResumeCapsuleResponse> {
        let id = request.to_owned_message().id;
        let phases = [
            CapsulePhase::CAPSULE_PHASE_PAUSED,
            CapsulePhase::CAPSULE_PHASE_RESUMING,
            CapsulePhase::CAPSULE_PHASE_RUNNING,
        ];
        let capsule = self.0.turn(&id, phases, "resume").await?;
        connectrpc::Response::ok(ResumeCapsuleResponse { capsule: capsule.into(), ..Default::default() })
    }

    async fn create_snapshot(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, CreateSnapshotRequest>,
    ) -> ServiceResult<CreateSnapshotResponse> {
        connectrpc::Response::ok(self.0.snapshot(request.to_owned_message()).await?)
    }

    async fn delete_template(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, DeleteTemplateRequest>,
    ) -> ServiceResult<DeleteTemplateResponse> {
        self.0.delete_template(&request.to_owned_message().template_path).await?;
        connectrpc::Response::ok(DeleteTemplateResponse::default())
    }

    async fn fork_capsule(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, ForkCapsuleRequest>,
    ) -> ServiceResult<ForkCapsuleResponse> {
        connectrpc::Response::ok(self.0.fork(request.to_owned_message()).await?)
    }

    async fn ping_capsule(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, PingCapsuleRequest>,
    ) -> ServiceResult<PingCapsuleResponse> {
        found(&self.0, &request.to_owned_message().id)?;
        connectrpc::Response::ok(PingCapsuleResponse::default())
    }

    async fn watch(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, WatchRequest>,
    ) -> ServiceResult<ServiceStream<WatchResponse>> {
        let changes = BroadcastStream::new(self.0.changes.subscribe())
            .filter_map(async |change| Some(Event::Changed(Box::new(change.ok()?))));
        let beats = IntervalStream::new(tokio::time::interval(Duration::from_secs(1)))
            .map(|_| Event::Heartbeat(Box::default()));
        let capsules = self.0.capsules.lock().unwrap().values().cloned().collect();
        let all = Event::All(Box::new(watch_response::All { capsules, ..Default::default() }));
        let events = futures::stream::iter([all]).chain(futures::stream::select(changes, beats));
        connectrpc::Response::ok(Box::pin(
            events.map(|event| Ok(WatchResponse { event: Some(event), ..Default::default() })),
        ))
    }
}
