//! The pager: a process for each machine that fills the memory of a restored guest from its layered image, page by page
//! as the guest touches it.
//!
//! It is a process, because a VMM that waits for a page must not depend on an agent that may be restarted; and one for
//! each machine, because what reads a machine's image has no business with the images of others.
//!
//! ```text
//!   agent                          pager                                VMM
//!     │ Pager::start ── order ──▶ opens the image, gives up root         │
//!     │ ◀──── ready ─────────────── │ ◀─── userfaultfd, where what lies ──│ connects, once
//!     │                             │ ◀─── fault ── blocks of the image ─▶│ for as long as it runs
//!     ▼ may end                     ▼ ends when the VMM's pidfd is readable
//! ```
//!
//! [`Pager::start`] runs a program of the caller's, which calls [`serve`] first thing. What it is to do is in one variable
//! of its environment, with the numbers of the descriptors that it inherits. The handshake is that of Firecracker's
//! userfaultfd backend (`docs/snapshotting/handling-page-faults-on-snapshot-resume.md` in its source).
//!
//! A block that the image has no more say over is *given*: it was copied to the guest, or the VMM dropped it
//! (`MADV_DONTNEED`, a balloon). What is given and missing all the same reads as zeros, as dropped anonymous memory does;
//! never again as what the snapshot had there. One bit for each block holds this, under one lock with the copying itself,
//! so that no copy can come in between a removal and the note of it.
//!
//! A pager that fails says why on its standard error and ends. The guest then stands still at its next missing page,
//! because the VMM holds the userfaultfd too: it never sees wrong content. Whoever supervises [`Pager::exited`] ends it.

mod error;
mod guest;
mod handshake;
mod order;
mod prefetch;
mod serve;
mod start;
mod uffd;

pub use error::PagerError;
pub use serve::serve;
pub use start::{Job, Pager, PagerProgram, PagerRecord};
