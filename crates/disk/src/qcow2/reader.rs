//! Reads layers: their headers to walk a chain, and their tables to merge them.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::format::{CLUSTER, Format, Header, L2_ENTRIES};
use crate::chain::BASE;
use crate::walk::Described;
use crate::{DiskError, files};

/// Bits 9 to 55 of a table's entry: where in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 62 of a second-level entry.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a second-level entry: the cluster reads as zeros, whatever is below.
pub(super) const ZERO: u64 = 1;

/// What a layer has at a cluster of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell {
    /// Nothing: what is below shows.
    Clear,
    /// Zeros.
    Zero,
    /// The cluster at this offset of the file.
    Data(u64),
}

/// A layer that is open to read.
#[derive(Debug)]
pub(super) struct Layer {
    path: PathBuf,
    file: File,
    /// What it says of itself.
    pub(super) header: Header,
}

impl Layer {
    /// Opens the layer and reads its header.
    pub(super) fn open(path: &Path) -> Result<Self, DiskError> {
        let failed = |source| DiskError::io("open", path, source);
        let file = files::open(path).map_err(failed)?;
        let mut first = vec![0; 1 << 16];
        let length = files::read_up_to(&file, &mut first, 0).map_err(failed)?;
        let header =
            Header::decode(&first[..length]).map_err(|reason| DiskError::not_a_layer(path, reason))?;
        Ok(Self { path: path.to_path_buf(), file, header })
    }

    /// The first-level table.
    pub(super) fn l1(&self) -> Result<Vec<u64>, DiskError> {
        self.table(self.header.l1_offset, self.header.l1_entries())
    }

    /// The second-level table that an entry of the first names, if any.
    pub(super) fn l2(&self, entry: u64) -> Result<Option<Vec<u64>>, DiskError> {
        match entry & OFFSET {
            0 => Ok(None),
            offset if offset.is_multiple_of(CLUSTER) => self.table(offset, L2_ENTRIES).map(Some),
            _ => Err(self.damaged("a table is at an impossible place")),
        }
    }

    /// What an entry of a second-level table means.
    pub(super) fn cell(&self, entry: u64) -> Result<Cell, DiskError> {
        if entry & COMPRESSED != 0 {
            return Err(self.damaged("it has compressed clusters, which no VMM of this platform writes"));
        }
        match entry & OFFSET {
            _ if entry & ZERO != 0 => Ok(Cell::Zero),
            0 => Ok(Cell::Clear),
            offset if offset.is_multiple_of(CLUSTER) => Ok(Cell::Data(offset)),
            _ => Err(self.damaged("a cluster is at an impossible place")),
        }
    }

    /// Fills `data` from the file. What lies behind its end are zeros, as for QEMU, which writes no further than it
    /// must.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), DiskError> {
        let read = files::read_up_to(&self.file, data, offset);
        let length = read.map_err(|source| DiskError::io("read", &self.path, source))?;
        data[length..].fill(0);
        Ok(())
    }

    fn table(&self, offset: u64, entries: u64) -> Result<Vec<u64>, DiskError> {
        // The length is that of the format's largest table at most, whatever the header says.
        let length = usize::try_from(entries * 8).unwrap_or(0);
        let mut bytes = vec![0; length];
        let read = files::read_up_to(&self.file, &mut bytes, offset);
        if read.map_err(|source| DiskError::io("read", &self.path, source))? < length {
            return Err(self.damaged("it ends in the middle of a table"));
        }
        Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    fn damaged(&self, reason: &'static str) -> DiskError {
        DiskError::not_a_layer(&self.path, reason)
    }
}

/// What the layer at `path` says of itself and of what it builds on.
pub(super) fn describe(path: &Path) -> Result<Described, DiskError> {
    let header = Layer::open(path)?.header;
    match (header.backing_format, header.backing == BASE) {
        (Format::Raw, true) | (Format::Qcow2, false) => {
            Ok(Described { virtual_bytes: header.virtual_bytes, below: header.backing })
        }
        _ => Err(DiskError::not_a_layer(path, "it builds on a file of another format than its name says")),
    }
}
