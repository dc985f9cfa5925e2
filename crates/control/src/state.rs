//! What the handlers share.

use std::fmt;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{KeyCache, Limits, Passwords, Signer, UserTokens};
use crate::config::ControlConfig;
use crate::hosts::{HostTokens, Hosts};
use crate::pki::Pki;
use crate::post::Post;
use crate::store::Store;
use crate::vault::Vault;

/// The running control plane.
pub struct Control {
    pub(crate) config: ControlConfig,
    pub(crate) store: Store,
    pub(crate) keys: KeyCache,
    pub(crate) tokens: UserTokens,
    pub(crate) signer: Signer,
    pub(crate) passwords: Passwords,
    pub(crate) limits: Limits,
    pub(crate) vault: Vault,
    pub(crate) post: Post,
    pub(crate) hosts: Hosts,
    pub(crate) host_tokens: HostTokens,
    pub(crate) pki: Arc<Pki>,
    /// Work that outlives the request that began it: creates, destroys, sockets.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the server is to end.
    pub(crate) shutdown: CancellationToken,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("listen", &self.config.listen).finish_non_exhaustive()
    }
}

/// The state of every handler, this server's and those that are added to it.
pub type App = Arc<Control>;

impl Control {
    /// The configuration in force.
    pub fn config(&self) -> &ControlConfig {
        &self.config
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Cancelled when the server is to end.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }
}
