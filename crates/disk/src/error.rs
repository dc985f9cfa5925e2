//! What can go wrong with a disk, each with what to do about it.

use std::path::{Path, PathBuf};

/// A disk operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is no `qemu-img` on this machine.
    #[error("qemu-img is not installed: apt-get install qemu-utils")]
    ToolMissing,
    /// `qemu-img` ran and refused; its own words follow.
    #[error("qemu-img could not {action} {path:?}: {message}")]
    Tool {
        /// What was being done.
        action: &'static str,
        /// The file in question.
        path: PathBuf,
        /// The last lines that the tool wrote.
        message: String,
    },
    /// The file system that holds the disk has no room.
    #[error("no space is left for {path:?}: free some, or move the data directory to a larger disk")]
    Full {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// The base image that the disk builds on is not there.
    #[error("the base image {path:?} is missing: rebuild or fetch its template")]
    BackingMissing {
        /// Where the base image should be.
        path: PathBuf,
    },
    /// The disk would be smaller than what its base holds.
    #[error("a disk of {asked_mb} MiB cannot hold its base image of {base_mb} MiB: ask for at least that")]
    TooSmall {
        /// MiB asked for.
        asked_mb: u64,
        /// MiB of the base image, rounded up.
        base_mb: u64,
    },
    /// A disk with that path exists.
    #[error("{path:?} exists already: delete it first, a disk is never overwritten")]
    Exists {
        /// The path that is taken.
        path: PathBuf,
    },
    /// `path` is not a copy-on-write disk of this driver's kind.
    #[error("{path:?} is not a copy-on-write disk over a base image")]
    NotAnOverlay {
        /// The file in question.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("could not {action} {path:?}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file in question.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl DiskError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Io { action, path, source },
        }
    }
}
