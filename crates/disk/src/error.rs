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
    /// An image that the disk builds on is not there.
    #[error("the image {path:?}, which the disk builds on, is missing: rebuild or fetch its template")]
    BackingMissing {
        /// Where the image should be.
        path: PathBuf,
    },
    /// The disk would be smaller than what is in it.
    #[error(
        "a disk of {asked_mb} MiB cannot hold the {base_mb} MiB that it builds on: ask for at least that"
    )]
    TooSmall {
        /// MiB asked for.
        asked_mb: u64,
        /// MiB of the base image or of the disk so far, rounded up.
        base_mb: u64,
    },
    /// The disk would be larger than the format allows.
    #[error("a disk of {asked_mb} MiB is too large: {most_mb} MiB is the most")]
    TooLarge {
        /// MiB asked for.
        asked_mb: u64,
        /// MiB of the largest disk.
        most_mb: u64,
    },
    /// The chain has as many layers as it can.
    #[error("{path:?} has {layers} layers below it, the most there can be: flatten the disk first")]
    TooDeep {
        /// The top of the chain.
        path: PathBuf,
        /// Layers that it has.
        layers: usize,
    },
    /// A file with that name exists.
    #[error("{path:?} exists already: delete it first, a disk is never overwritten")]
    Exists {
        /// The path that is taken.
        path: PathBuf,
    },
    /// `path` is not a sound layer of this driver's kind.
    #[error("{path:?} is not a layer of a disk, or it is damaged: {reason}")]
    NotALayer {
        /// The file in question.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
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
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        let (path, source) = (path.to_path_buf(), source.into());
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full { path },
            std::io::ErrorKind::AlreadyExists => Self::Exists { path },
            _ => Self::Io { action, path, source },
        }
    }

    pub(crate) fn not_a_layer(path: &Path, reason: &'static str) -> Self {
        Self::NotALayer { path: path.to_path_buf(), reason }
    }
}
