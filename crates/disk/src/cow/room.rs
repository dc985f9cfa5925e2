//! Room for what a running guest writes next.
//!
//! A snapshot whose store cannot be written becomes invalid for good, and with it everything in the layer. A full disk
//! must not do that. So where the disk is nearly full, the room that a store grows into is taken before it does: from
//! the file system's point of view it is in use, and no other file can get it. When there is none to take, the VMM is
//! stopped before it has used up what was taken last.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::header::BLOCK;
use super::store::{AREA, CHUNK};
use crate::{DiskError, MIB};

/// Bytes of room that a layer has ahead of what it uses.
pub const AHEAD: u64 = 32 * MIB;
/// Bytes free in a file system from which on nobody needs to take room beforehand.
pub const PLENTY: u64 = 8 << 30;

/// How a layer stands with the room that it grows into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// The file system has [`PLENTY`].
    Plenty,
    /// [`AHEAD`] is there for this layer alone, or all that it can ever use.
    Taken,
    /// There is less. Stop what writes to the layer until this has changed.
    Short,
}

/// Keeps [`AHEAD`] bytes of room for the layer `path`, whose store uses `used_bytes` (see
/// [`Used`](crate::Used)), where its file system has less than [`PLENTY`] free. May block for some milliseconds.
///
/// # Errors
/// [`DiskError::Io`] where the file cannot be opened, or its file system cannot take room beforehand at all.
pub fn keep_room(path: &Path, used_bytes: u64) -> Result<Room, DiskError> {
    let file = open_to_write(path)?;
    keep(&file, path, used_bytes)
}

pub(super) fn keep(file: &File, path: &Path, used_bytes: u64) -> Result<Room, DiskError> {
    let failed = |source: std::io::Error| DiskError::io("take room for", path, source);
    let system = rustix::fs::fstatvfs(file).map_err(|errno| failed(errno.into()))?;
    if system.f_bavail.saturating_mul(system.f_frsize) >= PLENTY {
        return Ok(Room::Plenty);
    }
    let length = file.metadata().map_err(failed)?.len();
    let end = BLOCK.saturating_add(used_bytes).saturating_add(AHEAD).min(length);
    // The exceptions of what is written next may go to a chunk before it.
    let start = BLOCK.saturating_add(used_bytes).saturating_sub((AREA + 2) * CHUNK);
    if start >= end {
        return Ok(Room::Taken);
    }
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, start, end - start) {
            Ok(()) => return Ok(Room::Taken),
            Err(Errno::NOSPC | Errno::DQUOT) => return Ok(Room::Short),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

/// Gives the room back that the layer `path` does not use. Nothing may write to it any more.
pub(crate) fn give_back(path: &Path, used_bytes: u64) -> Result<(), DiskError> {
    let failed = |source: std::io::Error| DiskError::io("give back the room of", path, source);
    let file = open_to_write(path)?;
    let start = BLOCK.saturating_add(used_bytes);
    let length = file.metadata().map_err(failed)?.len();
    if start >= length {
        return Ok(());
    }
    let how = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
    rustix::fs::fallocate(&file, how, start, length - start).map_err(|errno| failed(errno.into()))
}

/// Opens a layer's file to write, and nothing that is behind a link.
pub(crate) fn open_to_write(path: &Path) -> Result<File, DiskError> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    file.map_err(|source| DiskError::io("open", path, source))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_given_back_is_behind_what_is_used() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(256 * MIB).unwrap();
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), &[7; 65536], BLOCK).unwrap();
        rustix::fs::fallocate(file.as_file(), FallocateFlags::KEEP_SIZE, BLOCK, AHEAD).unwrap();
        assert!(file.as_file().metadata().unwrap().blocks() * 512 >= AHEAD);
        give_back(file.path(), 65536).unwrap();
        let meta = file.as_file().metadata().unwrap();
        assert!(meta.blocks() * 512 < MIB && meta.len() == 256 * MIB);
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(bytes[4096..4096 + 65536].iter().all(|byte| *byte == 7));
    }
}
