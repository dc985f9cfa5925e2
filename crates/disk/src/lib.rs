//! Copy-on-write root disks of capsules, behind one trait.
//!
//! A template's disk is a read-only base that any number of capsules share; what a capsule writes goes to a file of
//! its own. [`RootDisks`] is what the rest of the platform sees: it makes, opens, measures and deletes such a file.
//! How the two are laid over one another is the driver's business, and [`RootDisk`] tells the VMM what to open:
//!
//! | driver | the capsule's file | what the VMM opens |
//! |---|---|---|
//! | [`Qcow2Disks`] | a qcow2 image whose backing file is the base | the image and the base |
//!
//! A driver that needs a kernel object for each disk (a device-mapper snapshot) sets it up in `create` and `open`,
//! and takes it down in `close`. `open` is called again after a reboot of the host, which keeps files but no mappings.

mod error;
mod qcow2;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

pub use error::DiskError;
pub use qcow2::Qcow2Disks;

/// Bytes of a MiB, the unit of every disk size in the API.
pub const MIB: u64 = 1 << 20;

/// A root disk that is ready to be handed to a VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootDisk {
    /// The capsule's own file, which takes its writes.
    pub overlay: PathBuf,
    /// The raw read-only image below it, absolute.
    pub base: PathBuf,
    /// Capacity as the guest sees it, in bytes.
    pub virtual_bytes: u64,
}

/// Makes and releases root disks of one kind.
#[async_trait]
pub trait RootDisks: std::fmt::Debug + Send + Sync {
    /// Makes the disk `overlay` of `size_mb` MiB over the raw image `base`. What a failed attempt wrote is gone.
    ///
    /// # Errors
    /// [`DiskError`] where the base is missing or larger than the disk, the overlay exists, or the host's disk is full.
    async fn create(&self, overlay: &Path, base: &Path, size_mb: u32) -> Result<RootDisk, DiskError>;

    /// Opens a disk made earlier, perhaps before the host was rebooted.
    ///
    /// # Errors
    /// [`DiskError`] where the file or its base is missing or damaged.
    async fn open(&self, overlay: &Path) -> Result<RootDisk, DiskError>;

    /// Releases what `create` or `open` set up beside the file; the file stays. No VMM may use the disk any more.
    ///
    /// # Errors
    /// [`DiskError`] where the kernel still holds the disk.
    async fn close(&self, overlay: &Path) -> Result<(), DiskError>;

    /// Closes the disk and removes its file; a disk that is gone already counts as deleted.
    ///
    /// # Errors
    /// [`DiskError::Io`] where the file cannot be removed.
    async fn delete(&self, overlay: &Path) -> Result<(), DiskError>;
}

/// Bytes that `path` really takes on the host's disk: its blocks, not its apparent length, for these files are sparse.
///
/// # Errors
/// [`DiskError::Io`] where the file cannot be read.
pub fn allocated_bytes(path: &Path) -> Result<u64, DiskError> {
    let meta = std::fs::metadata(path).map_err(|source| DiskError::io("measure", path, source))?;
    Ok(meta.blocks() * 512)
}
