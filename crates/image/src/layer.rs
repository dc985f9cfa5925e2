//! Writing a layer: the data blocks one after another, then an index of ranges and a sum for each block.

use std::path::Path;

use crc32c::crc32c;

use crate::base::{check_blocks, check_range};
use crate::fields::blocks;
use crate::footer::{Footer, Kind};
use crate::partial::PartialFile;
use crate::{BLOCK, BLOCK_BYTES, Cursor, FileId, ImageError, MAX_TABLE_BYTES, Piece, Written, is_zero, runs};

/// Writes a layer, block by block in ascending order. Blocks of zeros are recorded as such and take no room. Dropped
/// before [`LayerWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct LayerWriter {
    out: PartialFile,
    id: FileId,
    blocks: u64,
    /// The first block that may still be written.
    next: u64,
    ranges: Vec<Range>,
    /// The sums of the data blocks, as in the file.
    sums: Vec<u8>,
    written: Written,
}

/// A range of blocks in the index of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) block: u64,
    pub(crate) count: u64,
    pub(crate) zero: bool,
}

impl LayerWriter {
    /// Begins a layer for images of `size_bytes`, a multiple of [`BLOCK_BYTES`], under `path`. A file of that name stays
    /// until [`LayerWriter::finish`] replaces it.
    ///
    /// # Errors
    /// [`ImageError`] where the size is impossible or the file cannot be created.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Self, ImageError> {
        Self::with_id(path, size_bytes, rand::random())
    }

    pub(crate) fn with_id(path: &Path, size_bytes: u64, id: FileId) -> Result<Self, ImageError> {
        let blocks = blocks(size_bytes).map_err(|fault| ImageError::invalid(path, fault.to_string()))?;
        let (out, written) = (PartialFile::create(path)?, Written::default());
        Ok(Self { out, id, blocks, next: 0, ranges: Vec::new(), sums: Vec::new(), written })
    }

    /// Writes whole blocks from `block` on.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] where they are not whole, not ascending or beyond the end, else where writing fails.
    pub fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), ImageError> {
        check_blocks(self.out.target(), self.next..self.blocks, block, bytes)?;
        for (first, run, zero) in runs(block, bytes) {
            let count = (run.len() / BLOCK_BYTES) as u64;
            if !zero {
                self.out.put(self.written.data_blocks * BLOCK, run)?;
                self.sums.extend(run.chunks(BLOCK_BYTES).flat_map(|block| crc32c(block).to_le_bytes()));
            }
            self.record(first, count, zero);
        }
        Ok(())
    }

    /// Writes those of the whole blocks from `block` on that `parent`'s layers do not already have with the same content.
    /// What an image has in its base alone is not compared: the caller knows better which blocks left the base.
    ///
    /// # Errors
    /// As [`LayerWriter::write`], and where the parent cannot be read or is damaged.
    pub fn write_changed(
        &mut self,
        parent: &mut Cursor<'_>,
        block: u64,
        bytes: &[u8],
    ) -> Result<(), ImageError> {
        check_blocks(self.out.target(), self.next..self.blocks, block, bytes)?;
        let mut from = 0;
        for (index, content) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let known = parent.at(block + index as u64)?;
            let same = known.is_some_and(|known| match known {
                Piece::Data(bytes) => bytes == content,
                Piece::Zero(_) => is_zero(content),
            });
            if same {
                self.write(block + from as u64, &bytes[from * BLOCK_BYTES..index * BLOCK_BYTES])?;
                from = index + 1;
            }
        }
        self.write(block + from as u64, &bytes[from * BLOCK_BYTES..])
    }

    /// Records that `count` blocks from `block` on are zeros, whatever is below.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] where they are not ascending or beyond the end.
    pub fn zero(&mut self, block: u64, count: u64) -> Result<(), ImageError> {
        check_range(self.out.target(), self.next..self.blocks, block, count)?;
        if count > 0 {
            self.record(block, count, true);
        }
        Ok(())
    }

    fn record(&mut self, block: u64, count: u64, zero: bool) {
        match self.ranges.last_mut() {
            Some(last) if last.zero == zero && last.block + last.count == block => last.count += count,
            _ => self.ranges.push(Range { block, count, zero }),
        }
        let total = if zero { &mut self.written.zero_blocks } else { &mut self.written.data_blocks };
        *total += count;
        self.next = block + count;
    }

    /// Writes index and sums and gives the file its name; with `durable` its content has reached the disk by then,
    /// while the name is made durable by [`Image::create`](crate::Image::create).
    ///
    /// # Errors
    /// [`ImageError`] where the file cannot be written, synced or renamed; it is gone then.
    pub fn finish(mut self, durable: bool) -> Result<Written, ImageError> {
        let mut table = Vec::with_capacity(self.ranges.len() * 16 + self.sums.len() + 64);
        for range in &self.ranges {
            table.extend(range.block.to_le_bytes());
            // Counts are below 2^28, the number of blocks of the largest image.
            table.extend(u32::try_from(range.count).unwrap_or(u32::MAX).to_le_bytes());
            table.extend(u32::from(range.zero).to_le_bytes());
        }
        table.append(&mut self.sums);
        if table.len() as u64 > MAX_TABLE_BYTES {
            return Err(ImageError::invalid(
                self.out.target(),
                "too much is in one layer; write a new base instead",
            ));
        }
        let footer = Footer {
            id: self.id,
            size_bytes: self.blocks * BLOCK,
            data_blocks: self.written.data_blocks,
            entries: self.ranges.len() as u64,
            table_crc: crc32c(&table),
        };
        table.extend(footer.encode(Kind::Layer));
        self.out.put(self.written.data_blocks * BLOCK, &table)?;
        Ok(Written { bytes: self.out.commit(durable)?, ..self.written })
    }
}
