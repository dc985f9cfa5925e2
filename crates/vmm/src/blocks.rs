//! Root disks for a VMM that opens a block device: whoever owns the host's disks makes one of a disk's files.

use std::path::Path;

use async_trait::async_trait;

use crate::DiskFiles;

/// Why a block device could not be made or changed, in the words of whoever makes them.
pub type BlockError = Box<dyn std::error::Error + Send + Sync>;

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNumber {
    /// Kind of device.
    pub major: u32,
    /// Which of them.
    pub minor: u32,
}

/// Whether the host has room for what a guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// So much that nobody need look again soon.
    Plenty,
    /// Enough for the next moments; look again within a tenth of a second.
    Enough,
    /// Not enough: the guest has to stand still before it writes more.
    Full,
    /// The kernel could not write what the guest wrote, and keeps nothing that it has written since the layer below.
    Lost,
}

/// Makes block devices, one for each owner: the id of a machine. All state is the kernel's, so that an agent finds what the
/// one before it has made.
#[async_trait]
pub trait BlockDevices: std::fmt::Debug + Send + Sync {
    /// Makes the device of a disk. On failure nothing of it is left.
    ///
    /// # Errors
    /// Where a file is missing or the kernel refuses.
    async fn attach(&self, owner: &str, disk: DiskFiles<'_>) -> Result<DeviceNumber, BlockError>;

    /// Gets a new empty layer ready for [`push`](Self::push), while the guest runs.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    async fn stage(&self, owner: &str, layer: &Path) -> Result<(), BlockError>;

    /// Has a staged layer take the writes from now on.
    ///
    /// # Errors
    /// As [`attach`](Self::attach); the device is then as it was.
    async fn push(&self, owner: &str, layer: &Path) -> Result<(), BlockError>;

    /// Forgets a staged layer.
    ///
    /// # Errors
    /// Where the kernel refuses.
    async fn unstage(&self, owner: &str, layer: &Path) -> Result<(), BlockError>;

    /// Forgets whatever an agent that is dead has left staged.
    ///
    /// # Errors
    /// As [`unstage`](Self::unstage).
    async fn settle(&self, owner: &str) -> Result<(), BlockError>;

    /// File name of the layer that takes the writes.
    ///
    /// # Errors
    /// Where the owner has no device.
    async fn top(&self, owner: &str) -> Result<String, BlockError>;

    /// Makes the device larger: `bytes` in all.
    ///
    /// # Errors
    /// Where it is larger already, or the kernel refuses.
    async fn grow(&self, owner: &str, bytes: u64) -> Result<(), BlockError>;

    /// Brings what was written to the device to its files.
    ///
    /// # Errors
    /// Where the kernel cannot.
    async fn flush(&self, owner: &str) -> Result<(), BlockError>;

    /// Takes room on the host ahead of what the guest writes, where it is scarce. `dir` has the disk's files.
    ///
    /// # Errors
    /// Where the owner has no device, or its files cannot be read.
    async fn keep_room(&self, owner: &str, dir: &Path) -> Result<Room, BlockError>;

    /// Removes the owner's device; one that is gone already is fine. Its VMM must have ended.
    ///
    /// # Errors
    /// Where the kernel keeps it.
    async fn detach(&self, owner: &str) -> Result<(), BlockError>;
}
