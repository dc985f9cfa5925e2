//! Writes a qcow2 image from front to back.
//!
//! Nothing is ever rewritten or freed, so every cluster of the file is in use exactly once and all reference counts are
//! one: they are written last, when their number is known.
//!
//! ```text
//!   header │ L1 table │ data and L2 tables, as they come │ reference count blocks │ their table
//! ```
//!
//! An empty layer takes three small writes. Its first-level table is a hole.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::format::{CLUSTER, Format, Header, L2_ENTRIES};
use crate::files::{self, Made};
use crate::{DiskError, chain};

/// Bit 63 of an entry: the cluster it names is used here alone, and may be written in place.
const COPIED: u64 = 1 << 63;
/// Clusters that one reference count block covers.
const COUNTS_PER_BLOCK: u64 = CLUSTER / 2;

/// An image that is being written.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    file: File,
    header: Header,
    /// The first-level table, as far as it is not zero.
    l1: Vec<u64>,
    /// The next free cluster of the file.
    next: u64,
}

impl Writer {
    /// Starts the layer `path` of `virtual_bytes` over `backing`, a file beside it.
    pub(super) fn create(
        path: &Path,
        virtual_bytes: u64,
        backing: &Path,
        made: &mut Made,
    ) -> Result<Self, DiskError> {
        let name = chain::file_name(backing);
        let backing_format = if name == chain::BASE { Format::Raw } else { Format::Qcow2 };
        let header = Header {
            virtual_bytes,
            backing: name.to_owned(),
            backing_format,
            l1_offset: CLUSTER,
            refcounts_offset: 0,
            refcounts_clusters: 0,
        };
        let next = 1 + (header.l1_entries() * 8).div_ceil(CLUSTER);
        Ok(Self { path: path.to_path_buf(), file: files::make(path, made)?, header, l1: Vec::new(), next })
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a cluster of data and returns the entry that names it.
    pub(super) fn add_cluster(&mut self, data: &[u8]) -> Result<u64, DiskError> {
        let at = self.next * CLUSTER;
        self.write(data, at)?;
        self.next += 1;
        Ok(at | COPIED)
    }

    /// Adds the second-level table of the `region`-th part of the disk.
    pub(super) fn add_table(&mut self, region: usize, entries: &[u64]) -> Result<(), DiskError> {
        let entry = self.add_cluster(&big_endian(entries))?;
        if self.l1.len() <= region {
            self.l1.resize(region + 1, 0);
        }
        self.l1[region] = entry;
        Ok(())
    }

    /// Writes what the clusters so far make necessary and returns the complete file, which is not durable yet.
    pub(super) fn finish(mut self) -> Result<File, DiskError> {
        let (blocks, tables) = count_clusters(self.next);
        let used = self.next + blocks + tables;
        let first_block = self.next * CLUSTER;
        self.header.refcounts_offset = (self.next + blocks) * CLUSTER;
        self.header.refcounts_clusters = u32::try_from(tables).unwrap_or(u32::MAX);
        let length = |source| DiskError::io("write", &self.path, source);
        self.file.set_len(used * CLUSTER).map_err(length)?;
        for block in 0..blocks {
            let covered = (used - block * COUNTS_PER_BLOCK).min(COUNTS_PER_BLOCK);
            let counts = [0, 1].repeat(usize::try_from(covered).unwrap_or(0));
            self.write(&counts, first_block + block * CLUSTER)?;
        }
        let table: Vec<u64> = (0..blocks).map(|block| first_block + block * CLUSTER).collect();
        self.write(&big_endian(&table), self.header.refcounts_offset)?;
        if !self.l1.is_empty() {
            self.write(&big_endian(&self.l1), self.header.l1_offset)?;
        }
        self.write(&self.header.encode(), 0)?;
        Ok(self.file)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), DiskError> {
        self.file.write_all_at(bytes, at).map_err(|source| DiskError::io("write", &self.path, source))
    }
}

/// Clusters of reference count blocks, and of the table that lists them, for a file with `used` others.
fn count_clusters(used: u64) -> (u64, u64) {
    let (mut blocks, mut tables) = (1, 1);
    loop {
        let needed = (used + blocks + tables).div_ceil(COUNTS_PER_BLOCK);
        let listed = needed.div_ceil(L2_ENTRIES);
        if (needed, listed) == (blocks, tables) {
            return (blocks, tables);
        }
        (blocks, tables) = (needed.max(blocks), listed.max(tables));
    }
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_cover_every_cluster_and_their_own() {
        for used in (0..200).chain(COUNTS_PER_BLOCK - 5..COUNTS_PER_BLOCK + 5).chain([1 << 28, (1 << 40) + 3])
        {
            let (blocks, tables) = count_clusters(used);
            assert!(blocks * COUNTS_PER_BLOCK >= used + blocks + tables, "{used}");
            assert!(tables * L2_ENTRIES >= blocks, "{used}");
        }
    }
}
