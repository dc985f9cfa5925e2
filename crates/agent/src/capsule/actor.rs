//! The task that owns one capsule, from its first file to its last.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use wrenn_vmm::FileKey;

use super::house::House;
use super::parked::Claimed;
use super::resources::Resources;
use super::snapshot::SnapshotPlan;
use super::tidy::Tidy;
use super::{Answer, Capsule, Coming, Command, Inner, State, unix_now};
use crate::console;
use crate::endpoint::Endpoint;
use crate::environment::Environment;
use crate::error::CapsuleError;
use crate::fault;
use crate::record::{CapsuleSpec, Defaults, Phase, Record, VERSION};
use crate::retry::Retry;
use crate::saved::Saved;
use crate::traffic::Gate;
use crate::warm::Warmed;

/// How often the inactivity clock and the console's size are looked at.
const TICK: Duration = Duration::from_secs(2);
/// A paused capsule is left alone for this long before its files are tidied: it may be resumed at once.
const TIDY_DELAY: Duration = Duration::from_secs(2);
/// A VMM that a call has lost may take so long to be gone.
const ENDING: Duration = Duration::from_secs(1);
/// Layers of a disk at which a resume waits for the tidying that it would otherwise have cut short once more.
const DEEPEST_DISK: usize = 3 * wrenn_disk::MAX_DEPTH;
/// Commands that wait for their turn.
const COMMANDS: usize = 16;

/// How an actor begins.
#[derive(Debug)]
pub(crate) enum Start {
    /// Make a new capsule from its template.
    Create(CapsuleSpec),
    /// Make a new capsule a copy of a snapshot that is being made.
    Copy(CapsuleSpec, Coming),
    /// Take a running one over, by its record.
    Adopt(Box<Record>),
    /// Mind one that is on disk, whatever a dead agent left beside that.
    Paused(Box<Record>),
    /// Remove what a dead agent left of one.
    Remove(Box<Record>),
}

pub(crate) struct Actor {
    pub(super) env: Arc<Environment>,
    pub(super) capsule: Capsule,
    pub(super) dir: PathBuf,
    pub(super) record: Record,
    pub(super) held: Resources,
    pub(super) house: House,
    commands: mpsc::Receiver<Command>,
    state: watch::Sender<State>,
}

/// What an actor does next.
pub(super) enum Step {
    /// Mind a running capsule.
    Serve,
    /// Mind a paused one.
    Rest,
    /// Give everything back.
    End(String, Option<Arc<CapsuleError>>),
    /// Leave everything to the next agent.
    Detach,
}

impl Start {
    /// Starts the actor's task and returns the handle on its capsule. `done` runs when nothing of it is left, and
    /// not where the agent detached.
    pub(crate) fn spawn(self, env: Arc<Environment>, done: impl FnOnce() + Send + 'static) -> Capsule {
        let (record, plan) = match self {
            Self::Create(spec) => (new_record(&env, spec), Plan::Create),
            Self::Copy(spec, source) => (new_record(&env, spec), Plan::Copy(source)),
            Self::Adopt(record) => (*record, Plan::Adopt),
            Self::Paused(record) => (*record, Plan::Paused),
            Self::Remove(record) => (*record, Plan::Remove),
        };
        Self::spawn_with(record, plan, env, done)
    }

    pub(super) fn spawn_with(
        record: Record,
        plan: Plan,
        env: Arc<Environment>,
        done: impl FnOnce() + Send + 'static,
    ) -> Capsule {
        let mut record = record;
        if matches!(plan, Plan::Adopt | Plan::Paused) {
            // Reports that a full disk kept out of the record have been heard all the same, and must stay older.
            record.generation = record.generation.max(unix_millis());
        }
        let phase = if matches!(plan, Plan::Remove) { Phase::Stopping } else { Phase::Starting };
        let (sender, receiver) = watch::channel(State {
            phase,
            generation: record.generation,
            reason: String::new(),
            guest: record.guest.clone(),
            vmm: vmm_version(&env, &record),
            failure: None,
        });
        let (orders, commands) = mpsc::channel(COMMANDS);
        let capsule = Capsule {
            inner: Arc::new(Inner {
                spec: record.spec.clone(),
                gate: Gate::closed(),
                last_active: AtomicI64::new(record.last_active),
                endpoint: RwLock::new(None),
                ending: CancellationToken::new(),
                state: receiver,
                commands: orders,
            }),
        };
        let dir = env.config.capsules_dir().join(record.spec.id.to_string());
        let held = Resources::default();
        let house = House::default();
        let mut actor =
            Actor { env, capsule: capsule.clone(), dir, record, held, house, commands, state: sender };
        let tasks = actor.env.tasks.clone();
        tasks.spawn(async move {
            if let Some(last) = actor.run(plan).await {
                // Whoever hears that it is gone does not find it any more.
                done();
                actor.state.send_replace(last);
            }
        });
        capsule
    }
}

pub(super) enum Plan {
    Create,
    Copy(Coming),
    Adopt,
    Paused,
    Remove,
    Seed(SnapshotPlan, oneshot::Sender<Answer<Saved>>),
    Spare(Warmed, oneshot::Sender<Answer<()>>, Claimed),
    Blank(Warmed, oneshot::Sender<Answer<FileKey>>, Claimed),
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn new_record(env: &Environment, spec: CapsuleSpec) -> Record {
    Record {
        version: VERSION,
        spec,
        phase: Phase::Starting,
        generation: 1,
        driver: env.drivers.default().name.to_owned(),
        slot: None,
        machine: None,
        access_token: hex::encode(rand::random::<[u8; 32]>()),
        guest: None,
        last_active: unix_now(),
        defaults: Defaults::default(),
        disk: None,
        saved: None,
    }
}

/// What the VMM of a record's machine calls itself.
fn vmm_version(env: &Environment, record: &Record) -> String {
    let driver = env.drivers.get(&record.driver);
    driver.map_or_else(|_missing| record.driver.clone(), |driver| driver.to_string())
}

impl Actor {
    /// Runs the capsule's whole life; its last state, or `None` where it is left to the next agent.
    async fn run(&mut self, plan: Plan) -> Option<State> {
        let mut step = self.start(plan).await;
        loop {
            step = match step {
                Step::Serve => self.serve().await,
                Step::Rest => self.rest().await,
                Step::End(reason, failure) => return Some(self.end(reason, failure).await),
                Step::Detach => return None,
            };
        }
    }

    async fn start(&mut self, plan: Plan) -> Step {
        let started = match plan {
            Plan::Create => self.begin().await,
            Plan::Copy(source) => self.begin_as_copy(source).await,
            Plan::Adopt => return self.adopt().await,
            Plan::Paused => {
                self.settle_paused().await;
                return Step::Rest;
            }
            Plan::Remove => Err(CapsuleError::Stopping(self.capsule.id())),
            Plan::Seed(plan, reply) => return self.be_seed(&plan, reply).await,
            Plan::Spare(from, reply, claimed) => return self.be_spare(&from, reply, claimed).await,
            Plan::Blank(from, reply, claimed) => return self.be_blank(&from, reply, claimed).await,
        };
        match started.and_then(|()| self.commit_running()) {
            Ok(()) => {
                self.open_up();
                Step::Serve
            }
            Err(failure) => self.not_started(failure),
        }
    }

    fn not_started(&self, failure: CapsuleError) -> Step {
        if !matches!(failure, CapsuleError::Stopping(_)) {
            warn!(capsule = %self.capsule.id(), "capsule did not start: {}", failure.chain());
        }
        Step::End(failure.chain(), Some(Arc::new(failure)))
    }

    /// Takes a running capsule over. Its record says already that it is to be, so it need not be written for that.
    async fn adopt(&mut self) -> Step {
        if let Err(failure) = self.take_over().await {
            let failure = self.explained(failure).await;
            return self.not_started(failure);
        }
        if let Err(failure) = self.commit_running() {
            warn!(capsule = %self.capsule.id(), "its record stays as it was: {}", failure.chain());
        }
        self.open_up();
        Step::Serve
    }

    /// A call that failed because the VMM ended says only that it was cut off; how it ended says why.
    async fn explained(&self, failure: CapsuleError) -> CapsuleError {
        let Some(machine) = &self.held.machine else { return failure };
        let how = tokio::time::timeout(ENDING, machine.exited()).await;
        how.map_or(failure, |how| CapsuleError::VmDied(how.to_string()))
    }

    /// Writes down that the capsule runs. Before this an agent that dies takes what the guest has done along, so nobody may
    /// have been let in.
    fn commit_running(&mut self) -> Result<(), CapsuleError> {
        self.record.phase = Phase::Running;
        self.record.generation += 1;
        self.record.last_active = self.capsule.last_active();
        Ok(self.record.write(&self.dir)?)
    }

    /// Lets traffic in. The gate is open first: whoever hears that the capsule runs may use it at once.
    fn open_up(&self) {
        self.capsule.inner.gate.open();
        self.publish(String::new(), None);
    }

    /// Removes what an agent that died in a pause or a resume has left beside the saved state.
    async fn settle_paused(&mut self) {
        self.let_go_surely().await;
        self.record.disk = self.record.saved.as_ref().map(|saved| saved.disk.clone());
        // Damage stands in the way of that and is told to whoever resumes it; until then nothing is lost.
        self.clear_up().await;
        self.enter(Phase::Paused, String::new(), None);
    }

    /// Publishes a phase. The record is written first, so that no report is ahead of what a crash would leave.
    pub(super) fn enter(&mut self, phase: Phase, reason: String, failure: Option<Arc<CapsuleError>>) {
        self.record.phase = phase;
        self.record.generation += 1;
        self.save();
        self.publish(reason, failure);
    }

    /// Tells everybody what the record says.
    pub(super) fn publish(&self, reason: String, failure: Option<Arc<CapsuleError>>) {
        let Record { phase, generation, .. } = self.record;
        info!(capsule = %self.capsule.id(), ?phase, reason, "capsule changed");
        let (guest, vmm) = (self.record.guest.clone(), vmm_version(&self.env, &self.record));
        self.state.send_replace(State { phase, generation, reason, guest, vmm, failure });
    }

    /// Writes the record; a failure is logged, because the capsule is better alive without a fresh record than dead.
    pub(super) fn save(&mut self) {
        self.record.last_active = self.capsule.last_active();
        if let Err(failure) = self.record.write(&self.dir) {
            error!(capsule = %self.capsule.id(), "cannot write the capsule's record: {failure}");
        }
    }

    /// Minds a running capsule until something changes it.
    async fn serve(&mut self) -> Step {
        let (ending, detach) = (self.capsule.inner.ending.clone(), self.env.detach.clone());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let Some(machine) = self.held.machine.clone() else { return Step::End(String::new(), None) };
            let step = tokio::select! {
                () = ending.cancelled() => return Step::End(String::new(), None),
                () = detach.cancelled() => {
                    self.save();
                    return Step::Detach;
                }
                how = machine.exited() => {
                    let tail = console::tail(&self.dir, 5);
                    warn!(capsule = %self.capsule.id(), "the VM ended by itself ({how}); console: {tail}");
                    return Step::End(format!("vm_died: {how}"), None);
                }
                Some(command) = self.commands.recv() => self.obey_running(command).await,
                _ = tick.tick() => self.keep_house(&*machine).await,
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    async fn obey_running(&mut self, command: Command) -> Option<Step> {
        match command {
            Command::Pause(reply) => {
                let paused = self.pause("").await;
                let step = paused.is_ok().then_some(Step::Rest);
                self.reply(reply, paused);
                step
            }
            Command::Resume(reply) => {
                self.reply(reply, Ok(()));
                None
            }
            Command::Snapshot(plan, reply) => {
                let _gone = reply.send(self.snapshot(&plan).await.map_err(Arc::new));
                None
            }
        }
    }

    /// Minds a paused capsule until something changes it.
    async fn rest(&mut self) -> Step {
        let (ending, detach) = (self.capsule.inner.ending.clone(), self.env.detach.clone());
        let mut tidying = std::pin::pin!(tidied(self.tidy(), TIDY_DELAY));
        let mut tidy = true;
        loop {
            tokio::select! {
                () = ending.cancelled() => return Step::End(String::new(), None),
                () = detach.cancelled() => return Step::Detach,
                outcome = &mut tidying, if tidy => {
                    tidy = false;
                    self.take_tidied(outcome).await;
                }
                Some(command) = self.commands.recv() => match command {
                    Command::Pause(reply) => self.reply(reply, Ok(())),
                    Command::Snapshot(plan, reply) => {
                        let _gone = reply.send(self.snapshot(&plan).await.map_err(Arc::new));
                    }
                    Command::Resume(reply) => {
                        if tidy && self.is_deep().await {
                            let outcome = tokio::select! {
                                outcome = &mut tidying => outcome,
                                () = ending.cancelled() => return Step::End(String::new(), None),
                                () = detach.cancelled() => return Step::Detach,
                            };
                            self.take_tidied(outcome).await;
                        }
                        let resumed = self.resume().await;
                        let step = resumed.is_ok().then_some(Step::Serve);
                        self.reply(reply, resumed);
                        if let Some(step) = step {
                            return step;
                        }
                        // What was tidied meanwhile was cleared away with what the resume left.
                        tidying.set(tidied(self.tidy(), TIDY_DELAY));
                        tidy = true;
                    }
                },
            }
        }
    }

    fn tidy(&self) -> Option<Tidy> {
        let (saved, disks) = (self.record.saved.clone()?, Arc::clone(&self.driver().ok()?.disks));
        Some(Tidy { dir: self.dir.clone(), saved, disks })
    }

    async fn is_deep(&self) -> bool {
        let Some(saved) = &self.record.saved else { return false };
        let Ok(driver) = self.driver() else { return false };
        let chain = driver.disks.open(&self.dir, &saved.disk).await;
        chain.is_ok_and(|chain| chain.layers.len() >= DEEPEST_DISK)
    }

    async fn take_tidied(&mut self, outcome: Result<Option<Saved>, CapsuleError>) {
        let committed = match outcome {
            Ok(None) => return,
            Ok(Some(saved)) => self.commit(saved, Phase::Paused),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = committed {
            warn!(capsule = %self.capsule.id(), "its files stay as they are: {}", failure.chain());
        }
        fault::point("tidy.committed");
        self.clear_up().await;
    }

    /// Brings a paused capsule back; where that fails it is paused as before.
    async fn resume(&mut self) -> Answer<()> {
        let gone = || Arc::new(CapsuleError::Stopping(self.capsule.id()));
        let saved = self.record.saved.clone().ok_or_else(gone)?;
        self.enter(Phase::Resuming, String::new(), None);
        fault::point("resume.begun");
        match self.restore(&saved).await.and_then(|()| self.commit_running()) {
            Ok(()) => {
                fault::point("resume.committed");
                self.open_up();
                Ok(())
            }
            Err(failure) => {
                warn!(capsule = %self.capsule.id(), "not resumed: {}", failure.chain());
                let reason = format!("resume_failed: {}", failure.chain());
                self.let_go_surely().await;
                self.record.disk = Some(saved.disk);
                self.clear_up().await;
                self.enter(Phase::Paused, reason, None);
                Err(Arc::new(failure))
            }
        }
    }

    /// Answers with the state that the capsule is in now.
    fn reply(&self, reply: oneshot::Sender<Answer<State>>, outcome: Answer<()>) {
        // Whoever asked may have gone.
        let _gone = reply.send(outcome.map(|()| self.capsule.state()));
    }

    /// Gives everything back.
    async fn end(&mut self, reason: String, failure: Option<Arc<CapsuleError>>) -> State {
        self.capsule.inner.gate.cut();
        if self.dir.exists() {
            self.enter(Phase::Stopping, reason.clone(), failure.clone());
        }
        // Whoever waits for an answer is told that there will be none.
        self.commands.close();
        let mut retry = Retry::new();
        while let Err(failure) = self.release().await {
            retry.wait(self.capsule.id(), &failure).await;
        }
        let generation = self.record.generation + 1;
        info!(capsule = %self.capsule.id(), reason, "capsule removed");
        let vmm = vmm_version(&self.env, &self.record);
        State { phase: Phase::Stopped, generation, reason, guest: None, vmm, failure }
    }
}

/// Tidies a paused capsule after a while.
async fn tidied(tidy: Option<Tidy>, delay: Duration) -> Result<Option<Saved>, CapsuleError> {
    let Some(tidy) = tidy else { return Ok(None) };
    tokio::time::sleep(delay).await;
    tidy.run().await
}

impl Capsule {
    pub(super) fn ending(&self) -> &CancellationToken {
        &self.inner.ending
    }

    pub(super) fn set_endpoint(&self, endpoint: Option<Endpoint>) {
        *self.inner.endpoint.write().unwrap_or_else(PoisonError::into_inner) = endpoint;
    }

    pub(super) fn forget_idleness(&self) {
        self.inner.last_active.store(unix_now(), Ordering::Relaxed);
    }
}
