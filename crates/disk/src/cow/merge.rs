//! Merging layers: what a reader of the topmost sees in them goes to one new file.
//!
//! A chunk comes from the topmost layer that has it. One of zeros is left out where zeros show anyway, so that what a
//! guest has cleared takes no room. In the new store the chunks lie in the order of the disk, which a reader likes, and
//! which lets the kernel remember long runs of them as one. The result is read again before it takes anything's place.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::layer::{Chunk, Layer, Writer};
use super::store::{CHUNK, Exception};
use crate::files::{self, Made};
use crate::{Chain, DiskError, driver};

const ZEROS: Chunk = [0; 4096];

/// A chunk, and which of the merged layers it comes from: 0 is the topmost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    old: u64,
    layer: usize,
    new: u64,
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
    let below = Below::open(chain, kept)?;
    let layers = merged.iter().rev().map(|path| Layer::open(path)).collect::<Result<Vec<_>, _>>()?;
    let sources = sources(&layers)?;
    let mut writer = Writer::create(to, chain.virtual_bytes, kept.last().unwrap_or(&chain.base), made)?;
    let mut written = Vec::new();
    for source in sources {
        if cancelled.load(Ordering::Relaxed) {
            return Err(DiskError::io("merge", writer.path(), ErrorKind::Interrupted));
        }
        let data = layers[source.layer].chunk(source.new)?;
        if data != ZEROS || !below.is_zero(source.old)? {
            writer.add(source.old, &data)?;
            written.push(source);
        }
    }
    let file = writer.finish()?;
    file.sync_all().map_err(|source| DiskError::io("sync", to, source))?;
    verify(to, &layers, &written, cancelled)
}

/// All chunks that are in one of the layers, each from the topmost, in the order of the disk.
fn sources(layers: &[Layer]) -> Result<Vec<Source>, DiskError> {
    let mut sources = Vec::new();
    for (layer, file) in layers.iter().enumerate() {
        let exceptions = file.exceptions()?;
        sources.extend(exceptions.into_iter().map(|Exception { old, new }| Source { old, layer, new }));
    }
    sources.sort_unstable();
    sources.dedup_by_key(|source| source.old);
    Ok(sources)
}

/// Reads the new layer as anyone would who opens it, and compares it with where it came from.
fn verify(
    path: &Path,
    layers: &[Layer],
    written: &[Source],
    cancelled: &AtomicBool,
) -> Result<(), DiskError> {
    let wrong = || DiskError::not_a_layer(path, "what was merged does not read back");
    let merged = Layer::open(path)?;
    let exceptions = merged.exceptions()?;
    if !exceptions.iter().map(|exception| exception.old).eq(written.iter().map(|source| source.old)) {
        return Err(wrong());
    }
    for (exception, source) in exceptions.iter().zip(written) {
        if cancelled.load(Ordering::Relaxed) {
            return Err(DiskError::io("merge", path, ErrorKind::Interrupted));
        }
        if merged.chunk(exception.new)? != layers[source.layer].chunk(source.new)? {
            return Err(wrong());
        }
    }
    Ok(())
}

/// What stays below the new layer.
#[derive(Debug)]
struct Below {
    /// From top to bottom, each with its chunks.
    layers: Vec<(Layer, Vec<Exception>)>,
    base: std::fs::File,
    base_path: std::path::PathBuf,
    base_bytes: u64,
}

impl Below {
    fn open(chain: &Chain, kept: &[std::path::PathBuf]) -> Result<Self, DiskError> {
        let mut layers = Vec::new();
        for path in kept.iter().rev() {
            let layer = Layer::open(path)?;
            let exceptions = layer.exceptions()?;
            layers.push((layer, exceptions));
        }
        let base = files::open(&chain.base).map_err(|source| DiskError::io("open", &chain.base, source))?;
        Ok(Self { layers, base, base_path: chain.base.clone(), base_bytes: driver::base_bytes(chain)? })
    }

    /// Whether zeros show at a chunk of the disk.
    fn is_zero(&self, old: u64) -> Result<bool, DiskError> {
        for (layer, exceptions) in &self.layers {
            if let Ok(index) = exceptions.binary_search_by_key(&old, |exception| exception.old) {
                return Ok(layer.chunk(exceptions[index].new)? == ZEROS);
            }
        }
        if old * CHUNK >= self.base_bytes {
            return Ok(true);
        }
        let mut data = ZEROS;
        let read = files::read_up_to(&self.base, &mut data, old * CHUNK);
        read.map_err(|source| DiskError::io("read", &self.base_path, source))?;
        Ok(data == ZEROS)
    }
}
