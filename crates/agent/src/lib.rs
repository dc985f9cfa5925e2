//! The host agent: it owns the VMs, the disks and the network slots of one machine, and does what the control plane
//! asks over mutual TLS.
//!
//! Its truth is its data directory. An agent that is killed leaves its VMs running; the next one finds them by
//! their records, takes them over, and removes what cannot be taken over.

pub mod capsule;
pub mod config;
pub mod console;
pub mod credentials;
mod datagram;
pub mod drivers;
pub mod endpoint;
pub mod environment;
pub mod error;
pub mod fault;
mod files;
mod gathered;
pub mod host;
pub mod images;
pub mod manager;
mod mapper;
pub mod record;
pub mod recovery;
pub mod remains;
mod retry;
mod rpc;
pub mod saved;
mod server;
pub mod staging;
pub mod templates;
pub mod traffic;
mod tunnel;
pub mod warm;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{info, warn};

pub use config::AgentConfig;
pub use credentials::Credentials;

use crate::credentials::Registrar;
use crate::drivers::Drivers;
use crate::environment::Environment;
use crate::manager::Manager;
use crate::staging::Staging;
use crate::templates::Templates;
use crate::warm::Warm;

/// How long boots under way get to be undone, and pauses and resumes to be finished, when the agent ends.
const UNDO_LIMIT: Duration = Duration::from_secs(20);
/// How long a host without capsules prepares for its first one before it takes any.
const FILL_LIMIT: Duration = Duration::from_secs(30);
/// How often the agent looks whether the host's firewall table is still there.
const TABLE_CHECK: Duration = Duration::from_secs(15);
/// Pause after a failed renewal of the host's certificate.
const RENEWAL_RETRY: Duration = Duration::from_secs(60);

/// Runs the agent until `shutdown`. Capsules that run are left running for the next agent.
///
/// # Errors
/// Where the host lacks something essential, or the control plane refuses it.
pub async fn serve(config: AgentConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    let _only = only_agent(&config)?;
    let manager = Manager::new(Arc::new(open(config).await?));
    let config = manager.env().config.clone();
    let recovered = recovery::recover(&manager).await?;
    let recovery::Recovered { adopted, paused, removed } = recovered;
    info!(adopted, paused, removed, "capsules of the agent before");
    prune_images(manager.env()).await;
    warm::begin(manager.env()).await;
    if adopted + paused == 0 {
        // Nobody waits for this host yet, so it may as well be at its best from the first capsule on.
        warm::filled(manager.env(), FILL_LIMIT).await;
    }
    let guard = AbortOnDropHandle::new(tokio::spawn(keep_host_table(Arc::clone(manager.env()))));
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}; is another agent running?", config.listen))?;
    let registrar = Registrar::new(&config)?;
    let credentials = tokio::select! {
        credentials = registrar.obtain(config.registration_token.as_deref()) => credentials?,
        () = shutdown.cancelled() => return close(manager, guard).await,
    };
    let tls = Arc::new(ArcSwap::from_pointee(server::tls_config(&credentials)?));
    info!(host = %credentials.host_id, listen = %config.listen, "agent ready");
    let renewal = tokio::spawn(keep_renewed(registrar, credentials, Arc::clone(&tls)));
    server::serve(listener, tls, manager.clone(), shutdown).await;
    renewal.abort();
    close(manager, guard).await
}

/// Keeps other agents away from the data directory for as long as the file is open: two would take each other's VMs for
/// left-overs.
fn only_agent(config: &AgentConfig) -> anyhow::Result<std::fs::File> {
    let path = config.dir.join("agent.lock");
    std::fs::create_dir_all(&config.dir).context("cannot make the data directory")?;
    let file = std::fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| anyhow::anyhow!("another agent serves {}: stop it first", config.dir.display()))?;
    Ok(file)
}

/// Removes images that nothing needs now that the capsules are known; a failure costs space and nothing else.
async fn prune_images(env: &Environment) {
    let (dir, kernel) = (env.config.dir.clone(), env.kernel.clone());
    match blocking(move || images::prune(&dir, &kernel)).await {
        Ok(removed) => removed.iter().for_each(|path| info!("removed the unused image {}", path.display())),
        Err(error) => warn!("old images stay until the next start: {:#}", anyhow::Error::from(error)),
    }
}

/// Keeps capsules confined and connected when somebody flushes the host's firewall, until the agent ends.
async fn keep_host_table(env: Arc<Environment>) {
    env.network.keep_host_table(TABLE_CHECK, env.detach.cancelled()).await;
}

/// Opens the host's parts, without taking over or serving anything yet.
///
/// # Errors
/// Where the host lacks something essential.
pub async fn open(config: AgentConfig) -> anyhow::Result<Environment> {
    let images = images::ensure_quietly(&config).await.context("cannot make the base images")?;
    let Parts { network, drivers, cgroup } = Parts::open(&config).await?;
    Ok(Environment {
        network,
        drivers,
        templates: Templates::new(config.templates_dir()),
        staging: Staging::open(config.dir.join("staging")).context("cannot use the staging directory")?,
        cgroup,
        kernel: images.kernel,
        warm: Arc::new(Warm::new(config.warm_mb, config.pool_size)),
        tasks: TaskTracker::new(),
        detach: CancellationToken::new(),
        config,
    })
}

/// What it takes to remove a capsule.
pub(crate) struct Parts {
    pub(crate) network: wrenn_net::Network,
    pub(crate) drivers: Drivers,
    pub(crate) cgroup: Option<PathBuf>,
}

impl Parts {
    pub(crate) async fn open(config: &AgentConfig) -> anyhow::Result<Self> {
        let installation = installation_id(config).context("cannot write the data directory")?;
        let mut network = wrenn_net::NetworkConfig::new(&*installation, &*config.dir);
        network.allow_private = config.allow_private_networks;
        Ok(Self {
            network: wrenn_net::Network::open(network).await?,
            drivers: Drivers::open(config, &installation).await?,
            // One directory for each installation, so that a sweep meets only its own VMMs.
            cgroup: wrenn_vmm::cgroup::root().map(|root| root.join(format!("wrenn-{installation}"))),
        })
    }
}

/// The name under which this data directory owns things on the machine; made at the first start.
fn installation_id(config: &AgentConfig) -> std::io::Result<String> {
    let path = config.dir.join("installation-id");
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        Ok(_) | Err(_) => {
            let id = uuid::Uuid::new_v4().to_string();
            record::write_atomically(&path, id.as_bytes(), 0o644)?;
            Ok(id)
        }
    }
}

/// Runs what blocks on a thread made for it.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<std::io::Error> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => Err(std::io::Error::other(panicked).into()),
    }
}

/// Leaves running and paused capsules to the next agent, and waits until what is under way is undone or done.
async fn close(manager: Manager, guard: AbortOnDropHandle<()>) -> anyhow::Result<()> {
    let env = Arc::clone(manager.env());
    env.detach.cancel();
    // Before the network is closed, whose table it would put back.
    guard.await?;
    env.tasks.close();
    if tokio::time::timeout(UNDO_LIMIT, env.tasks.wait()).await.is_err() {
        warn!("some capsules were not settled in time; the next start settles them");
    }
    env.network.close().await?;
    if let Some(cgroup) = &env.cgroup {
        // Not empty while VMs run on.
        let _busy = std::fs::remove_dir(cgroup);
    }
    Ok(())
}

/// Renews the host's certificate at half of its life, for as long as the agent runs.
async fn keep_renewed(registrar: Registrar, mut credentials: Credentials, tls: server::SharedTls) {
    loop {
        match credentials.renew_in() {
            Ok(pause) => tokio::time::sleep(pause).await,
            Err(error) => warn!("{error}"),
        }
        let renewed =
            registrar.renew(&credentials).await.and_then(|new| Ok((server::tls_config(&new)?, new)));
        match renewed {
            Ok((config, new)) => {
                tls.store(Arc::new(config));
                credentials = new;
                info!("host certificate renewed");
            }
            Err(error) => {
                warn!("cannot renew the host certificate, trying again: {error}");
                tokio::time::sleep(RENEWAL_RETRY).await;
            }
        }
    }
}
