//! Reading a layer: its index, and its blocks with their sums.

use std::fs::File;
use std::path::{Path, PathBuf};

use crc32c::crc32c;

use crate::fields::{Fields, in_memory, length};
use crate::footer::{Footer, Kind, RANGE_BYTES, Summed, read_at};
use crate::layer::Range;
use crate::map::push;
use crate::verified::verify_once;
use crate::{BLOCK, BLOCK_BYTES, Extent, Fault, ImageError, RUN_BYTES, Source};

#[derive(Debug)]
pub(crate) struct LayerFile {
    pub(crate) path: PathBuf,
    pub(crate) length: u64,
    pub(crate) footer: Footer,
    file: File,
    /// A CRC-32C for each block of data.
    sums: Vec<u8>,
}

impl LayerFile {
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        Self::open_indexed(path).map(|(file, _)| file)
    }

    /// Opens a layer and reads its index as well.
    pub(crate) fn open_indexed(path: &Path) -> Result<(Self, Vec<Range>), ImageError> {
        let Summed { file, length: bytes, footer, mut table } = Summed::open(Kind::Layer, path)?;
        let index = length(footer.entries * RANGE_BYTES).map_err(|fault| fault.at(path))?;
        let sums = table.split_off(index);
        let ranges = parse_index(&table, &footer).map_err(|fault| fault.at(path))?;
        Ok((Self { path: path.to_owned(), length: bytes, footer, file, sums }, ranges))
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        self.footer.data_blocks * BLOCK
    }

    pub(crate) fn sync_data(&self) -> Result<(), ImageError> {
        self.file.sync_data().map_err(|source| ImageError::io("sync", &self.path, source))
    }

    /// Reads from the data of the layer, unchecked.
    pub(crate) fn read_unchecked(&self, at: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        read_at(&self.file, &self.path, at, buf)
    }

    /// Reads whole blocks from the data of the layer.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        self.read_unchecked(at, buf)?;
        self.check(at, buf)
    }

    /// Reads the whole data of the layer and checks it, unless this process found it intact before.
    pub(crate) fn verify(&self) -> Result<(), ImageError> {
        verify_once(&self.file, &self.path, &self.footer, || self.read_through())
    }

    fn read_through(&self) -> Result<(), ImageError> {
        let mut buf = vec![0; in_memory(self.data_bytes()).min(RUN_BYTES)];
        let mut at = 0;
        while at < self.data_bytes() {
            let count = in_memory(self.data_bytes() - at).min(buf.len());
            self.read(at, &mut buf[..count])?;
            at += count as u64;
        }
        Ok(())
    }

    /// Checks whole blocks that were read from the offset `at`.
    pub(crate) fn check(&self, at: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let sums = length(at / BLOCK).ok().and_then(|first| self.sums.get(4 * first..)).unwrap_or_default();
        let mut sums = sums.as_chunks::<4>().0.iter();
        for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            if sums.next().is_none_or(|sum| crc32c(block) != u32::from_le_bytes(*sum)) {
                let at = at + (index * BLOCK_BYTES) as u64;
                return Err(ImageError::damaged(
                    &self.path,
                    format!("the block at byte {at} does not match its checksum"),
                ));
            }
        }
        Ok(())
    }
}

fn parse_index(index: &[u8], footer: &Footer) -> Result<Vec<Range>, Fault> {
    let mut fields = Fields(index);
    let mut ranges = Vec::with_capacity(index.len() / 16);
    let (mut free, mut data) = (0, 0);
    while !fields.0.is_empty() {
        let (block, count, zero) = (fields.u64()?, u64::from(fields.u32()?), fields.u32()?);
        let end = block.checked_add(count).filter(|end| *end <= footer.size_bytes / BLOCK);
        let Some(end) = end.filter(|_| count > 0 && block >= free && zero <= 1) else {
            return Err(Fault::new(format!(
                "its index has {count} blocks at {block}, out of order or out of bounds"
            )));
        };
        free = end;
        data += if zero == 1 { 0 } else { count };
        ranges.push(Range { block, count, zero: zero == 1 });
    }
    if data != footer.data_blocks {
        return Err(Fault::new(format!(
            "its index speaks of {data} blocks, and {} are in it",
            footer.data_blocks
        )));
    }
    Ok(ranges)
}

/// The map of a layer on its own, of which `layer` is the place among the layers of the image.
pub(crate) fn map_of(layer: usize, ranges: &[Range]) -> Vec<Extent> {
    let (mut map, mut offset) = (Vec::with_capacity(ranges.len()), 0);
    for &Range { block, count, zero } in ranges {
        let source = if zero { Source::Zero } else { Source::Layer { layer, offset } };
        push(&mut map, Extent { block, count, source });
        offset += if zero { 0 } else { count * BLOCK };
    }
    map
}
