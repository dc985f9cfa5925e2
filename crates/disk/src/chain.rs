//! The files of a root disk, and how they are named.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::DiskError;

/// File name of the raw base of every disk.
pub const BASE: &str = "disk-0";

const PREFIX: &str = "disk-";
const SUFFIX: &str = ".qcow2";
const ID_DIGITS: usize = 16;

/// A root disk: files of one directory, all paths absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The raw read-only image at the bottom.
    pub base: PathBuf,
    /// The layers over it, from bottom to top. The last one takes the writes; there is always one.
    pub layers: Vec<PathBuf>,
    /// Capacity as the guest sees it, in bytes.
    pub virtual_bytes: u64,
}

/// What a chain takes on the host's disk, in bytes of allocated blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allocated {
    /// Of files that nobody else has a link of: what deleting the chain would free.
    pub own: u64,
    /// Of files that are linked elsewhere too.
    pub shared: u64,
}

impl Chain {
    /// The layer that takes the writes.
    pub fn top(&self) -> &Path {
        self.layers.last().unwrap_or(&self.base)
    }

    /// The file name of [`top`](Self::top): with the directory, all that a record needs to keep of a chain.
    pub fn top_name(&self) -> &str {
        file_name(self.top())
    }

    /// What the files take on the host's disk.
    ///
    /// # Errors
    /// [`DiskError::Io`] where one cannot be read.
    pub fn allocated(&self) -> Result<Allocated, DiskError> {
        let mut sum = Allocated::default();
        for path in self.files() {
            let meta = std::fs::metadata(path).map_err(|source| DiskError::io("measure", path, source))?;
            let bytes = meta.blocks() * 512;
            if meta.nlink() > 1 { sum.shared += bytes } else { sum.own += bytes }
        }
        Ok(sum)
    }

    /// Every file, from bottom to top.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.base).chain(&self.layers)
    }

    /// The directory of all files.
    pub(crate) fn dir(&self) -> &Path {
        self.base.parent().unwrap_or(Path::new("/"))
    }
}

/// Whether `name` is one that a layer of a disk may have.
pub fn is_layer_name(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    digits
        .is_some_and(|id| id.len() == ID_DIGITS && id.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')))
}

/// A name that no other layer of any disk has.
pub(crate) fn new_layer_name() -> String {
    format!("{PREFIX}{}{SUFFIX}", hex::encode(rand::random::<[u8; ID_DIGITS / 2]>()))
}

/// The last component of a path of this crate's making, which is always text.
pub(crate) fn file_name(path: &Path) -> &str {
    path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layers_name_is_recognised_and_no_other() {
        let (one, two) = (new_layer_name(), new_layer_name());
        assert!(is_layer_name(&one) && is_layer_name(&two) && one != two);
        let long = format!("disk-{}.qcow2", "a".repeat(17));
        for other in
            [BASE, "disk-.qcow2", "../disk-0123456789abcdef.qcow2", "disk-0123456789ABCDEF.qcow2", &long]
        {
            assert!(!is_layer_name(other), "{other}");
        }
    }
}
