//! The task that owns one capsule, from its first file to its last.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use wrenn_net::Slot;
use wrenn_vmm::Machine;

use super::{Capsule, Inner, State, unix_now};
use crate::console;
use crate::environment::Environment;
use crate::error::CapsuleError;
use crate::record::{CapsuleSpec, Phase, Record, VERSION};
use crate::remains;
use crate::traffic::Gate;

/// How often the inactivity clock and the console's size are looked at.
const TICK: Duration = Duration::from_secs(2);
/// Longest pause between two attempts to remove what would not go.
const RETRY_CEILING: Duration = Duration::from_secs(30);

/// How an actor begins.
#[derive(Debug)]
pub(crate) enum Start {
    /// Boot a new capsule.
    Boot(CapsuleSpec),
    /// Take a running one over, by its record.
    Adopt(Box<Record>),
    /// Remove what a dead agent left of one.
    Remove(Box<Record>),
}

/// What a capsule holds on the host. The actor is its owner.
#[derive(Debug, Default)]
pub(super) struct Resources {
    pub(super) slot: Option<Slot>,
    pub(super) machine: Option<Arc<dyn Machine>>,
}

pub(super) struct Actor {
    pub(super) env: Arc<Environment>,
    pub(super) capsule: Capsule,
    pub(super) dir: PathBuf,
    pub(super) record: Record,
    pub(super) held: Resources,
    state: watch::Sender<State>,
}

/// Why a running capsule stops.
enum End {
    Asked,
    Idle,
    Died(String),
    /// The agent ends and leaves the VM to the next one.
    Detached,
}

impl Start {
    /// Starts the actor's task and returns the handle on its capsule. `done` runs when nothing of it is left, and
    /// not where the agent detached.
    pub(crate) fn spawn(self, env: Arc<Environment>, done: impl FnOnce() + Send + 'static) -> Capsule {
        let (record, plan) = match self {
            Self::Boot(spec) => (new_record(spec), Plan::Boot),
            Self::Adopt(record) => (*record, Plan::Adopt),
            Self::Remove(record) => (*record, Plan::Remove),
        };
        let phase = match plan {
            Plan::Boot | Plan::Adopt => Phase::Starting,
            Plan::Remove => Phase::Stopping,
        };
        let (sender, receiver) = watch::channel(State {
            phase,
            generation: record.generation,
            reason: String::new(),
            guest: record.guest.clone(),
            failure: None,
        });
        let capsule = Capsule {
            inner: Arc::new(Inner {
                spec: record.spec.clone(),
                gate: Gate::closed(),
                last_active: AtomicI64::new(record.last_active),
                endpoint: std::sync::OnceLock::new(),
                ending: CancellationToken::new(),
                state: receiver,
            }),
        };
        let dir = env.config.capsules_dir().join(record.spec.id.to_string());
        let mut actor =
            Actor { env, capsule: capsule.clone(), dir, record, held: Resources::default(), state: sender };
        tokio::spawn(async move {
            if let Some(last) = actor.run(plan).await {
                // Whoever hears that it is gone does not find it any more.
                done();
                actor.state.send_replace(last);
            }
        });
        capsule
    }
}

enum Plan {
    Boot,
    Adopt,
    Remove,
}

fn new_record(spec: CapsuleSpec) -> Record {
    Record {
        version: VERSION,
        spec,
        phase: Phase::Starting,
        generation: 1,
        slot: None,
        machine: None,
        access_token: hex::encode(rand::random::<[u8; 32]>()),
        guest: None,
        last_active: unix_now(),
    }
}

impl Actor {
    /// Runs the capsule's whole life; its last state, or `None` where it is left to the next agent.
    async fn run(&mut self, plan: Plan) -> Option<State> {
        let started = match plan {
            Plan::Boot => self.boot().await,
            Plan::Adopt => self.take_over().await,
            Plan::Remove => Err(CapsuleError::Stopping(self.capsule.id())),
        };
        let (reason, failure) = match started {
            Ok(()) => {
                // Open first: whoever hears that it runs may use it at once.
                self.capsule.inner.gate.open();
                self.enter(Phase::Running, String::new(), None);
                match self.serve().await {
                    End::Detached => return None,
                    End::Asked => (String::new(), None),
                    End::Idle => ("ttl_expired".to_owned(), None),
                    End::Died(how) => (how, None),
                }
            }
            Err(failure) => {
                if !matches!(failure, CapsuleError::Stopping(_)) {
                    warn!(capsule = %self.capsule.id(), "capsule did not start: {}", failure.chain());
                }
                (failure.chain(), Some(Arc::new(failure)))
            }
        };
        Some(self.end(reason, failure).await)
    }

    /// Publishes a phase. The record is written first, so that no report is ahead of what a crash would leave.
    fn enter(&mut self, phase: Phase, reason: String, failure: Option<Arc<CapsuleError>>) {
        self.record.phase = phase;
        self.record.generation += 1;
        self.save();
        info!(capsule = %self.capsule.id(), ?phase, reason, "capsule changed");
        let (generation, guest) = (self.record.generation, self.record.guest.clone());
        self.state.send_replace(State { phase, generation, reason, guest, failure });
    }

    /// Writes the record; a failure is logged, because the capsule is better alive without a fresh record than dead.
    pub(super) fn save(&mut self) {
        self.record.last_active = self.capsule.last_active();
        if let Err(failure) = self.record.write(&self.dir) {
            error!(capsule = %self.capsule.id(), "cannot write the capsule's record: {failure}");
        }
    }

    /// Minds a running capsule until something ends it.
    async fn serve(&mut self) -> End {
        let ending = self.capsule.inner.ending.clone();
        let detach = self.env.detach.clone();
        let Some(machine) = self.held.machine.clone() else { return End::Asked };
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                () = ending.cancelled() => return End::Asked,
                () = detach.cancelled() => {
                    self.save();
                    return End::Detached;
                }
                how = machine.exited() => {
                    let tail = console::tail(&self.dir, 5);
                    warn!(capsule = %self.capsule.id(), "the VM ended by itself ({how}); console: {tail}");
                    return End::Died(format!("vm_died: {how}"));
                }
                _ = tick.tick() => {
                    if self.is_idle() {
                        return End::Idle;
                    }
                    self.keep_house();
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        let limit = i64::from(self.record.spec.timeout_sec);
        limit > 0 && unix_now() - self.capsule.last_active() >= limit
    }

    fn keep_house(&mut self) {
        if let Err(failure) = console::trim(&self.dir) {
            warn!(capsule = %self.capsule.id(), "cannot trim the console log: {failure}");
        }
        if self.capsule.last_active() != self.record.last_active {
            self.save();
        }
    }

    /// Gives everything back.
    async fn end(&mut self, reason: String, failure: Option<Arc<CapsuleError>>) -> State {
        self.capsule.inner.gate.cut();
        if self.dir.exists() {
            self.enter(Phase::Stopping, reason.clone(), failure.clone());
        }
        let mut pause = Duration::from_millis(100);
        while let Err(failure) = self.release().await {
            error!(capsule = %self.capsule.id(), "cannot remove all of the capsule, trying again: {failure:#}");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_CEILING);
        }
        let generation = self.record.generation + 1;
        info!(capsule = %self.capsule.id(), reason, "capsule removed");
        State { phase: Phase::Stopped, generation, reason, guest: None, failure }
    }

    /// Gives back what the actor holds, then whatever else the record knows of. Each step may be repeated.
    async fn release(&mut self) -> anyhow::Result<()> {
        if let Some(machine) = &self.held.machine {
            machine.kill().await?;
            self.held.machine = None;
        }
        if let Some(slot) = self.held.slot.take() {
            slot.release().await?;
        }
        remains::remove(&*self.env.vmm, &self.env.network, &mut self.record, &self.dir).await
    }
}

impl Capsule {
    pub(super) fn ending(&self) -> &CancellationToken {
        &self.inner.ending
    }

    pub(super) fn set_endpoint(&self, endpoint: crate::endpoint::Endpoint) {
        // Set once: an actor either boots or takes over.
        let _already = self.inner.endpoint.set(endpoint);
    }

    pub(super) fn forget_idleness(&self) {
        self.inner.last_active.store(unix_now(), Ordering::Relaxed);
    }
}
