//! Machines that are ready before anybody asks: restored from a warm template, run up to their daemon's first answer, and
//! stopped again. A create that finds one takes it over, directory and all, and only tells it who it is.
//!
//! What will be asked for is guessed from what was: the pool holds what the last creates would have used. A spare is a
//! capsule that has not come to run as far as its record says, so an agent that dies leaves nothing that the next one
//! would not remove.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tracing::{debug, warn};

use super::{Key, Warm, seed};
use crate::capsule::{Resources, Start};
use crate::environment::Environment;
use crate::record::Record;

/// How long the host is left to the capsule that was just made before the next spare is.
const BREATH: Duration = Duration::from_millis(500);

/// A stopped machine that nobody owns yet.
#[derive(Debug)]
pub(crate) struct Spare {
    /// Its directory among those of the capsules.
    pub(crate) dir: PathBuf,
    pub(crate) record: Record,
    pub(crate) held: Resources,
}

/// A spare that waits, minded by its own task.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) key: Key,
    /// Whoever sends a sender here gets the spare; dropping it removes the spare.
    pub(crate) claim: oneshot::Sender<oneshot::Sender<Spare>>,
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
            let at = state.parked.iter().position(|parked| parked.key == *key);
            at.map(|at| state.parked.swap_remove(at))
        };
        self.changed.notify_one();
        let (hand_over, spare) = oneshot::channel();
        found?.claim.send(hand_over).ok()?;
        spare.await.ok()
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

    /// Drops what is not wanted any more and makes one spare that is; false where there is none to make.
    async fn fill_one(&self, warm: &Arc<Warm>, env: &Arc<Environment>) -> bool {
        let Some(key) = self.next_wanted() else { return false };
        let (finder, place, wanted) = (Arc::clone(warm), Arc::clone(env), key.clone());
        let found = tokio::task::spawn_blocking(move || finder.find(&place, &wanted)).await;
        let Ok(Some(warmed)) = found else { return false };
        let (claim, claimed) = oneshot::channel();
        match Start::spare(Arc::clone(env), seed::spec(&key), warmed, claimed).await {
            Ok(()) => {
                debug!("a spare of {} is ready", key.template.display());
                self.state().parked.push(Parked { key, claim });
                self.told.notify_waiters();
                true
            }
            Err(failure) => {
                warn!("no spare of {}: {}", key.template.display(), failure.chain());
                false
            }
        }
    }

    /// What the pool lacks; what it has too much of goes, and so do spares whose machine has ended.
    fn next_wanted(&self) -> Option<Key> {
        let mut state = self.state();
        let mut wanted: Vec<Key> = state.asked.iter().cloned().collect();
        state.parked.retain(|parked| {
            let at = wanted.iter().position(|key| *key == parked.key).filter(|_| !parked.claim.is_closed());
            at.map(|at| wanted.swap_remove(at)).is_some()
        });
        wanted.pop()
    }
}
