//! What can go wrong with an image, always with the file it went wrong with.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::MAX_LAYERS;

/// An image could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The operating system refused a step.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file in question.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file system, or the quota on it, has no room.
    #[error("no space is left for {path:?}: free some, or move the data directory to a larger disk")]
    Full {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// The file does not hold what was written into it, or is not the file that the header was written for.
    #[error("{path:?} is damaged: {what}; put back an intact copy, or delete the images that use it")]
    Damaged {
        /// The file in question.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The file was written in a version of the format that this program does not know.
    #[error(
        "{path:?} has format version {found}, and this program reads version {}: use the release that wrote it",
        crate::footer::VERSION
    )]
    Version {
        /// The file in question.
        path: PathBuf,
        /// The version found in it.
        found: u32,
    },
    /// A file of the image is not there.
    #[error("{path:?} is missing: put it back, or delete the images that use it")]
    Missing {
        /// Where the file should be.
        path: PathBuf,
    },
    /// More layers than an image may have.
    #[error("{path:?} would have {layers} layers, and {MAX_LAYERS} are allowed: merge them first")]
    TooManyLayers {
        /// The header that was to be written.
        path: PathBuf,
        /// Layers asked for.
        layers: usize,
    },
    /// What the caller asked for does not fit the image.
    #[error("{path:?} cannot be used that way: {what}")]
    Invalid {
        /// The file in question.
        path: PathBuf,
        /// What does not fit, and what would.
        what: String,
    },
}

impl ImageError {
    /// The error for a failed step, by what the system said: a full disk, a cut-off file, or anything else.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match (source.kind(), Errno::from_io_error(&source)) {
            (_, Some(Errno::NOSPC | Errno::DQUOT)) => Self::Full { path },
            (io::ErrorKind::UnexpectedEof, _) => {
                Self::Damaged { path, what: "it ends before the data that it should hold".to_owned() }
            }
            _ => Self::Io { action, path, source },
        }
    }

    /// The error for a file of an image that could not be opened or examined.
    pub(crate) fn access(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path: path.to_owned() },
            _ => Self::io(action, path, source),
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn invalid(path: &Path, what: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), what: what.into() }
    }
}

/// Why bytes are not what they should be; [`ImageError`] adds the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An unknown version of the format.
    #[error("the format version is {0}")]
    Version(u32),
    /// Not the format at all, or not as it was written.
    #[error("{0}")]
    Damaged(String),
}

impl Fault {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    pub(crate) fn at(self, path: &Path) -> ImageError {
        match self {
            Self::Version(found) => ImageError::Version { path: path.to_owned(), found },
            Self::Damaged(what) => ImageError::damaged(path, what),
        }
    }
}
