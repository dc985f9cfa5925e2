//! Writing a base: blocks at their own addresses, zeros as holes, and the sums of 64 KiB chunks behind the last block.

use std::ops::Range;
use std::path::Path;

use crc32c::{crc32c, crc32c_append};

use crate::base_file::BaseFile;
use crate::copy::copy_sparse;
use crate::fields::{blocks, in_memory, length};
use crate::footer::{Footer, Kind};
use crate::partial::PartialFile;
use crate::{BLOCK, BLOCK_BYTES, CHUNK_BLOCKS, FileId, ImageError, Written, ZEROS, is_zero, runs};

/// Writes a base, block by block in ascending order. Blocks that are never written, and blocks of zeros, become holes.
/// Dropped before [`BaseWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct BaseWriter {
    out: PartialFile,
    id: FileId,
    blocks: u64,
    /// The first block that may still be written.
    next: u64,
    chunk: OpenChunk,
    /// A sum for each chunk, 0 where it is a hole.
    sums: Vec<u32>,
    /// A bit for each chunk that is not a hole.
    data: Vec<u8>,
    data_bytes: u64,
}

/// The chunk that is being written.
#[derive(Debug, Default)]
struct OpenChunk {
    index: u64,
    /// Blocks summed so far.
    filled: u64,
    crc: u32,
    data: bool,
}

impl BaseWriter {
    /// Begins a base of `size_bytes`, a multiple of [`BLOCK_BYTES`], under `path`. A file of that name stays until
    /// [`BaseWriter::finish`] replaces it.
    ///
    /// # Errors
    /// [`ImageError`] where the size is impossible or the file cannot be created.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Self, ImageError> {
        Self::with_id(path, size_bytes, rand::random())
    }

    pub(crate) fn with_id(path: &Path, size_bytes: u64, id: FileId) -> Result<Self, ImageError> {
        let sizes =
            blocks(size_bytes).and_then(|blocks| Ok((blocks, length(blocks.div_ceil(CHUNK_BLOCKS))?)));
        let (blocks, chunks) = sizes.map_err(|fault| ImageError::invalid(path, fault.to_string()))?;
        Ok(Self {
            out: PartialFile::create(path)?,
            id,
            blocks,
            next: 0,
            chunk: OpenChunk::default(),
            sums: vec![0; chunks],
            data: vec![0; chunks.div_ceil(8)],
            data_bytes: 0,
        })
    }

    /// Writes whole blocks from `block` on.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] where they are not whole, not ascending or beyond the end, else where writing fails.
    pub fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let end = check_blocks(self.out.target(), self.next..self.blocks, block, bytes)?;
        for (first, run, zero) in runs(block, bytes) {
            if !zero {
                self.out.put(first * BLOCK, run)?;
                self.data_bytes += run.len() as u64;
            }
        }
        let (mut block, mut bytes) = (block, bytes);
        while !bytes.is_empty() {
            let room = in_memory((CHUNK_BLOCKS - block % CHUNK_BLOCKS) * BLOCK);
            let (part, rest) = bytes.split_at(bytes.len().min(room));
            self.sum(block, part);
            block += (part.len() / BLOCK_BYTES) as u64;
            bytes = rest;
        }
        self.next = end;
        Ok(())
    }

    /// Sums blocks of a single chunk.
    fn sum(&mut self, block: u64, bytes: &[u8]) {
        if self.chunk.index != block / CHUNK_BLOCKS {
            self.close_chunk();
            self.chunk = OpenChunk { index: block / CHUNK_BLOCKS, ..OpenChunk::default() };
        }
        self.chunk.pad(block % CHUNK_BLOCKS);
        self.chunk.data |= !is_zero(bytes);
        self.chunk.crc = crc32c_append(self.chunk.crc, bytes);
        self.chunk.filled += (bytes.len() / BLOCK_BYTES) as u64;
    }

    fn close_chunk(&mut self) {
        if self.chunk.data {
            let first = self.chunk.index * CHUNK_BLOCKS;
            self.chunk.pad((self.blocks - first).min(CHUNK_BLOCKS));
            self.set_sum(self.chunk.index, self.chunk.crc);
            self.chunk.data = false;
        }
    }

    fn set_sum(&mut self, chunk: u64, crc: u32) {
        // The index is below the number of chunks, for which memory was found.
        if let Ok(index) = usize::try_from(chunk) {
            self.sums[index] = crc;
            self.data[index / 8] |= 1 << (index % 8);
        }
    }

    /// Takes over whole chunks of another base, which it copies without looking at them: their sums come along, so that
    /// damage in them is found in the copy as it would have been in the original.
    pub(crate) fn adopt(&mut self, chunks: Range<u64>, from: &BaseFile) -> Result<(), ImageError> {
        self.close_chunk();
        let mut start = chunks.start;
        while start < chunks.end {
            let data = from.sum(start).is_some();
            let mut end = start;
            while end < chunks.end && from.sum(end).is_some() == data {
                if let Some(crc) = from.sum(end) {
                    self.set_sum(end, crc);
                }
                end += 1;
            }
            if data {
                let bytes = start * CHUNK_BLOCKS * BLOCK..(end * CHUNK_BLOCKS).min(self.blocks) * BLOCK;
                let copied =
                    copy_sparse((&from.file, &from.path), (&self.out.file, self.out.target()), bytes)?;
                self.out.count(copied);
                self.data_bytes += copied;
            }
            start = end;
        }
        self.next = (chunks.end * CHUNK_BLOCKS).min(self.blocks);
        self.chunk = OpenChunk { index: chunks.end, ..OpenChunk::default() };
        Ok(())
    }

    /// Writes the sums and gives the file its name; with `durable` its content has reached the disk by then, while the
    /// name is made durable by [`Image::create`](crate::Image::create).
    ///
    /// # Errors
    /// [`ImageError`] where the file cannot be written, synced or renamed; it is gone then.
    pub fn finish(mut self, durable: bool) -> Result<Written, ImageError> {
        self.close_chunk();
        let mut table = self.data;
        table.extend(self.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        let footer = Footer {
            id: self.id,
            size_bytes: self.blocks * BLOCK,
            data_blocks: self.blocks,
            entries: self.sums.len() as u64,
            table_crc: crc32c(&table),
        };
        table.extend(footer.encode(Kind::Base));
        self.out.put(self.blocks * BLOCK, &table)?;
        let data_blocks = self.data_bytes / BLOCK;
        Ok(Written { data_blocks, zero_blocks: self.blocks - data_blocks, bytes: self.out.commit(durable)? })
    }
}

impl OpenChunk {
    /// Sums the blocks that were left out in front of block `upto` of the chunk.
    fn pad(&mut self, upto: u64) {
        let zeros = in_memory((upto - self.filled) * BLOCK);
        self.crc = crc32c_append(self.crc, &ZEROS[..zeros]);
        self.filled = upto;
    }
}

/// Checks that whole blocks from `block` on lie within `allowed`; returns the block behind them.
pub(crate) fn check_blocks(
    path: &Path,
    allowed: Range<u64>,
    block: u64,
    bytes: &[u8],
) -> Result<u64, ImageError> {
    if !bytes.len().is_multiple_of(BLOCK_BYTES) {
        return Err(ImageError::invalid(
            path,
            format!("{} bytes are not whole blocks of {BLOCK}", bytes.len()),
        ));
    }
    check_range(path, allowed, block, (bytes.len() / BLOCK_BYTES) as u64)
}

/// Checks that `count` blocks from `block` on lie within `allowed`; returns the block behind them.
pub(crate) fn check_range(
    path: &Path,
    allowed: Range<u64>,
    block: u64,
    count: u64,
) -> Result<u64, ImageError> {
    let end = block.checked_add(count).filter(|end| block >= allowed.start && *end <= allowed.end);
    end.ok_or_else(|| {
        let what =
            format!("{count} blocks at {block}, where {}..{} are possible", allowed.start, allowed.end);
        ImageError::invalid(path, what)
    })
}
