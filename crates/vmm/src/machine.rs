//! The two traits, and the shapes that cross them.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use wrenn_image::Image;

use crate::{Accelerator, VmmError, process};

/// Everything a VMM needs to start one machine. All paths are absolute paths on the host.
#[derive(Debug)]
pub struct LaunchSpec {
    /// Unique among the machines of this host; names the cgroup.
    pub id: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// What the guest begins with.
    pub start: Start,
    /// The machine's directory. It becomes readable to `gid`; `console.log` and `run/` are made in it. It may be renamed
    /// while the machine runs: the VMM holds on to the directory itself.
    pub dir: PathBuf,
    /// The network namespace to start in, a path such as `/run/netns/x`.
    pub netns: PathBuf,
    /// The TAP device, open.
    pub tap: OwnedFd,
    /// Hardware address of the guest. One that is brought back from a snapshot has that of the snapshot.
    pub mac: [u8; 6],
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
    /// Bytes a second that the guest may send; `None` for any number. Kept to by drivers whose VMM can.
    pub egress_bytes_per_second: Option<u64>,
}

/// What a guest begins with.
#[derive(Debug, Clone)]
pub enum Start {
    /// A power-on.
    Boot {
        /// An uncompressed `vmlinux` with a PVH entry, or a bzImage.
        kernel: PathBuf,
        /// The initial file system, padded to [`INITRD_ALIGNMENT`](crate::qemu::INITRD_ALIGNMENT).
        initrd: PathBuf,
        /// Kernel command line; the driver appends what its machine model needs.
        cmdline: String,
        /// The sparse file behind the guest's memory, in the machine's directory. Made here, mapped privately, never
        /// written.
        memory: PathBuf,
    },
    /// A snapshot that [`Machine::load_memory`] and [`Machine::load_devices`] bring.
    Restore {
        /// The base of the snapshot's memory image, mapped privately and never written. `uid` must be able to read it.
        base: PathBuf,
    },
}

impl Start {
    /// The file behind the guest's memory.
    pub(crate) fn memory(&self) -> &Path {
        match self {
            Self::Boot { memory, .. } => memory,
            Self::Restore { base } => base,
        }
    }
}

/// The files of a root disk, each layer lying over the one before it.
#[derive(Debug, Clone, Copy)]
pub struct DiskFiles<'a> {
    /// The raw image at the bottom.
    pub base: &'a Path,
    /// Layers, bottom to top. The last one takes the guest's writes, the others are only read.
    pub layers: &'a [PathBuf],
}

/// Where a snapshot's memory goes.
#[derive(Debug, Clone)]
pub enum MemoryTarget {
    /// A complete new base at this path.
    Base(PathBuf),
    /// A layer at `path` with what differs from `parent`, whose base is the one that the machine maps.
    Layer {
        /// The file to make.
        path: PathBuf,
        /// What is saved already.
        parent: Arc<Image>,
    },
}

/// What saving a guest's memory took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemorySaved {
    /// Blocks that the guest has written since its base was made; each was looked at.
    pub dirty_blocks: u64,
    /// Blocks whose data went to disk.
    pub data_blocks: u64,
    /// Bytes of the file.
    pub bytes: u64,
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
    /// The file behind the guest's memory; its name may be gone while the machine runs.
    pub memory: FileKey,
}

/// A file on this machine, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileKey {
    /// Its file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

impl FileKey {
    /// The file with this description.
    pub fn of(meta: &std::fs::Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}

impl MachineRecord {
    /// Refuses a record of another driver's machine.
    pub(crate) fn expect_driver(&self, wanted: &'static str) -> Result<(), VmmError> {
        if self.driver == wanted {
            return Ok(());
        }
        Err(VmmError::ForeignRecord { found: self.driver.clone(), wanted })
    }

    /// The record of the machine when its directory `from` has become `to`.
    #[must_use]
    pub fn moved(mut self, from: &Path, to: &Path) -> Self {
        if let Ok(socket) = self.socket.strip_prefix(from) {
            self.socket = to.join(socket);
        }
        self
    }

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
    /// The process that served its memory ended, and it was ended too.
    MemoryLost,
    /// The host could not write what the guest had written to its disk, and it was ended.
    DiskLost,
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => f.write_str("killed"),
            Self::Exited { code } => write!(f, "exited with code {code}"),
            Self::Signalled { signal } => write!(f, "ended by signal {signal}"),
            Self::Unobserved => f.write_str("ended unobserved"),
            Self::MemoryLost => f.write_str("ended because nobody served its memory any more"),
            Self::DiskLost => f.write_str(
                "ended because the host could not write to its disk, which is lost with that: look for a full disk or for errors of it in the kernel's log",
            ),
        }
    }
}

/// Whether the guest's CPUs run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// They do.
    Running,
    /// They do not: stopped by [`Machine::pause`], or not yet started.
    Paused,
    /// They do not, because a write of theirs found the host's disk full: [`Machine::cont`] does it once more.
    DiskFull,
    /// Any other state, in the VMM's own word.
    Other(String),
}

/// A kind of VMM.
#[async_trait]
pub trait Vmm: fmt::Debug + Send + Sync {
    /// Starts a machine, stopped and without a disk: [`Machine::attach_disk`], for a snapshot also
    /// [`Machine::load_memory`] and then [`Machine::load_devices`], then [`Machine::cont`]. On failure nothing is left
    /// running, and the error carries what the VMM said.
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

    /// Gives a machine that has not run yet its root disk. The VMM gets open descriptors; the files need not be
    /// readable to its user.
    ///
    /// # Errors
    /// [`VmmError`] where a file cannot be opened, or the VMM refuses it.
    async fn attach_disk(&self, disk: DiskFiles<'_>) -> Result<(), VmmError>;

    /// Opens a new empty layer that [`push_disk`](Self::push_disk) is going to put over the disk, so that this need not be
    /// done while the guest stands still. The layer's backing file must be what is on top now.
    ///
    /// # Errors
    /// As [`Machine::attach_disk`].
    async fn stage_disk(&self, layer: &Path) -> Result<(), VmmError>;

    /// Puts a staged layer over the disk of a stopped machine: from now on it takes the guest's writes, and what was on top
    /// is only read.
    ///
    /// # Errors
    /// As [`Machine::attach_disk`]; the disk is then as it was.
    async fn push_disk(&self, layer: &Path) -> Result<(), VmmError>;

    /// Closes a staged layer that was not pushed.
    ///
    /// # Errors
    /// [`VmmError`] where it was, or was never staged.
    async fn unstage_disk(&self, layer: &Path) -> Result<(), VmmError>;

    /// The layer that takes the guest's writes, as the file name it was attached by.
    ///
    /// # Errors
    /// [`VmmError`] where the VMM does not say.
    async fn disk_top(&self) -> Result<String, VmmError>;

    /// Changes the capacity of the root disk; the guest is told.
    ///
    /// # Errors
    /// [`VmmError`] where the VMM refuses.
    async fn resize_disk(&self, bytes: u64) -> Result<(), VmmError>;

    /// Writes the state of CPUs and devices of a stopped machine to a new file.
    ///
    /// # Errors
    /// [`VmmError`] where the file cannot be written or the VMM refuses.
    async fn save_devices(&self, path: &Path) -> Result<(), VmmError>;

    /// Writes the guest's memory to a new file; [`Machine::save_devices`] comes after it. Of a machine that runs, each block is as it was at some moment during
    /// the call.
    ///
    /// # Errors
    /// [`VmmError`] where the file cannot be written or the process is gone. What was written is removed.
    async fn save_memory(&self, target: MemoryTarget) -> Result<MemorySaved, VmmError>;

    /// Brings a snapshot's memory into a machine that was started for it and has not run: what the layers of `image` put
    /// over the base that the machine maps. Needs no disk yet.
    ///
    /// # Errors
    /// [`VmmError`] where a file is damaged or does not fit the machine, which is then of no use any more.
    async fn load_memory(&self, image: Arc<Image>) -> Result<(), VmmError>;

    /// Brings CPUs and devices, the last part of a snapshot, from the file that [`Machine::save_devices`] wrote: memory and
    /// disk are there by now. The machine stays stopped.
    ///
    /// # Errors
    /// As [`Machine::load_memory`].
    async fn load_devices(&self, devices: &Path) -> Result<(), VmmError>;

    /// Version of the VMM that runs, where that may be another than its driver found at its start.
    fn vmm_version(&self) -> Option<&str> {
        None
    }

    /// Whether [`Machine::save_memory`] of a machine that runs saves time that it would stand still. Where it does not, only
    /// a stopped one can be saved.
    fn copies_while_running(&self) -> bool {
        true
    }

    /// Replaces what the machine's metadata service answers to the guest; the data is an object. Without one this does
    /// nothing.
    ///
    /// # Errors
    /// [`VmmError`] where the VMM refuses.
    async fn set_metadata(&self, data: &serde_json::Value) -> Result<(), VmmError> {
        let _nobody_asks = data;
        Ok(())
    }

    /// Stops the guest's CPUs. What the guest has written is with the disk's files then.
    ///
    /// # Errors
    /// [`VmmError`] where the VMM does not do so.
    async fn pause(&self) -> Result<(), VmmError>;

    /// Lets the guest's CPUs run again.
    ///
    /// # Errors
    /// [`VmmError`] where the VMM does not do so.
    async fn cont(&self) -> Result<(), VmmError>;

    /// Asks the VMM for its state.
    ///
    /// # Errors
    /// [`VmmError`] where it does not answer.
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
