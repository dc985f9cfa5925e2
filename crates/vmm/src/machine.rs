//! The two traits, and the shapes that cross them.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Accelerator, VmmError, process};

/// Everything a VMM needs to boot one machine. All paths are absolute paths on the host.
#[derive(Debug)]
pub struct LaunchSpec {
    /// Unique among the machines of this host; names the cgroup.
    pub id: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// An uncompressed `vmlinux` with a PVH entry, or a bzImage.
    pub kernel: PathBuf,
    /// The initial file system, padded to [`INITRD_ALIGNMENT`](crate::qemu::INITRD_ALIGNMENT).
    pub initrd: PathBuf,
    /// Kernel command line; the driver appends what its machine model needs.
    pub cmdline: String,
    /// The capsule's own copy-on-write disk. Given to `uid`.
    pub disk: PathBuf,
    /// The raw read-only image below `disk`. `uid` must be able to read it.
    pub disk_base: PathBuf,
    /// File behind the guest's memory, mapped privately: it is never written. Made (sparse) where it is missing.
    pub memory_file: PathBuf,
    /// The capsule's directory. It becomes readable to `gid`; `console.log` and `run/` are made in it.
    pub dir: PathBuf,
    /// The network namespace to start in, a path such as `/run/netns/x`.
    pub netns: PathBuf,
    /// The TAP device, open.
    pub tap: OwnedFd,
    /// User that the VMM runs as, not 0 and of no other machine.
    pub uid: u32,
    /// Group that the VMM runs as, not 0 and of no other machine.
    pub gid: u32,
    /// cgroup (version 2) in which the machine's own is made; `None` where the host has no version 2 hierarchy.
    pub cgroup_parent: Option<PathBuf>,
    /// What executes the guest's instructions.
    pub accel: Accelerator,
    /// Size of the translation buffer in MiB, for software emulation.
    pub tb_size_mb: u32,
}

/// What must be kept to find a running VMM again after the agent was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The driver that made it.
    pub driver: String,
    /// [`LaunchSpec::id`].
    pub id: String,
    /// Process id.
    pub pid: u32,
    /// Start of the process in clock ticks since boot; with the boot's id it tells a recycled process id.
    pub start_time: u64,
    /// The kernel's id of the boot in which the process was started.
    pub boot_id: String,
    /// Socket of the VMM's control protocol.
    pub socket: PathBuf,
    /// The machine's own cgroup.
    pub cgroup: Option<PathBuf>,
}

impl MachineRecord {
    /// Whether the process of this record, and not another with its id, still runs.
    pub fn is_alive(&self) -> bool {
        process::runs(self.pid, self.start_time, &self.boot_id)
    }
}

/// How a VMM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// [`Machine::kill`] or [`Vmm::discard`] ended it.
    Killed,
    /// It ended by itself. QEMU exits with 0 when the guest powers off, reboots or panics.
    Exited {
        /// The exit code.
        code: i32,
    },
    /// A signal that nobody here sent.
    Signalled {
        /// The signal's number.
        signal: i32,
    },
    /// It ended, and another process (init, after a restart of the agent) has its status.
    Unobserved,
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => f.write_str("killed"),
            Self::Exited { code } => write!(f, "exited with code {code}"),
            Self::Signalled { signal } => write!(f, "ended by signal {signal}"),
            Self::Unobserved => f.write_str("ended unobserved"),
        }
    }
}

/// Whether the guest's CPUs run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// They do.
    Running,
    /// Stopped by [`Machine::pause`].
    Paused,
    /// Any other state, in the VMM's own word.
    Other(String),
}

/// A kind of VMM.
#[async_trait]
pub trait Vmm: fmt::Debug + Send + Sync {
    /// Starts a machine. On failure nothing is left running, and the error carries what the VMM said.
    ///
    /// # Errors
    /// [`VmmError`] where the specification cannot be used or the VMM does not come up.
    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Machine>, VmmError>;

    /// Takes over a machine that an earlier agent started.
    ///
    /// # Errors
    /// [`VmmError::Gone`] where the process has ended; another error where it runs but does not answer. In both
    /// cases [`Vmm::discard`] removes what is left.
    async fn adopt(&self, record: MachineRecord) -> Result<Arc<dyn Machine>, VmmError>;

    /// Ends the machine of a record, if it still runs, and removes its cgroup and socket. Idempotent.
    ///
    /// # Errors
    /// [`VmmError::Unkillable`] where the kernel does not let the process go.
    async fn discard(&self, record: &MachineRecord) -> Result<(), VmmError>;
}

/// A running VMM with one guest. Dropping the handle leaves it running.
#[async_trait]
pub trait Machine: fmt::Debug + Send + Sync {
    /// What to keep in order to adopt it later.
    fn record(&self) -> &MachineRecord;

    /// Its process id.
    fn pid(&self) -> u32 {
        self.record().pid
    }

    /// Waits until the VMM has ended, in whatever way. Any number of callers may wait.
    async fn exited(&self) -> ExitReason;

    /// Ends the VMM at once, waits until it is gone, and removes its cgroup and socket. Idempotent, and due also
    /// after the VMM has ended by itself.
    ///
    /// # Errors
    /// [`VmmError::Unkillable`] where the kernel does not let the process go.
    async fn kill(&self) -> Result<(), VmmError>;

    /// Stops the guest's CPUs.
    ///
    /// # Errors
    /// [`VmmError::Qmp`] where the VMM does not do so.
    async fn pause(&self) -> Result<(), VmmError>;

    /// Lets the guest's CPUs run again.
    ///
    /// # Errors
    /// [`VmmError::Qmp`] where the VMM does not do so.
    async fn cont(&self) -> Result<(), VmmError>;

    /// Asks the VMM for its state.
    ///
    /// # Errors
    /// [`VmmError::Qmp`] where it does not answer.
    async fn status(&self) -> Result<RunState, VmmError>;

    /// CPU time that the VMM has used since its start, guest included.
    ///
    /// # Errors
    /// [`VmmError::Io`] where the process is gone.
    fn cpu_time(&self) -> Result<std::time::Duration, VmmError>;

    /// Bytes of physical memory that the VMM has mapped, shared pages included.
    ///
    /// # Errors
    /// [`VmmError::Io`] where the process is gone.
    fn resident_bytes(&self) -> Result<u64, VmmError>;
}
