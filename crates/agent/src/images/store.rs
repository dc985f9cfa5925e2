//! A directory of artefacts: one writer at a time, and every artefact appears whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tempfile::TempDir;

use super::tool::Tool;
use super::{ImageError, Progress};

/// Begins the name of every directory in which something is being made.
const STAGING: &str = ".making-";

/// A directory whose lock is held as long as this lives.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens `root`, waits for its lock, and clears away what a crashed process was making.
    pub(super) fn open(root: &Path, progress: Progress) -> Result<Self, ImageError> {
        let (root, lock) = prepare(root)?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            progress("another process is making images here; waiting for it");
            rustix::fs::flock(&lock, FlockOperation::LockExclusive)
                .map_err(|source| ImageError::io("lock", &root, source))?;
        }
        clear(&root)?;
        Ok(Self { root, _lock: lock })
    }

    /// As [`Store::open`], but `None` where another process has the lock.
    pub(super) fn try_open(root: &Path) -> Result<Option<Self>, ImageError> {
        let (root, lock) = prepare(root)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { root, _lock: lock })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(source) => Err(ImageError::io("lock", &root, source)),
        }
    }

    pub(super) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// An empty directory to make something in, on the same file system; removed with its handle.
    pub(super) fn staging(&self) -> Result<TempDir, ImageError> {
        tempfile::Builder::new()
            .prefix(STAGING)
            .tempdir_in(&self.root)
            .map_err(|source| ImageError::io("make a directory in", &self.root, source))
    }

    /// Gives the finished `from` its final name, durably and readable to the VMM's users.
    pub(super) fn publish(&self, from: &Path, to: &Path) -> Result<(), ImageError> {
        let move_in = || -> std::io::Result<()> {
            let parent = to.parent().ok_or(ErrorKind::InvalidInput)?;
            self.make_open(parent)?;
            sync(from)?;
            fs::rename(from, to)?;
            File::open(parent)?.sync_all()
        };
        move_in().map_err(|source| ImageError::io("put in place", to, source))
    }

    /// Writes a small file as [`Store::publish`] does, unless it has that content.
    pub(super) fn write(&self, path: &Path, content: &[u8]) -> Result<(), ImageError> {
        if fs::read(path).is_ok_and(|found| found == content) {
            return Ok(());
        }
        let staging = self.staging()?;
        let made = staging.path().join("file");
        let write = || -> std::io::Result<()> {
            File::create(&made)?.write_all(content)?;
            fs::set_permissions(&made, Permissions::from_mode(0o444))
        };
        write().map_err(|source| ImageError::io("write", path, source))?;
        self.publish(&made, path)
    }

    /// Takes over an artefact, a file or a directory of files, from another store.
    pub(super) fn take(&self, from: &Path, to: &Path) -> Result<(), ImageError> {
        let staging = self.staging()?;
        let made = staging.path().join("artefact");
        share(from, &made)?;
        self.publish(&made, to)
    }

    /// Makes the directories down to `dir`, passable for every user from below the root on.
    fn make_open(&self, dir: &Path) -> std::io::Result<()> {
        fs::create_dir_all(dir)?;
        for dir in dir.ancestors().take_while(|dir| *dir != self.root) {
            fs::set_permissions(dir, Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}

/// The absolute path of `root`, made where it is missing, and its lock's file.
fn prepare(root: &Path) -> Result<(PathBuf, File), ImageError> {
    fs::create_dir_all(root).map_err(|source| ImageError::io("make", root, source))?;
    let root = fs::canonicalize(root).map_err(|source| ImageError::io("open", root, source))?;
    let path = root.join("images.lock");
    let lock = File::create(&path).map_err(|source| ImageError::io("make", &path, source))?;
    Ok((root, lock))
}

fn clear(root: &Path) -> Result<(), ImageError> {
    let entries = fs::read_dir(root).map_err(|source| ImageError::io("list", root, source))?;
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(STAGING)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = ?entry.path(), %error, "what a crashed build left cannot be removed");
        }
    }
    Ok(())
}

/// Brings a file, or a directory and its files, to the disk.
fn sync(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            sync(&entry?.path())?;
        }
    }
    File::open(path)?.sync_all()
}

/// A second name for each read-only file, or else a copy that keeps its holes.
fn share(from: &Path, to: &Path) -> Result<(), ImageError> {
    let io = |source| ImageError::io("share", from, source);
    if from.is_dir() {
        fs::create_dir(to).map_err(io)?;
        fs::set_permissions(to, Permissions::from_mode(0o755)).map_err(io)?;
        for entry in fs::read_dir(from).map_err(io)? {
            let entry = entry.map_err(io)?;
            share(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let copy = Tool("cp", "coreutils");
    let mut command = copy.command();
    command.args(["--reflink=auto", "--sparse=always", "--preserve=mode", "--"]).args([from, to]);
    copy.run(&mut command, &|_| {}).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn silent(_: &str) {}

    #[test]
    fn what_a_crash_left_is_cleared_and_what_was_published_stays() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(".making-old/deep")).unwrap();
        let store = Store::open(root.path(), &silent).unwrap();
        assert!(!root.path().join(".making-old").exists());
        store.write(&store.path("a/b/file"), b"text").unwrap();
        assert_eq!(fs::read(root.path().join("a/b/file")).unwrap(), b"text");
        let names: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn an_unchanged_file_is_not_written_again() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path(), &silent).unwrap();
        let inode = || fs::metadata(store.path("file")).unwrap().ino();
        store.write(&store.path("file"), b"one").unwrap();
        let first = inode();
        store.write(&store.path("file"), b"one").unwrap();
        assert_eq!(inode(), first);
        store.write(&store.path("file"), b"two").unwrap();
        assert_eq!(fs::read(store.path("file")).unwrap(), b"two");
    }

    #[test]
    fn an_artefact_of_a_cache_is_linked_not_copied() {
        let (cache, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cache = Store::open(cache.path(), &silent).unwrap();
        let store = Store::open(data.path(), &silent).unwrap();
        cache.write(&cache.path("k/modules/m.ko"), b"module").unwrap();
        store.take(&cache.path("k"), &store.path("kernels/k")).unwrap();
        let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(store.path("kernels/k/modules/m.ko")), inode(cache.path("k/modules/m.ko")));
    }

    #[test]
    fn a_second_process_waits_for_the_first() {
        let root = tempfile::tempdir().unwrap();
        let first = Store::open(root.path(), &silent).unwrap();
        let (told, waiting) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let path = root.path();
            scope.spawn(move || {
                let progress = move |line: &str| told.send(line.to_owned()).unwrap();
                let progress = std::sync::Mutex::new(progress);
                Store::open(path, &|line| progress.lock().unwrap()(line)).map(drop)
            });
            assert!(waiting.recv().unwrap().contains("waiting"));
            drop(first);
        });
    }
}
