//! The files of a root disk, and how they are named.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::DiskError;

/// File name of the raw base of every disk.
pub const BASE: &str = "disk-0";

const PREFIX: &str = "disk-";
const ID_DIGITS: usize = 16;

/// What a layer is, as the end of its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A qcow2 image.
    Qcow2,
    /// A header of ours and an exception store of the device-mapper.
    Cow,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Qcow2, Self::Cow];

    const fn suffix(self) -> &'static str {
        match self {
            Self::Qcow2 => ".qcow2",
            Self::Cow => ".cow",
        }
    }
}

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

/// Whether `name` is one that a layer of a disk may have, of whichever driver.
pub fn is_layer_name(name: &str) -> bool {
    Kind::ALL.into_iter().any(|kind| layer_id(name, kind).is_some())
}

/// The part of a layer's name that no other has: [`ID_DIGITS`] digits of lower case.
pub(crate) fn layer_id(name: &str, kind: Kind) -> Option<&str> {
    let id = name.strip_prefix(PREFIX)?.strip_suffix(kind.suffix())?;
    is_id(id).then_some(id)
}

/// Whether `id` has the form of the unique part of a layer's name.
pub(crate) fn is_id(id: &str) -> bool {
    id.len() == ID_DIGITS && id.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name of the layer whose unique part is `id`.
pub(crate) fn layer_name(id: &str, kind: Kind) -> String {
    format!("{PREFIX}{id}{}", kind.suffix())
}

/// A name that no other layer of any disk has.
pub(crate) fn new_layer_name(kind: Kind) -> String {
    layer_name(&hex::encode(rand::random::<[u8; ID_DIGITS / 2]>()), kind)
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
        for kind in Kind::ALL {
            let (one, two) = (new_layer_name(kind), new_layer_name(kind));
            assert!(is_layer_name(&one) && is_layer_name(&two) && one != two);
            assert_eq!(layer_id(&one, kind).map(|id| layer_name(id, kind)), Some(one));
        }
        assert_eq!(layer_id("disk-0123456789abcdef.cow", Kind::Qcow2), None);
        let long = format!("disk-{}.qcow2", "a".repeat(17));
        for other in [
            BASE,
            "disk-.qcow2",
            "../disk-0123456789abcdef.qcow2",
            "disk-0123456789ABCDEF.qcow2",
            "disk-0123456789abcdef",
            "disk-0123456789abcdef.cow.qcow2",
            &long,
        ] {
            assert!(!is_layer_name(other), "{other}");
        }
    }
}
