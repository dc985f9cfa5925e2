//! What can end a pager before its VMM ends.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use wrenn_image::ImageError;

/// A pager that cannot go on. Its guest stands still at the next page that is missing: end the VMM.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The process was not started by [`Pager::start`](super::Pager::start).
    #[error("{variable} {problem}: a pager is started by the agent, not by hand")]
    Order {
        /// The variable of the environment with the pager's order.
        variable: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The operating system refused.
    #[error("could not {action}")]
    System {
        /// What was being done.
        action: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The image cannot be read, or is damaged.
    #[error("the guest's memory cannot be served")]
    Image(#[from] ImageError),
    /// Nobody connected, or not all of the handshake came.
    #[error("the VMM did not hand over its memory within {after:?}: see its log")]
    Silent {
        /// How long was waited.
        after: Duration,
    },
    /// What the VMM sent is not what Firecracker sends.
    #[error(
        "the VMM's handshake is wrong: {problem}; use the Firecracker release that the documentation names"
    )]
    Handshake {
        /// What is wrong with it.
        problem: String,
    },
    /// The memory that the VMM handed over has another size than the image.
    #[error(
        "the VMM has {memory} bytes of memory, and the image {image:?} has {size}: restore it with the memory it was made with"
    )]
    Size {
        /// Bytes of the VMM's memory.
        memory: u64,
        /// The image's header.
        image: PathBuf,
        /// Bytes of the image.
        size: u64,
    },
    /// A fault where the VMM has no memory that it spoke of.
    #[error("a fault at {address:#x}, which is in no mapping that the VMM named")]
    Stray {
        /// The address.
        address: u64,
    },
    /// The kernel told of something that nobody asked it to tell.
    #[error("the userfaultfd reports the event {event:#x}: the VMM asked for one that is not served")]
    Event {
        /// The kernel's number of the event.
        event: u8,
    },
    /// The VMM's memory is gone, and the VMM is not.
    #[error("the VMM still exists {after:?} after its memory was gone: see its state in /proc")]
    Undead {
        /// How long was waited.
        after: Duration,
    },
    /// A thread of the pager panicked, which is a bug in it.
    #[error("the thread that fetches in advance panicked")]
    Panic,
}

impl PagerError {
    pub(super) fn system(action: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System { action, source: source.into() }
    }

    pub(super) fn handshake(problem: impl Into<String>) -> Self {
        Self::Handshake { problem: problem.into() }
    }

    /// The error with all its causes, on one line.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}
