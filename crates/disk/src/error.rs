//! What can go wrong with a disk, each with what to do about it.

use std::path::{Path, PathBuf};

/// A disk operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is no `qemu-img` on this machine.
    #[error("qemu-img is not installed: apt-get install qemu-utils")]
    ToolMissing,
    /// `qemu-img` ran and refused; its own words follow.
    #[error("qemu-img could not {action} {path:?}: {message}")]
    Tool {
        /// What was being done.
        action: &'static str,
        /// The file in question.
        path: PathBuf,
        /// The last lines that the tool wrote.
        message: String,
    },
    /// The file system that holds the disk has no room.
    #[error("no space is left for {path:?}: free some, or move the data directory to a larger disk")]
    Full {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// An image that the disk builds on is not there.
    #[error("the image {path:?}, which the disk builds on, is missing: rebuild or fetch its template")]
    BackingMissing {
        /// Where the image should be.
        path: PathBuf,
    },
    /// The disk would be smaller than what is in it.
    #[error(
        "a disk of {asked_mb} MiB cannot hold the {base_mb} MiB that it builds on: ask for at least that"
    )]
    TooSmall {
        /// MiB asked for.
        asked_mb: u64,
        /// MiB of the base image or of the disk so far, rounded up.
        base_mb: u64,
    },
    /// The disk would be larger than the format allows.
    #[error("a disk of {asked_mb} MiB is too large: {most_mb} MiB is the most")]
    TooLarge {
        /// MiB asked for.
        asked_mb: u64,
        /// MiB of the largest disk.
        most_mb: u64,
    },
    /// The chain has as many layers as it can.
    #[error("{path:?} has {layers} layers below it, the most there can be: flatten the disk first")]
    TooDeep {
        /// The top of the chain.
        path: PathBuf,
        /// Layers that it has.
        layers: usize,
    },
    /// A file with that name exists.
    #[error("{path:?} exists already: delete it first, a disk is never overwritten")]
    Exists {
        /// The path that is taken.
        path: PathBuf,
    },
    /// `path` is not a sound layer of this driver's kind.
    #[error("{path:?} is not a layer of a disk, or it is damaged: {reason}")]
    NotALayer {
        /// The file in question.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The base is no whole number of sectors.
    #[error("the image {path:?} has {bytes} bytes, which is no multiple of 512: pad it with zeros to one")]
    OddBase {
        /// The image.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// This machine's kernel lacks a part that devices are made of.
    #[error("{part} is missing: {cure}")]
    KernelLacks {
        /// What is missing.
        part: &'static str,
        /// What to do about it.
        cure: &'static str,
        /// What came of using it.
        source: std::io::Error,
    },
    /// A name that devices cannot have.
    #[error(
        "{name:?} cannot name a device: take letters, digits and '-', {most} at most, not like a layer's at the end"
    )]
    BadName {
        /// The name.
        name: String,
        /// Characters that it may have.
        most: usize,
    },
    /// The owner has a disk already.
    #[error("the device {device:?} exists already: detach it first")]
    Attached {
        /// Its name in the device-mapper.
        device: String,
    },
    /// There is no such device.
    #[error("there is no device {device:?}: attach the disk, or stage the layer, first")]
    NotAttached {
        /// Its name in the device-mapper.
        device: String,
    },
    /// Somebody has it open still.
    #[error(
        "{what:?} is still in use after {seconds} s: end the VMM or whatever else has it open, then try again"
    )]
    Busy {
        /// A device or a file.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The device-mapper has something else under the name than this crate makes.
    #[error(
        "the device {device:?} is not as this program makes it: {reason}; detach the disk and attach it again"
    )]
    StrangeDevice {
        /// Its name in the device-mapper.
        device: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A layer is lost.
    #[error(
        "the kernel could not write to {layer:?} and gave it up, with all that was written since the layer below was frozen"
    )]
    StoreLost {
        /// File name of the layer.
        layer: String,
    },
    /// The kernel refused something about a device.
    #[error("could not {action} the device {device:?} (dmesg may say more)")]
    Device {
        /// What was being done.
        action: &'static str,
        /// Its name in the device-mapper, or the file of a loop device.
        device: String,
        /// The kernel's reason.
        source: std::io::Error,
    },
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

impl DiskError {
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        let (path, source) = (path.to_path_buf(), source.into());
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full { path },
            std::io::ErrorKind::AlreadyExists => Self::Exists { path },
            _ => Self::Io { action, path, source },
        }
    }

    pub(crate) fn device(action: &'static str, device: &str, source: impl Into<std::io::Error>) -> Self {
        Self::Device { action, device: device.to_owned(), source: source.into() }
    }

    pub(crate) fn not_a_layer(path: &Path, reason: &'static str) -> Self {
        Self::NotALayer { path: path.to_path_buf(), reason }
    }
}
