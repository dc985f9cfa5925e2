//! Merging layers: what a reader of the topmost sees in them goes to one new file.
//!
//! A cluster comes from the topmost layer that says anything of it. One that reads as zeros there is marked as such,
//! for what is below would show otherwise; so is one that holds nothing but zeros, which then takes no room.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::format::{CLUSTER, L2_ENTRIES};
use super::reader::{Cell, Layer, ZERO};
use super::writer::Writer;
use crate::files::Made;
use crate::{Chain, DiskError, driver};

/// A merge in progress.
#[derive(Debug)]
struct Merge<'a> {
    /// From top to bottom, each with its first-level table.
    layers: Vec<(Layer, Vec<u64>)>,
    /// Bytes of what stays below; behind them zeros show by themselves.
    below_bytes: u64,
    writer: Writer,
    cluster: Vec<u8>,
    cancelled: &'a AtomicBool,
}

/// [`Layers::MERGE`](crate::driver::Layers::MERGE).
pub(super) fn merge(
    chain: &Chain,
    keep: usize,
    to: &Path,
    cancelled: &AtomicBool,
    made: &mut Made,
) -> Result<(), DiskError> {
    let (kept, merged) = chain.layers.split_at(keep);
    let (below, below_bytes) = below(chain, kept)?;
    let mut layers = Vec::new();
    for path in merged.iter().rev() {
        let layer = Layer::open(path)?;
        let l1 = layer.l1()?;
        layers.push((layer, l1));
    }
    let writer = Writer::create(to, chain.virtual_bytes, below, made)?;
    let cluster = vec![0; 1 << 16];
    let mut merge = Merge { layers, below_bytes, writer, cluster, cancelled };
    let regions = merge.layers.iter().map(|(_, l1)| l1.len()).max().unwrap_or(0);
    for region in 0..regions {
        merge.region(region)?;
    }
    let file = merge.writer.finish()?;
    file.sync_all().map_err(|source| DiskError::io("sync", to, source))
}

/// What the new layer builds on, and its capacity in bytes.
fn below<'a>(chain: &'a Chain, kept: &'a [PathBuf]) -> Result<(&'a PathBuf, u64), DiskError> {
    match kept.last() {
        Some(path) => Ok((path, Layer::open(path)?.header.virtual_bytes)),
        None => Ok((&chain.base, driver::base_bytes(chain)?)),
    }
}

impl Merge<'_> {
    /// Merges the part of the disk that one second-level table maps.
    fn region(&mut self, region: usize) -> Result<(), DiskError> {
        let mut tables = Vec::with_capacity(self.layers.len());
        for (layer, l1) in &self.layers {
            tables.push(l1.get(region).map_or(Ok(None), |entry| layer.l2(*entry))?);
        }
        if tables.iter().all(Option::is_none) {
            return Ok(());
        }
        let mut merged = vec![0; tables.iter().flatten().map(Vec::len).max().unwrap_or(0)];
        for (index, entry) in merged.iter_mut().enumerate() {
            let start = (region as u64 * L2_ENTRIES + index as u64) * CLUSTER;
            *entry = self.entry(start, index, &tables)?;
        }
        if merged.iter().any(|entry| *entry != 0) {
            self.writer.add_table(region, &merged)?;
        }
        Ok(())
    }

    /// The new entry of the cluster at `start` on the disk; its data are copied.
    fn entry(&mut self, start: u64, index: usize, tables: &[Option<Vec<u64>>]) -> Result<u64, DiskError> {
        let zero = if start < self.below_bytes { ZERO } else { 0 };
        for ((layer, _), table) in self.layers.iter().zip(tables) {
            if start >= layer.header.virtual_bytes {
                // What is below is no larger: there is nothing.
                break;
            }
            let entry = table.as_ref().and_then(|table| table.get(index)).copied().unwrap_or(0);
            match layer.cell(entry)? {
                Cell::Clear => {}
                Cell::Zero => return Ok(zero),
                Cell::Data(offset) => {
                    if self.cancelled.load(Ordering::Relaxed) {
                        return Err(DiskError::io("merge", self.writer.path(), ErrorKind::Interrupted));
                    }
                    layer.read(offset, &mut self.cluster)?;
                    if self.cluster.iter().all(|byte| *byte == 0) {
                        return Ok(zero);
                    }
                    return self.writer.add_cluster(&self.cluster);
                }
            }
        }
        Ok(0)
    }
}
