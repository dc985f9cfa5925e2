//! What can go wrong with a VMM, each with what to do about it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::blocks::BlockError;
use crate::firecracker::ApiError;
use crate::qmp::QmpError;

/// A VMM operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// There is no VMM binary on this machine.
    #[error("{binary:?} is not installed: {cure}")]
    BinaryMissing {
        /// What was looked for.
        binary: PathBuf,
        /// How to install it.
        cure: String,
    },
    /// The binary answered something that no version of this VMM says.
    #[error("{binary:?} does not say its version (it said {said:?}): name another one")]
    Version {
        /// What was asked.
        binary: PathBuf,
        /// Its first line.
        said: String,
    },
    /// A VMM that cannot do what it is needed for.
    #[error("{binary:?} has version {found}, and {needed} or newer is needed: {cure}")]
    TooOld {
        /// The binary.
        binary: PathBuf,
        /// Its version.
        found: String,
        /// The first version that can.
        needed: String,
        /// Where a newer one is.
        cure: String,
    },
    /// KVM was demanded but the machine has none.
    #[error("KVM was demanded but {reason}: set WRENN_ACCEL=auto or tcg")]
    NoKvm {
        /// What is missing.
        reason: String,
    },
    /// A value that is none of the accelerator choices.
    #[error("an accelerator is one of auto, kvm and tcg, not {found:?}")]
    UnknownAccelerator {
        /// What was given.
        found: String,
    },
    /// The kernel cannot page memory in for a process without privileges.
    #[error(
        "/dev/userfaultfd is missing: use Linux 6.1 or newer with CONFIG_USERFAULTFD, or set WRENN_MEMORY_RESTORE=mapped"
    )]
    NoUserfaultfd {
        /// What opening it said.
        source: std::io::Error,
    },
    /// The VMM would run as root.
    #[error(
        "a VMM must not run as root, not uid {uid} and gid {gid}: give each capsule ids of its own above 0"
    )]
    Privileged {
        /// User asked for.
        uid: u32,
        /// Group asked for.
        gid: u32,
    },
    /// An id that cannot name a cgroup.
    #[error("{id:?} cannot be a machine's id: use letters, digits, `-` and `_`")]
    BadId {
        /// The id.
        id: String,
    },
    /// A path in the specification cannot be used.
    #[error("{path:?} cannot be used as {what}: {reason}")]
    BadPath {
        /// Its part in the specification.
        what: &'static str,
        /// The path itself.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The VMM ended before it could be spoken to.
    #[error("the VMM ended at its start ({exit}); it said: {said}")]
    Launch {
        /// How it ended.
        exit: String,
        /// The end of its standard error.
        said: String,
    },
    /// The VMM did not answer in time after its start, and was killed.
    #[error("the VMM did not answer within {after:?} of its start and was killed; it said: {said}")]
    Unresponsive {
        /// How long was waited.
        after: Duration,
        /// The end of its standard error.
        said: String,
    },
    /// The VMM has no disk attached.
    #[error("the machine has no root disk")]
    NoDisk,
    /// The guest's memory is not where it should be in the VMM.
    #[error("process {pid} does not map its guest's memory as it was told to")]
    NoMemory {
        /// The VMM.
        pid: u32,
    },
    /// A snapshot of another size.
    #[error(
        "the snapshot has {image} bytes of memory and the machine {machine}: restore it with the memory it was made with"
    )]
    MemorySize {
        /// Bytes of the snapshot.
        image: u64,
        /// Bytes of the machine.
        machine: u64,
    },
    /// The VMM did not take the state of its devices.
    #[error("the VMM did not take the state of its devices from {path:?}; it said: {said}")]
    Restore {
        /// The file.
        path: PathBuf,
        /// The end of its standard error.
        said: String,
    },
    /// A memory image that cannot be read or written.
    #[error("the guest's memory could not be read or written")]
    Image(#[from] wrenn_image::ImageError),
    /// The process of a record does not run any more.
    #[error("process {pid} of machine {id} is gone")]
    Gone {
        /// The machine's id.
        id: String,
        /// Its process id when it ran.
        pid: u32,
    },
    /// A killed process did not go away.
    #[error("process {pid} still exists {after:?} after SIGKILL: the kernel holds it, see /proc/{pid}/stack")]
    Unkillable {
        /// The process.
        pid: u32,
        /// How long was waited.
        after: Duration,
    },
    /// The record is of another driver's machine.
    #[error("the record is of a machine of the driver {found:?}, not {wanted:?}")]
    ForeignRecord {
        /// The record's driver.
        found: String,
        /// This driver.
        wanted: &'static str,
    },
    /// The VMM refused or did not answer a command.
    #[error("the VMM did not carry out a command")]
    Qmp(#[from] QmpError),
    /// Firecracker refused or did not answer a request.
    #[error("the VMM did not carry out a request")]
    Api(#[from] ApiError),
    /// The block device of the root disk.
    #[error("the machine's disk could not be used")]
    Disk(#[source] BlockError),
    /// The process that served the guest's memory has ended.
    #[error("nobody serves the guest's memory any more; what was said last: {said}")]
    MemoryLost {
        /// The end of what it and the VMM wrote.
        said: String,
    },
    /// The operating system refused.
    #[error("could not {action} {path:?}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The process that serves a restored guest's memory did not come up.
    #[error("the pager of the guest's memory did not start ({exit}); it said: {said}")]
    Pager {
        /// How it ended.
        exit: String,
        /// Its own words, which name the cure.
        said: String,
    },
}

impl From<BlockError> for VmmError {
    fn from(error: BlockError) -> Self {
        Self::Disk(error)
    }
}

impl VmmError {
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::Io { action, path: path.to_path_buf(), source: source.into() }
    }
}
