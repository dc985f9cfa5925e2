//! Copy-on-write root disks of capsules, behind one trait.
//!
//! A root disk is a [`Chain`] of files in one directory: a raw base, and layers over it, each of which holds what was
//! written since the layer below it was frozen. Only the last one is written to.
//!
//! ```text
//!   disk-0  ◀─  disk-5f0c…  ◀─  disk-91aa…  ◀─  disk-07d3…
//!   raw base     frozen          frozen          takes the writes
//! ```
//!
//! Everything but the last file is immutable, so it may be shared: a template, a clone and the capsule that both came
//! from hold hard links of the same files, and the file system's link count is the reference count. Deleting one of
//! them unlinks names and can hurt no other. For that to work a layer names what it builds on by a bare file name, and
//! a layer keeps its name wherever it is linked: the base is always [`BASE`], a layer has 64 random bits in its name.
//!
//! [`RootDisks`] makes, grows, shares and merges chains. [`Qcow2Disks`] does so with qcow2 layers, which a VMM opens by
//! itself, [`CowDisks`] with exception stores of the kernel's device-mapper: of those [`Devices`] makes the block device
//! that a VMM opens, and changes what is behind it while it runs.

mod chain;
mod cow;
mod devices;
mod driver;
mod error;
mod files;
mod qcow2;
mod walk;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

pub use chain::{Allocated, BASE, Chain, is_layer_name};
pub use cow::{AHEAD, CowDisks, PLENTY, Room, keep_room};
pub use devices::{DeviceNumber, Devices, Used};
pub use error::DiskError;
pub use qcow2::Qcow2Disks;

/// Bytes of a MiB, the unit of every disk size in the API.
pub const MIB: u64 = 1 << 20;

/// Layers at which a chain is worth flattening. Each one costs the VMM a file and the guest a look-up at the first read
/// of a place; a chain may have more, up to [`MOST_LAYERS`].
pub const MAX_DEPTH: usize = 8;

/// Layers that a chain can have. A directory that shows more was not made by this crate.
pub const MOST_LAYERS: usize = 64;

/// Makes and changes root disks of one kind.
///
/// A call that fails, or whose future is dropped, leaves none of the files that it made.
#[async_trait]
pub trait RootDisks: std::fmt::Debug + Send + Sync {
    /// Makes a disk of `size_mb` MiB in `dir`: the raw image `base` under the name [`BASE`], and an empty writable
    /// layer over it. The base is linked; it is copied, sparsely, where the file system cannot link it.
    ///
    /// # Errors
    /// [`DiskError`] where the base is missing or larger than the disk, `dir` has a disk, or the host's disk is full.
    async fn create(&self, dir: &Path, base: &Path, size_mb: u32) -> Result<Chain, DiskError>;

    /// Freezes the top of `chain` and puts a new empty layer on it, in the same directory. `size_mb` grows the disk.
    /// A VMM may be writing to the former top still: it must be switched to the new one before it writes again.
    ///
    /// # Errors
    /// [`DiskError`] where `size_mb` is less than the disk has, the chain has [`MOST_LAYERS`], or the host's disk is
    /// full.
    async fn push(&self, chain: &Chain, size_mb: Option<u32>) -> Result<Chain, DiskError>;

    /// Freezes every layer of `chain` and shares all its files with another directory, under the same names. Nothing
    /// may be written to the top any more, in neither directory: [`push`](Self::push) comes next.
    ///
    /// # Errors
    /// [`DiskError`] where a file is missing, `dir` has one of that name, or a copy finds the host's disk full.
    async fn link(&self, chain: &Chain, dir: &Path) -> Result<Chain, DiskError>;

    /// The chain in `dir` whose top is the file named `top`. Reads headers and trusts none.
    ///
    /// # Errors
    /// [`DiskError`] where a file is missing, damaged, of another make, or builds on something outside of `dir`.
    async fn open(&self, dir: &Path, top: &str) -> Result<Chain, DiskError>;

    /// Merges all layers above the first `keep` into a new writable one, durable when this returns, and leaves the old
    /// files alone: the caller commits the new chain to its record, then calls
    /// [`remove_unlisted`](Self::remove_unlisted). With nothing to merge (fewer than two layers) the same chain comes
    /// back. No VMM may be writing to the chain.
    ///
    /// # Errors
    /// [`DiskError`] where a layer is damaged or the host's disk is full.
    async fn flatten(&self, chain: &Chain, keep: usize) -> Result<Chain, DiskError>;

    /// Makes all layers and their names durable. What a VMM holds in its own memory is not part of that: stop it first.
    ///
    /// # Errors
    /// [`DiskError`] where the host's disk fails.
    async fn sync(&self, chain: &Chain) -> Result<(), DiskError>;

    /// Removes the disk files of `dir` that are not part of `keep`: what a merge made superfluous, what a crash left.
    /// Files that are not named like those of a disk stay.
    ///
    /// # Errors
    /// [`DiskError::Io`] where a file cannot be removed.
    async fn remove_unlisted(&self, dir: &Path, keep: &Chain) -> Result<(), DiskError>;
}

/// Bytes that `path` really takes on the host's disk: its blocks, not its apparent length, for these files are sparse.
///
/// # Errors
/// [`DiskError::Io`] where the file cannot be read.
pub fn allocated_bytes(path: &Path) -> Result<u64, DiskError> {
    let meta = std::fs::metadata(path).map_err(|source| DiskError::io("measure", path, source))?;
    Ok(meta.blocks() * 512)
}

/// The absolute form of a directory that must exist.
fn directory(dir: &Path) -> Result<PathBuf, DiskError> {
    std::fs::canonicalize(dir).map_err(|source| DiskError::io("open", dir, source))
}
