//! What the handlers share.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::KeyCache;
use crate::config::ControlConfig;
use crate::hosts::{HostTokens, Hosts};
use crate::pki::Pki;
use crate::store::Store;

/// The running control plane.
pub(crate) struct Control {
    pub(crate) config: ControlConfig,
    pub(crate) store: Store,
    pub(crate) keys: KeyCache,
    pub(crate) hosts: Hosts,
    pub(crate) host_tokens: HostTokens,
    pub(crate) pki: Arc<Pki>,
    /// Work that outlives the request that began it: creates, destroys, sockets.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the server is to end.
    pub(crate) shutdown: CancellationToken,
}

/// The state of every handler.
pub(crate) type App = Arc<Control>;
