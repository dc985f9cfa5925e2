//! Hosts: how machines register, and the link that is held to each.
//!
//! A supervisor looks every few seconds which hosts are to be watched and holds one task for each. The task keeps a
//! `Watch` stream open, takes its reports over into the store, and reconnects when the stream ends or is silent. Several
//! replicas may watch the same host: every write they make is idempotent.

mod link;
mod reconcile;
mod register;
mod transport;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;
use wrenn_core::HostId;

use crate::pki::{Pki, PkiError};
use crate::state::App;
use crate::store::{Store, StoreError};

pub(crate) use register::{Credentials, HostTokens, RegisterError, refresh, register};
pub use register::{RegistrationToken, ensure_local_host};
pub(crate) use transport::{HostError, HostTransport, host_error};

/// How often the supervisor looks for new hosts, unless it is told of one.
const SUPERVISE_EVERY: Duration = Duration::from_secs(3);
/// Silence in seconds after which a host is unreachable.
const HOST_SILENCE_SEC: f64 = 90.0;

struct Link {
    address: String,
    transport: HostTransport,
    stop: CancellationToken,
}

/// The links to all hosts.
pub(crate) struct Hosts {
    tls: Arc<rustls::ClientConfig>,
    links: RwLock<HashMap<HostId, Link>>,
    /// Held while the links are brought in line: what was read earlier must not undo what was read later.
    realigning: Mutex<()>,
    changed: Notify,
}

impl Hosts {
    pub(crate) fn new(pki: &Arc<Pki>) -> Result<Self, PkiError> {
        Ok(Self {
            tls: transport::tls_config(pki)?,
            links: RwLock::default(),
            realigning: Mutex::new(()),
            changed: Notify::new(),
        })
    }

    /// Tells the supervisor to look at once.
    pub(crate) fn nudge(&self) {
        self.changed.notify_one();
    }

    /// The way to a host; `None` where it has no address yet.
    pub(crate) async fn transport(
        &self,
        store: &Store,
        host: HostId,
    ) -> Result<Option<HostTransport>, StoreError> {
        if let Some(link) = self.links.read().unwrap_or_else(PoisonError::into_inner).get(&host) {
            return Ok(Some(link.transport.clone()));
        }
        let address = store.host(host).await?.and_then(|row| row.address);
        Ok(address.map(|address| HostTransport::new(host, &address, &self.tls)))
    }

    /// Brings the links in line with the store. Once it returns, this process sends no new request to an address that a
    /// host gave up before the call; other replicas follow within [`SUPERVISE_EVERY`].
    async fn realign(&self, app: &App) -> Result<(), StoreError> {
        let _alone = self.realigning.lock().await;
        self.align(app, app.store.hosts_to_watch().await?);
        Ok(())
    }

    /// Brings the links in line with the hosts that are to be watched.
    fn align(&self, app: &App, wanted: Vec<(HostId, String)>) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        links.retain(|host, link| {
            let keep = wanted.iter().any(|(id, address)| id == host && *address == link.address);
            if !keep {
                link.stop.cancel();
            }
            keep
        });
        for (host, address) in wanted {
            links.entry(host).or_insert_with(|| self.connect(app, host, address));
        }
    }

    fn connect(&self, app: &App, host: HostId, address: String) -> Link {
        let transport = HostTransport::new(host, &address, &self.tls);
        let stop = app.shutdown.child_token();
        let watching = link::watch(app.clone(), host, transport.clone());
        let until = stop.clone();
        app.tasks.spawn(async move { until.run_until_cancelled(watching).await });
        Link { address, transport, stop }
    }
}

/// Keeps the links in line with the store until shutdown, and finds hosts that have fallen silent.
pub(crate) async fn supervise(app: App) {
    loop {
        if let Err(error) = look(&app).await {
            tracing::warn!(error = %error, "cannot look after hosts");
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = app.hosts.changed.notified() => {}
            () = tokio::time::sleep(SUPERVISE_EVERY) => {}
        }
    }
}

async fn look(app: &App) -> Result<(), StoreError> {
    app.hosts.realign(app).await?;
    for host in app.store.sweep_silent_hosts(HOST_SILENCE_SEC).await? {
        tracing::warn!(host.id = %host, "host {host} has been silent for 90 s and is unreachable");
    }
    Ok(())
}
