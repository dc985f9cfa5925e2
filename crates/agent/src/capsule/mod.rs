//! A capsule on its host: a handle that anybody may hold, and the actor that owns it.
//!
//! One task, the [actor], owns a capsule's resources and is the only one to change its phase, so that boot, destroy,
//! the inactivity clock and the VM's own death can never race:
//!
//! ```text
//! starting ──► running ── pause, clock ──► pausing ──► paused
//!                 ▲  ▲                       │          │  ▲
//!                 │  └──────── failed ───────┘          │  │ failed
//!                 └────────────── resuming ◄── resume ──┘──┘
//!
//! any ── destroy, failure to start, VM died ──► stopping ──► stopped
//! ```
//!
//! Calls that change a capsule are commands to its actor, which does one at a time and answers each; a destroy does not
//! queue but is seen wherever something is waited for.
//!
//! Traffic does not pass through it; each request holds a [lease](crate::traffic::Lease).

mod actor;
mod boot;
mod house;
mod parked;
mod pause;
mod resources;
mod restore;
mod snapshot;
mod steps;
mod tidy;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use wrenn_core::CapsuleId;
use wrenn_protocol::guest::InitResponse;

use crate::endpoint::Endpoint;
use crate::error::CapsuleError;
use crate::record::{CapsuleSpec, Defaults, Phase};
use crate::saved::Saved;
use crate::traffic::Gate;

pub(crate) use actor::Start;
pub(crate) use resources::Resources;
pub(crate) use restore::identity_request;
pub(crate) use snapshot::SnapshotPlan;

/// How a call to an actor ends.
pub(crate) type Answer<T> = Result<T, Arc<CapsuleError>>;

/// What an actor can be asked for.
#[derive(Debug)]
pub(crate) enum Command {
    Pause(oneshot::Sender<Answer<State>>),
    Resume(oneshot::Sender<Answer<State>>),
    Snapshot(SnapshotPlan, oneshot::Sender<Answer<Snapshot>>),
}

/// A snapshot that is being made; the sender is dropped where that fails.
pub(crate) type Coming = watch::Receiver<Option<Arc<Snapshot>>>;

/// A snapshot of a capsule in a directory of its own.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The directory.
    pub dir: PathBuf,
    /// What lies in it.
    pub saved: Saved,
    /// What the processes in it get where nobody says otherwise.
    pub defaults: Defaults,
}

/// What a capsule is doing now, as its actor publishes it.
#[derive(Debug, Clone)]
pub struct State {
    /// Where in its life it is.
    pub phase: Phase,
    /// Counts phases, so that a late report can be told from a newer one.
    pub generation: u64,
    /// Why it came to be in this phase by itself; empty otherwise.
    pub reason: String,
    /// What the guest told of itself.
    pub guest: Option<InitResponse>,
    /// Its VMM and the version of that.
    pub vmm: String,
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
    endpoint: RwLock<Option<Endpoint>>,
    ending: CancellationToken,
    state: watch::Receiver<State>,
    commands: mpsc::Sender<Command>,
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

    /// Its daemon, while it runs.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.inner.endpoint.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resets the inactivity clock.
    pub fn touch(&self) {
        self.inner.last_active.store(unix_now(), Ordering::Relaxed);
    }

    /// Unix seconds of the last activity.
    pub fn last_active(&self) -> i64 {
        self.inner.last_active.load(Ordering::Relaxed)
    }

    /// Resolves when the capsule has come to run (or is paused, as it was), or when nothing of it is left because that
    /// failed.
    ///
    /// # Errors
    /// Why the boot failed; [`CapsuleError::Stopping`] where the capsule was destroyed meanwhile.
    pub async fn booted(&self) -> Result<State, Arc<CapsuleError>> {
        let mut watch = self.watch();
        let settled = |state: &State| !matches!(state.phase, Phase::Starting | Phase::Stopping);
        let state = watch.wait_for(settled).await.map(|state| state.clone());
        match state {
            Ok(State { failure: Some(failure), .. }) => Err(failure),
            Ok(state) if state.phase != Phase::Stopped => Ok(state),
            _ => Err(Arc::new(CapsuleError::Stopping(self.id()))),
        }
    }

    /// Writes it to disk with its memory and ends its VM. One that is paused stays so.
    ///
    /// # Errors
    /// Why it runs on; [`CapsuleError::Phase`] or [`CapsuleError::Stopping`] where it cannot be paused.
    pub async fn pause(&self) -> Result<State, Arc<CapsuleError>> {
        self.ask(Command::Pause).await
    }

    /// Brings it back from disk. One that runs goes on.
    ///
    /// # Errors
    /// Why it stays paused; [`CapsuleError::Stopping`] where it is being destroyed.
    pub async fn resume(&self) -> Result<State, Arc<CapsuleError>> {
        self.ask(Command::Resume).await
    }

    /// Writes a snapshot of it, running or paused, into an empty directory.
    ///
    /// # Errors
    /// Why there is none; what was written into the directory is the caller's to remove.
    pub(crate) async fn snapshot(&self, plan: SnapshotPlan) -> Result<Snapshot, Arc<CapsuleError>> {
        self.ask(|reply| Command::Snapshot(plan, reply)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Answer<T>>) -> Command) -> Answer<T> {
        let gone = || Arc::new(CapsuleError::Stopping(self.id()));
        let (reply, answer) = oneshot::channel();
        self.inner.commands.send(command(reply)).await.map_err(|_| gone())?;
        // Dropped unanswered where the actor ends.
        answer.await.unwrap_or_else(|_| Err(gone()))
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
