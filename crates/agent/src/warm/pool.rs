//! Machines that are ready before anybody asks.
//!
//! * A *spare* was restored from a warm template, has run up to its daemon's first answer, and was stopped again. A create
//!   that finds one takes it over, directory and all, and only tells it who it is.
//! * A *blank* is a VMM in a network slot that maps a warm template's memory and waits for the rest. A resume of a capsule that
//!   began as that template takes it, and saves the start of a VMM and the making of a slot.
//!
//! What will be asked for is guessed from what was: of what the last creates used, the pool holds one of each kind. Both are
//! capsules that have not come to run as far as their records say, so an agent that dies leaves nothing that the next one
//! would not remove.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tracing::{debug, warn};
use wrenn_core::Shape;
use wrenn_vmm::FileKey;

use super::{Key, Warm, seed};
use crate::capsule::{Resources, Start};
use crate::environment::Environment;
use crate::record::Record;

/// How long the host is left to the capsule that was just made before the next spare is.
const BREATH: Duration = Duration::from_millis(500);

/// A machine that nobody owns yet.
#[derive(Debug)]
pub(crate) struct Spare {
    /// Its directory among those of the capsules.
    pub(crate) dir: PathBuf,
    pub(crate) record: Record,
    pub(crate) held: Resources,
}

/// Whoever sends a sender here gets the machine; dropping it removes the machine.
type Claim = oneshot::Sender<oneshot::Sender<Spare>>;

/// A machine that waits, minded by its own task.
#[derive(Debug)]
struct Parked {
    key: Key,
    kind: Kind,
    claim: Claim,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Spare,
    /// Over this file as the base of its memory.
    Blank(FileKey),
}

impl Kind {
    fn is_spare(self) -> bool {
        matches!(self, Self::Spare)
    }
}

/// The spares of a host.
#[derive(Debug)]
pub(crate) struct Pool {
    size: usize,
    state: Mutex<State>,
    changed: Notify,
    /// A spare was made.
    told: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// What the last creates used, the newest at the end.
    asked: VecDeque<Key>,
    parked: Vec<Parked>,
}

impl Pool {
    pub(super) fn new(size: u32) -> Self {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        Self { size, state: Mutex::default(), changed: Notify::new(), told: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills the pool's guess with one kind.
    pub(super) fn expect(&self, key: &Key) {
        self.state().asked = std::iter::repeat_n(key.clone(), self.size).collect();
    }

    /// A spare of that kind, where one is ready. Counts as a create either way.
    pub(crate) async fn claim(&self, key: &Key) -> Option<Spare> {
        if self.size == 0 {
            return None;
        }
        let found = {
            let mut state = self.state();
            state.asked.push_back(key.clone());
            while state.asked.len() > self.size {
                state.asked.pop_front();
            }
            state.take(|parked| parked.key == *key && parked.kind.is_spare())
        };
        self.changed.notify_one();
        hand_over(found?).await
    }

    /// A blank for a snapshot of that shape whose memory has the base `base`, where one is ready.
    pub(crate) async fn claim_blank(&self, base: FileKey, shape: Shape) -> Option<Spare> {
        let fits = |parked: &Parked| {
            let has = parked.key.shape();
            parked.kind == Kind::Blank(base) && (has.vcpus, has.memory_mb) == (shape.vcpus, shape.memory_mb)
        };
        let found = self.state().take(fits)?;
        self.changed.notify_one();
        hand_over(found).await
    }

    /// Resolves when the pool holds what it should, or cannot get there by itself.
    pub(super) async fn filled(&self) {
        loop {
            let told = self.told.notified();
            if self.next_wanted().is_none() {
                return;
            }
            told.await;
        }
    }

    /// Has the pool look whether something it needs has come to be.
    pub(super) fn look_again(&self) {
        self.changed.notify_one();
    }

    /// Keeps the pool filled until the agent ends.
    pub(super) fn keep(warm: &Arc<Warm>, env: &Arc<Environment>) {
        if warm.pool.size == 0 {
            return;
        }
        let (warm, env) = (Arc::clone(warm), Arc::clone(env));
        env.tasks.clone().spawn(async move {
            let detach = env.detach.clone();
            let fill = async {
                loop {
                    if !warm.pool.fill_one(&warm, &env).await {
                        warm.pool.changed.notified().await;
                        tokio::time::sleep(BREATH).await;
                    }
                }
            };
            let () = detach.run_until_cancelled_owned(fill).await.unwrap_or_default();
            // Each is removed by its own task.
            warm.pool.state().parked.clear();
        });
    }

    /// Drops what is not wanted any more and makes one machine that is; false where there is none to make.
    async fn fill_one(&self, warm: &Arc<Warm>, env: &Arc<Environment>) -> bool {
        let Some((key, spare)) = self.next_wanted() else { return false };
        let (finder, place, wanted) = (Arc::clone(warm), Arc::clone(env), key.clone());
        let found = tokio::task::spawn_blocking(move || finder.find(&place, &wanted)).await;
        let Ok(Some(warmed)) = found else { return false };
        let (claim, claimed) = oneshot::channel();
        let (env, spec) = (Arc::clone(env), seed::spec(&key));
        let made = if spare {
            Start::spare(env, spec, warmed, claimed).await.map(|()| Kind::Spare)
        } else {
            Start::blank(env, spec, warmed, claimed).await.map(Kind::Blank)
        };
        match made {
            Ok(kind) => {
                debug!(?kind, "a machine of {} is ready", key.template.display());
                self.state().parked.push(Parked { key, kind, claim });
                self.told.notify_waiters();
                true
            }
            Err(failure) => {
                warn!("no machine of {} is kept ready: {}", key.template.display(), failure.chain());
                false
            }
        }
    }

    /// What the pool lacks, spares first, and whether it is one; what it has too much of goes, and so do those whose machine
    /// has ended.
    fn next_wanted(&self) -> Option<(Key, bool)> {
        let mut state = self.state();
        let mut wanted: Vec<(Key, bool)> = [false, true]
            .into_iter()
            .flat_map(|spare| state.asked.iter().map(move |key| (key.clone(), spare)))
            .collect();
        state.parked.retain(|parked| {
            let is = |(key, spare): &(Key, bool)| *key == parked.key && *spare == parked.kind.is_spare();
            let at = wanted.iter().position(is).filter(|_| !parked.claim.is_closed());
            at.map(|at| wanted.swap_remove(at)).is_some()
        });
        let spare = wanted.iter().position(|(_, spare)| *spare);
        spare.map(|at| wanted.swap_remove(at)).or_else(|| wanted.pop())
    }
}

impl State {
    /// Takes the first machine out that is wanted.
    fn take(&mut self, wanted: impl Fn(&Parked) -> bool) -> Option<Parked> {
        let at = self.parked.iter().position(wanted)?;
        Some(self.parked.swap_remove(at))
    }
}

async fn hand_over(parked: Parked) -> Option<Spare> {
    let (sender, spare) = oneshot::channel();
    parked.claim.send(sender).ok()?;
    spare.await.ok()
}
