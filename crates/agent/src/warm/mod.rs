//! Warm templates: base templates that are booted once for each shape, so that every later capsule is a restore.
//!
//! ```text
//!   templates/<team>/<id>/warm/<vcpus>x<memory>x<disk>-<hash>/   warm.json + a saved machine
//! ```
//!
//! The machine is saved when its daemon has answered for the first time and knows nothing of any capsule yet. The hash is
//! over all that made it: disk, kernel, initial file system, command line, VMM. When one of these changes, the directory
//! is no more found and is removed.
//!
//! *When one is made:* for the default shape at the agent's start, for another one in the background after the first capsule
//! of that shape has come to run; one at a time. *When one is dropped:* when all of them take more of the disk than the
//! budget allows, the one that was not used for the longest goes first. Capsules hold links and do not notice.

mod pool;
mod seed;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{info, warn};
use wrenn_core::Shape;
use wrenn_core::limits::{DEFAULT_DISK_MB, DEFAULT_MEMORY_MB, DEFAULT_VCPUS};

use crate::environment::Environment;
use crate::files;
use crate::images::Template;
use crate::record::write_atomically;
use crate::saved::Saved;
use crate::staging::Staged;

pub(crate) use pool::{Pool, Spare};

/// Description of a warm template in its directory.
const FILE: &str = "warm.json";
/// Directory of a template's warm memories.
const DIRECTORY: &str = "warm";
const VERSION: u32 = 1;

/// One warm template: which template, in which shape.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// `<team>/<id>` below `templates/`.
    pub(crate) template: PathBuf,
    /// vCPUs, MiB of memory, MiB of disk: what was booted, which may have a smaller disk than what was asked for.
    shape: (u32, u32, u32),
    /// Hex, over what made it.
    hash: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Description {
    version: u32,
    saved: Saved,
}

/// A machine to make capsules of.
#[derive(Debug, Clone)]
pub(crate) struct Warmed {
    pub(crate) dir: PathBuf,
    pub(crate) saved: Saved,
}

impl Key {
    /// The warm template that a capsule of `shape` would be made from. Disks below the default size start from the
    /// template's own, all others from the default one: a disk can be grown, and growing it takes time.
    pub(crate) fn new(env: &Environment, path: &Path, template: &Template, shape: Shape) -> Self {
        let disk_mb = if shape.disk_mb >= DEFAULT_DISK_MB { DEFAULT_DISK_MB } else { template.disk_mb };
        let kernel = &env.kernel;
        let made_of = [
            template.disk.to_string_lossy(),
            kernel.kernel.to_string_lossy(),
            kernel.initramfs.to_string_lossy(),
            (&*kernel.cmdline).into(),
            env.drivers.default().fits.to_string().into(),
        ];
        let hash = hex::encode(&Sha256::digest(made_of.join("\0"))[..8]);
        Self { template: path.to_owned(), shape: (shape.vcpus, shape.memory_mb, disk_mb), hash }
    }

    /// What is booted for it.
    pub(crate) fn shape(&self) -> Shape {
        let (vcpus, memory_mb, disk_mb) = self.shape;
        Shape { vcpus, memory_mb, disk_mb }
    }

    fn name(&self) -> String {
        let (vcpus, memory, disk) = self.shape;
        format!("{vcpus}x{memory}x{disk}-{}", self.hash)
    }
}

/// The warm templates of a host.
#[derive(Debug)]
pub struct Warm {
    /// Bytes that all of them may take; 0 for none.
    budget: u64,
    /// Those that are being made, or could not be made since the agent's start.
    busy: Mutex<BTreeSet<Key>>,
    /// One boot at a time.
    turn: tokio::sync::Mutex<()>,
    pool: Arc<Pool>,
}

impl Warm {
    /// Warm templates of at most `budget_mb` MiB in all, with `spares` machines kept ready.
    pub fn new(budget_mb: u64, spares: u32) -> Self {
        let spares = if budget_mb == 0 { 0 } else { spares };
        Self {
            budget: budget_mb << 20,
            busy: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            pool: Arc::new(Pool::new(spares)),
        }
    }

    /// Machines that are ready.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn is_on(&self) -> bool {
        self.budget > 0
    }

    /// The warm template, where there is one. Notes that it was used. Blocks.
    pub(crate) fn find(&self, env: &Environment, key: &Key) -> Option<Warmed> {
        if !self.is_on() {
            return None;
        }
        let dir = directory(env, &key.template).join(key.name());
        match read(&dir) {
            Ok(saved) => {
                // Its age decides which one is dropped first; without the note it only counts as older.
                let _ = File::open(dir.join(FILE)).and_then(|file| file.set_modified(SystemTime::now()));
                Some(Warmed { dir, saved })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                warn!("the warm template in {} cannot be read and is dropped: {error}", dir.display());
                self.drop_one(&dir);
                None
            }
        }
    }

    /// Removes a warm template that turned out to be of no use.
    pub(crate) fn drop_one(&self, dir: &Path) {
        if let Err(error) = files::remove_directory(dir) {
            warn!("cannot remove the warm template {}: {error}", dir.display());
        }
    }

    /// Has a warm template made in the background, unless there is one.
    pub(crate) fn want(self: &Arc<Self>, env: &Arc<Environment>, key: Key) {
        if !self.is_on() || !self.busy().insert(key.clone()) {
            return;
        }
        let (warm, env) = (Arc::clone(self), Arc::clone(env));
        env.tasks.clone().spawn(async move {
            let _turn = warm.turn.lock().await;
            let (finder, place, wanted) = (Arc::clone(&warm), Arc::clone(&env), key.clone());
            let found = tokio::task::spawn_blocking(move || finder.find(&place, &wanted).is_some()).await;
            if found.unwrap_or_default() {
                warm.busy().remove(&key);
                return;
            }
            match seed::make(&warm, &env, &key).await {
                Ok(()) => {
                    warm.busy().remove(&key);
                    warm.pool.look_again();
                }
                Err(_) if env.detach.is_cancelled() => {}
                // Not tried again until the next start: capsules boot as they would without.
                Err(error) => warn!("template {} was not made warm: {error:#}", key.template.display()),
            }
        });
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, BTreeSet<Key>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a saved machine its place, and makes room for it. Blocks.
    fn publish(&self, env: &Environment, key: &Key, staged: Staged, saved: &Saved) -> io::Result<()> {
        let description = Description { version: VERSION, saved: saved.clone() };
        write_atomically(&staged.path().join(FILE), &serde_json::to_vec_pretty(&description)?, 0o600)?;
        let parent = directory(env, &key.template);
        fs::create_dir_all(&parent)?;
        let dir = parent.join(key.name());
        files::remove_directory(&dir)?;
        staged.move_to(&dir)?;
        info!("template {} is warm: {}", key.template.display(), key.name());
        self.keep_budget(env, &dir)
    }

    /// Drops those that were not used for the longest until the rest fits, but never `newest`.
    fn keep_budget(&self, env: &Environment, newest: &Path) -> io::Result<()> {
        let mut all = all(env)?;
        all.sort_by_key(|(_, _, used)| *used);
        let mut sum: u64 = all.iter().map(|(_, bytes, _)| bytes).sum();
        for (dir, bytes, _) in all.iter().filter(|(dir, ..)| dir != newest) {
            if sum <= self.budget {
                break;
            }
            info!("dropping the warm template {} to keep within the budget", dir.display());
            files::remove_directory(dir)?;
            sum -= bytes;
        }
        Ok(())
    }

    /// At the agent's start: removes what no capsule would be made from any more, and wants the default shape of the
    /// built-in template. Blocks.
    fn begin(self: &Arc<Self>, env: &Arc<Environment>) {
        if let Err(error) = self.remove_stale(env) {
            warn!("old warm templates stay until the next start: {error}");
        }
        if !self.is_on() {
            return;
        }
        let path = crate::images::built_in();
        let shape = Shape { vcpus: DEFAULT_VCPUS, memory_mb: DEFAULT_MEMORY_MB, disk_mb: DEFAULT_DISK_MB };
        match Template::load(&env.templates.dir(&path)) {
            Ok(template) => {
                let key = Key::new(env, &path, &template, shape);
                self.pool.expect(&key);
                if self.find(env, &key).is_none() {
                    self.want(env, key);
                }
            }
            Err(error) => warn!("the built-in template cannot be made warm: {error}"),
        }
        Pool::keep(self, env);
    }

    fn remove_stale(&self, env: &Environment) -> io::Result<()> {
        for (dir, ..) in all(env)? {
            let is_current = self.is_on() && is_current(env, &dir);
            if !is_current {
                files::remove_directory(&dir)?;
            }
        }
        Ok(())
    }
}

/// Clears and fills the host's warm templates, and keeps spares, from now on.
pub async fn begin(env: &Arc<Environment>) {
    let env = Arc::clone(env);
    let begun = tokio::task::spawn_blocking(move || env.warm.begin(&env)).await;
    if let Err(error) = begun {
        warn!("no template is made warm: {error}");
    }
}

/// Waits until creates of the default shape are as fast as they will be, or `limit` has passed.
pub async fn filled(env: &Environment, limit: Duration) {
    if env.warm.is_on() && tokio::time::timeout(limit, env.warm.pool.filled()).await.is_err() {
        warn!("the pool of spare machines is not filled yet; the first capsules will take longer");
    }
}

fn directory(env: &Environment, template: &Path) -> PathBuf {
    env.templates.dir(template).join(DIRECTORY)
}

fn read(dir: &Path) -> io::Result<Saved> {
    let Description { version, saved } = serde_json::from_slice(&fs::read(dir.join(FILE))?)?;
    if version == VERSION { Ok(saved) } else { Err(io::Error::other(format!("unknown version {version}"))) }
}

/// Whether the directory is still what a capsule of its shape would be made from.
fn is_current(env: &Environment, dir: &Path) -> bool {
    let Ok(saved) = read(dir) else { return false };
    let Some(template_dir) = dir.parent().and_then(Path::parent) else { return false };
    let Ok(template) = Template::load(template_dir) else { return false };
    let key = Key::new(env, Path::new(""), &template, saved.shape);
    dir.file_name().is_some_and(|name| *name == *key.name())
}

/// Every warm template on the host, with the bytes it takes on the disk and when it was last used.
fn all(env: &Environment) -> io::Result<Vec<(PathBuf, u64, SystemTime)>> {
    let mut found = Vec::new();
    for team in entries(&env.templates.dir(Path::new("")))? {
        for template in entries(&team)? {
            for dir in entries(&template.join(DIRECTORY))? {
                let used = fs::metadata(dir.join(FILE)).and_then(|meta| meta.modified());
                found.push((
                    dir.clone(),
                    files::allocated_bytes(&dir)?,
                    used.unwrap_or(SystemTime::UNIX_EPOCH),
                ));
            }
        }
    }
    Ok(found)
}

/// The directories in a directory, which need not be there.
fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let list = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        list => list?,
    };
    let mut found = Vec::new();
    for entry in list {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
