//! Making, sharing, freezing and removing whole files, whatever is in them.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::DiskError;

/// A frozen file is read by the VMMs of several capsules, each under a user id of its own. The directories keep others
/// out.
const FROZEN: u32 = 0o444;

/// Bytes that a copy moves at once.
const PIECE: usize = 1 << 20;

/// Files that are removed again unless their maker comes to say that they stay.
#[derive(Debug, Default)]
pub(crate) struct Made(Vec<PathBuf>);

impl Made {
    /// Takes charge of a file that was just made.
    pub(crate) fn add(&mut self, path: PathBuf) {
        self.0.push(path);
    }

    /// Gives the files up: they stay.
    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // Whoever is being told of the first failure can do nothing about a second; a name that stays is removed
            // as unlisted later.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Opens a regular file to read, and nothing else: no link, no pipe that would block.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

/// Takes from everyone the right to write to `path` and gives all the right to read it.
pub(crate) fn freeze(path: &Path) -> Result<(), DiskError> {
    let frozen = || {
        let file = open(path)?;
        // The owner could make it writable again, so a VMM's user must not stay the owner.
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        fchown(&file, Some(uid.as_raw()), Some(gid.as_raw()))?;
        file.set_permissions(Permissions::from_mode(FROZEN))
    };
    frozen().map_err(|source| DiskError::io("freeze", path, source))
}

/// Gives `from` the further name `to`, or copies it where the file system has no links, is another, or has handed out
/// all links that a file can have. Only a copy takes time and room, and it is durable when this returns.
pub(crate) fn share(from: &Path, to: &Path, made: &mut Made) -> Result<(), DiskError> {
    match std::fs::hard_link(from, to) {
        Ok(()) => made.add(to.to_path_buf()),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => copy(from, to, made)?,
            Some(Errno::NOENT) if !from.exists() => {
                return Err(DiskError::BackingMissing { path: from.to_path_buf() });
            }
            _ => return Err(DiskError::io("link", to, error)),
        },
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, made: &mut Made) -> Result<(), DiskError> {
    let source = open(from).map_err(|error| DiskError::io("copy", from, error))?;
    let target = make(to, made)?;
    let copied = || {
        // Where the file system can share blocks between files, this is all.
        if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
            copy_data(&source, &target)?;
        }
        target.set_permissions(Permissions::from_mode(FROZEN))?;
        target.sync_all()
    };
    copied().map_err(|error| DiskError::io("copy a disk to", to, error))
}

/// Makes an empty file that only its owner may touch.
pub(crate) fn make(path: &Path, made: &mut Made) -> Result<File, DiskError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|source| DiskError::io("create", path, source))?;
    made.add(path.to_path_buf());
    Ok(File::from(file))
}

/// Fills `buffer` from `offset` on, as far as the file goes, and returns how many bytes that were.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(at))?;
        while at < end {
            let piece = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
            let count = from.read_at(&mut buffer[..piece], at)?;
            if count == 0 {
                return Ok(());
            }
            to.write_all_at(&buffer[..count], at)?;
            at += count as u64;
        }
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(dir: &Path) -> Result<(), DiskError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| DiskError::io("sync", dir, source))
}

/// Removes a file; one that is gone already counts as removed.
pub(crate) fn remove(path: &Path) -> Result<(), DiskError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(DiskError::io("remove", path, source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 10_000], 5 << 20).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let mut made = Made::default();
        copy(&from, &to, &mut made).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        drop(made);
        assert!(!to.exists());
    }

    #[test]
    fn nothing_but_a_regular_file_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "x").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        assert!(open(&path("file")).is_ok());
        assert!(open(&path("link")).is_err() && open(&path("pipe")).is_err() && open(dir.path()).is_err());
    }
}
