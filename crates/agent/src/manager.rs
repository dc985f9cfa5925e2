//! The capsules of a host, by id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;
use wrenn_core::CapsuleId;

use crate::capsule::{Capsule, Start, State};
use crate::environment::Environment;
use crate::record::{CapsuleSpec, Phase};

/// Changes that a slow watcher may fall behind before it is sent everything anew.
const CHANGES_KEPT: usize = 1024;

/// One change of one capsule.
#[derive(Debug, Clone)]
pub struct Change {
    /// The capsule.
    pub capsule: Capsule,
    /// What it is doing now.
    pub state: State,
}

/// Owns the map of capsules; each capsule's life belongs to its actor.
#[derive(Debug, Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    env: Arc<Environment>,
    capsules: Mutex<HashMap<CapsuleId, Capsule>>,
    changes: broadcast::Sender<Change>,
}

impl Manager {
    /// A host without capsules.
    pub fn new(env: Arc<Environment>) -> Self {
        let changes = broadcast::Sender::new(CHANGES_KEPT);
        Self { inner: Arc::new(Inner { env, capsules: Mutex::default(), changes }) }
    }

    /// What the capsules share.
    pub fn env(&self) -> &Arc<Environment> {
        &self.inner.env
    }

    fn capsules(&self) -> MutexGuard<'_, HashMap<CapsuleId, Capsule>> {
        self.inner.capsules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The capsule of that id, where the host has it.
    pub fn get(&self, id: CapsuleId) -> Option<Capsule> {
        self.capsules().get(&id).cloned()
    }

    /// Every capsule.
    pub fn all(&self) -> Vec<Capsule> {
        self.capsules().values().cloned().collect()
    }

    /// Changes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// The capsule of that spec's id: the one there is, else a new one that begins to boot.
    pub fn create(&self, spec: CapsuleSpec) -> Capsule {
        let id = spec.id;
        self.insert(id, Start::Boot(spec))
    }

    /// Starts an actor unless the capsule has one.
    pub(crate) fn insert(&self, id: CapsuleId, start: Start) -> Capsule {
        let mut capsules = self.capsules();
        if let Some(there) = capsules.get(&id) {
            return there.clone();
        }
        let manager = self.clone();
        let capsule = start.spawn(Arc::clone(&self.inner.env), move || {
            manager.capsules().remove(&id);
        });
        capsules.insert(id, capsule.clone());
        drop(capsules);
        self.forward(capsule.clone());
        capsule
    }

    /// Passes a capsule's changes on to the watchers until it is gone.
    fn forward(&self, capsule: Capsule) {
        let changes = self.inner.changes.clone();
        tokio::spawn(async move {
            let mut watch = capsule.watch();
            while watch.changed().await.is_ok() {
                let state = watch.borrow_and_update().clone();
                let stopped = state.phase == Phase::Stopped;
                // Nobody watching is fine.
                let _watchers = changes.send(Change { capsule: capsule.clone(), state });
                if stopped {
                    return;
                }
            }
        });
    }
}
