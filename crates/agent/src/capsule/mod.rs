//! A capsule on its host: a handle that anybody may hold, and the actor that owns it.
//!
//! One task, the [actor], owns a capsule's resources and is the only one to change its phase, so that boot, destroy,
//! the inactivity clock and the VM's own death can never race:
//!
//! ```text
//! starting ── guest answers ──► running ── destroy, clock, VM died ──► stopping ──► stopped
//!     └────── failure, destroy ───────────────────────────────────────────┘
//! ```
//!
//! Traffic does not pass through it; each request holds a [lease](crate::traffic::Lease).

mod actor;
mod boot;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wrenn_core::CapsuleId;
use wrenn_protocol::guest::InitResponse;

use crate::endpoint::Endpoint;
use crate::error::CapsuleError;
use crate::record::{CapsuleSpec, Phase};
use crate::traffic::Gate;

pub(crate) use actor::Start;
pub(crate) use boot::DISK_FILE;

/// What a capsule is doing now, as its actor publishes it.
#[derive(Debug, Clone)]
pub struct State {
    /// Where in its life it is.
    pub phase: Phase,
    /// Counts phases, so that a late report can be told from a newer one.
    pub generation: u64,
    /// Why it stopped by itself; empty otherwise.
    pub reason: String,
    /// What the guest told of itself.
    pub guest: Option<InitResponse>,
    /// Why it never came to run.
    pub failure: Option<Arc<CapsuleError>>,
}

/// A handle on one capsule.
#[derive(Debug, Clone)]
pub struct Capsule {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    spec: CapsuleSpec,
    gate: Gate,
    last_active: AtomicI64,
    endpoint: std::sync::OnceLock<Endpoint>,
    ending: CancellationToken,
    state: watch::Receiver<State>,
}

impl Capsule {
    /// Its id.
    pub fn id(&self) -> CapsuleId {
        self.inner.spec.id
    }

    /// What it was asked to be.
    pub fn spec(&self) -> &CapsuleSpec {
        &self.inner.spec
    }

    /// What it is doing now.
    pub fn state(&self) -> State {
        self.inner.state.borrow().clone()
    }

    /// A receiver that sees each change.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.inner.state.clone()
    }

    /// The gate that its traffic passes.
    pub fn gate(&self) -> &Gate {
        &self.inner.gate
    }

    /// Its daemon, once it runs.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.inner.endpoint.get()
    }

    /// Resets the inactivity clock.
    pub fn touch(&self) {
        self.inner.last_active.store(unix_now(), Ordering::Relaxed);
    }

    /// Unix seconds of the last activity.
    pub fn last_active(&self) -> i64 {
        self.inner.last_active.load(Ordering::Relaxed)
    }

    /// Resolves when the capsule runs, or when nothing of it is left because its boot failed.
    ///
    /// # Errors
    /// Why the boot failed; [`CapsuleError::Stopping`] where the capsule was destroyed meanwhile.
    pub async fn booted(&self) -> Result<State, Arc<CapsuleError>> {
        let mut watch = self.watch();
        let settled = |state: &State| matches!(state.phase, Phase::Running | Phase::Stopped);
        let state = watch.wait_for(settled).await.map(|state| state.clone());
        match state {
            Ok(state) if state.phase == Phase::Running => Ok(state),
            Ok(State { failure: Some(failure), .. }) => Err(failure),
            _ => Err(Arc::new(CapsuleError::Stopping(self.id()))),
        }
    }

    /// Removes it, cancelling a boot under way, and resolves when nothing of it is left. Any number may ask.
    pub async fn destroy(&self) {
        self.inner.ending.cancel();
        self.stopped().await;
    }

    /// Resolves when nothing of it is left.
    pub async fn stopped(&self) {
        let mut watch = self.watch();
        // An error means that the actor is gone, and with it the capsule.
        let _gone = watch.wait_for(|state| state.phase == Phase::Stopped).await;
    }
}

/// The time now in Unix seconds.
pub(crate) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
