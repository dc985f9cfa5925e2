//! Root disks as exception stores over a raw base, which the device-mapper makes one device of.
//!
//! A layer is one file. It starts with a block of ours, [`header`], that says how large the disk is and what it builds
//! on; then follows a persistent exception store of the kernel's snapshot target, [`store`]. The loop device that the
//! kernel sees starts behind the block ([`crate::Devices`]).
//!
//! ```text
//!   disk-5f0c….cow:  header │ exception store: what the guest wrote since the layer below was frozen
//!                    0        4096
//! ```
//!
//! The kernel writes to the top of a chain only. Everything else is done here on the files of a disk that is not
//! attached, or on those layers of one that is frozen: an empty layer takes three small writes, and a merge needs no
//! device. The files are as long as they can ever become, and nearly all of that is a hole.

mod header;
mod layer;
mod merge;
mod room;
mod store;

use std::path::Path;

use async_trait::async_trait;

pub use room::{AHEAD, PLENTY, Room, keep_room};

pub(crate) use header::{BLOCK, MOST_BYTES};
pub(crate) use layer::{Layer, grow};
pub(crate) use room::{give_back, open_to_write};
pub(crate) use store::{CHUNK, CHUNK_SECTORS};

use crate::chain::Kind;
use crate::driver::{Layers, Merge};
use crate::files::Made;
use crate::walk::Described;
use crate::{DiskError, MIB};

/// The driver; it holds nothing.
///
/// A layer has room for what a guest writes first, where there is little left: see [`keep_room`].
#[derive(Debug, Clone, Default)]
pub struct CowDisks;

#[async_trait]
impl Layers for CowDisks {
    const KIND: Kind = Kind::Cow;
    const MOST_MB: u64 = MOST_BYTES / MIB;
    const MERGE: Merge = merge::merge;

    fn write_empty(path: &Path, virtual_bytes: u64, below: &Path, made: &mut Made) -> Result<(), DiskError> {
        layer::Writer::create(path, virtual_bytes, below, made)?.finish().map(drop)
    }

    fn describe(path: &Path) -> Result<Described, DiskError> {
        let header::Header { virtual_bytes, below } = Layer::open(path)?.header;
        Ok(Described { virtual_bytes, below })
    }

    fn check_base(path: &Path, bytes: u64) -> Result<(), DiskError> {
        // A block device has no half sectors: the end of the image would be missing.
        match bytes.is_multiple_of(512) {
            true => Ok(()),
            false => Err(DiskError::OddBase { path: path.to_path_buf(), bytes }),
        }
    }

    async fn check_merged(&self, _layer: &Path) -> Result<(), DiskError> {
        // The merge has read it again already.
        Ok(())
    }
}
