//! What can go wrong while images are made.

use std::path::{Path, PathBuf};

/// An image that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// This binary was built without the guest daemon.
    #[error("this binary carries no guest daemon: build it with `make build`")]
    NoGuestDaemon,
    /// A program that makes images is not there.
    #[error("{program} is not installed: apt-get install {package}")]
    ToolMissing {
        /// The program.
        program: String,
        /// The package that has it.
        package: &'static str,
    },
    /// A program failed; its last words follow.
    #[error("{program} failed ({status}): {said}")]
    Tool {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// The last lines it wrote.
        said: String,
    },
    /// The kernel package is not what this code knows.
    #[error("the kernel package {package} cannot be used: {reason}")]
    Kernel {
        /// The package.
        package: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A definition of an image that cannot be read.
    #[error("the definition of an image cannot be read")]
    Definition(#[from] toml::de::Error),
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

impl ImageError {
    pub(super) fn io(action: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::Io { action, path: path.to_path_buf(), source: source.into() }
    }
}
