//! The capsules of a host, by id.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, watch};
use wrenn_core::{CapsuleId, Shape};

use crate::capsule::{Capsule, SnapshotPlan, Start, State};
use crate::environment::Environment;
use crate::error::CapsuleError;
use crate::fault;
use crate::record::{CapsuleSpec, Phase};

/// Changes that a slow watcher may fall behind before it is sent everything anew.
const CHANGES_KEPT: usize = 1024;

/// Uses of a template, of which there is no telling.
const MANY: u32 = 1 << 16;

/// A template that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Bytes that it takes on the host's disk.
    pub size_bytes: u64,
    /// vCPUs, memory and disk of what is made from it.
    pub shape: Shape,
}

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

    /// The capsule of that spec's id: the one there is, else a new one that is being made from its template.
    pub fn create(&self, spec: CapsuleSpec) -> Capsule {
        let id = spec.id;
        self.insert(id, Start::Create(spec))
    }

    /// Makes the template `path` (`<team>/<id>`), called `name`, from a running or paused capsule.
    ///
    /// # Errors
    /// Why there is none; nothing of it is left then.
    pub async fn make_template(
        &self,
        capsule: &Capsule,
        path: &Path,
        name: &str,
    ) -> Result<Made, Arc<CapsuleError>> {
        let env = self.env();
        let taken = env.templates.dir(path);
        if taken.exists() {
            return Err(Arc::new(CapsuleError::TemplateExists { path: path.to_owned() }));
        }
        let staged = env.staging.make().map_err(CapsuleError::from)?;
        let plan = SnapshotPlan { dir: staged.path().to_owned(), uses: MANY };
        let snapshot = capsule.snapshot(plan).await?;
        let (templates, path, name) = (env.templates.clone(), path.to_owned(), name.to_owned());
        let published = crate::blocking(move || {
            let size_bytes = templates.publish(staged, &snapshot, &path, &name)?;
            Ok::<_, CapsuleError>(Made { size_bytes, shape: snapshot.saved.shape })
        });
        Ok(published.await?)
    }

    /// Makes running copies of a running capsule, one for each id; it goes on. Those that are made when one fails are
    /// removed.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn fork(&self, source: &Capsule, ids: &[CapsuleId]) -> Result<Vec<Capsule>, Arc<CapsuleError>> {
        let phase = source.state().phase;
        if phase != Phase::Running {
            let id = source.id();
            return Err(Arc::new(CapsuleError::Phase { id, phase: phase.as_str() }));
        }
        let staged = self.env().staging.make().map_err(CapsuleError::from)?;
        let uses = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let (made, coming) = watch::channel(None);
        // Before there is anything to copy: who asks for them is told from the beginning that they are on their way.
        let clones: Vec<Capsule> = ids
            .iter()
            .map(|id| {
                let spec = CapsuleSpec { id: *id, ..source.spec().clone() };
                self.insert(*id, Start::Copy(spec, coming.clone()))
            })
            .collect();
        let mut failure = None;
        match source.snapshot(SnapshotPlan { dir: staged.path().to_owned(), uses }).await {
            Ok(snapshot) => {
                fault::point("fork.saved");
                made.send_replace(Some(Arc::new(snapshot)));
            }
            Err(error) => failure = Some(error),
        }
        drop(made);
        // In turn and not with `try_join`: all must have come to an end before the snapshot's directory goes.
        for clone in &clones {
            if let Err(error) = clone.booted().await {
                failure.get_or_insert(error);
            }
        }
        let Some(failure) = failure else { return Ok(clones) };
        futures::future::join_all(clones.iter().map(Capsule::destroy)).await;
        Err(failure)
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
