//! Reading a base, chunk by chunk with its sums.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crc32c::crc32c;

use crate::copy::next_data;
use crate::fields::{in_memory, length};
use crate::footer::{Footer, Kind, Summed, read_at};
use crate::verified::verify_once;
use crate::{BLOCK, CHUNK_BLOCKS, CHUNK_BYTES, ImageError, RUN_BYTES, is_zero};

const CHUNK: u64 = CHUNK_BYTES as u64;

#[derive(Debug)]
pub(crate) struct BaseFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) length: u64,
    pub(crate) footer: Footer,
    /// A bit for each chunk that is not a hole, then a sum for each chunk.
    table: Vec<u8>,
}

impl BaseFile {
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let Summed { file, length, footer, table } = Summed::open(Kind::Base, path)?;
        Ok(Self { path: path.to_owned(), file, length, footer, table })
    }

    fn chunks(&self) -> u64 {
        self.footer.entries
    }

    /// The sum of a chunk, or none where it is a hole.
    pub(crate) fn sum(&self, chunk: u64) -> Option<u32> {
        let index = length(chunk).ok()?;
        if self.table.get(index / 8)? & (1 << (index % 8)) == 0 {
            return None;
        }
        let at = length(self.chunks()).ok()?.div_ceil(8) + 4 * index;
        Some(u32::from_le_bytes(*self.table.get(at..)?.first_chunk()?))
    }

    /// The bytes of the file that a chunk takes.
    fn bytes_of(&self, chunk: u64) -> Range<u64> {
        chunk * CHUNK..(chunk * CHUNK + CHUNK).min(self.footer.size_bytes)
    }

    /// Reads blocks, checking the whole of each chunk that they touch.
    pub(crate) fn read(&self, block: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        let (mut at, mut rest) = (block * BLOCK, buf);
        while !rest.is_empty() {
            let chunk = at / CHUNK;
            let within = self.bytes_of(chunk);
            let room = in_memory(within.end - at);
            let (part, behind) = rest.split_at_mut(room.min(rest.len()));
            self.read_part(chunk, at - within.start, part)?;
            at += part.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    /// Reads the part of a chunk that begins `skip` bytes into it.
    fn read_part(&self, chunk: u64, skip: u64, part: &mut [u8]) -> Result<(), ImageError> {
        let Some(sum) = self.sum(chunk) else {
            part.fill(0);
            return Ok(());
        };
        let within = self.bytes_of(chunk);
        if part.len() as u64 == within.end - within.start {
            read_at(&self.file, &self.path, within.start, part)?;
            return self.check(chunk, sum, part);
        }
        let mut whole = vec![0; in_memory(within.end - within.start)];
        read_at(&self.file, &self.path, within.start, &mut whole)?;
        self.check(chunk, sum, &whole)?;
        let skip = in_memory(skip);
        part.copy_from_slice(&whole[skip..skip + part.len()]);
        Ok(())
    }

    fn check(&self, chunk: u64, sum: u32, bytes: &[u8]) -> Result<(), ImageError> {
        if crc32c(bytes) == sum {
            return Ok(());
        }
        let first = chunk * CHUNK_BLOCKS;
        let what = format!("the blocks from {first} on (byte {}) do not match their checksum", first * BLOCK);
        Err(ImageError::damaged(&self.path, what))
    }

    /// Reads the whole base and checks it, unless this process found it intact before.
    pub(crate) fn verify(&self) -> Result<(), ImageError> {
        verify_once(&self.file, &self.path, &self.footer, || self.read_through())
    }

    fn read_through(&self) -> Result<(), ImageError> {
        let mut buf = vec![0; RUN_BYTES];
        let mut chunk = 0;
        while chunk < self.chunks() {
            let data = self.sum(chunk).is_some();
            let longest = if data { (RUN_BYTES / CHUNK_BYTES) as u64 } else { u64::MAX };
            let end = (chunk..self.chunks())
                .find(|next| self.sum(*next).is_some() != data || next - chunk >= longest);
            let end = end.unwrap_or(self.chunks());
            let bytes = chunk * CHUNK..self.bytes_of(end - 1).end;
            if data {
                let part = &mut buf[..in_memory(bytes.end - bytes.start)];
                read_at(&self.file, &self.path, bytes.start, part)?;
                for (index, bytes) in (chunk..end).zip(part.chunks(CHUNK_BYTES)) {
                    self.check(index, self.sum(index).unwrap_or_default(), bytes)?;
                }
            } else {
                self.verify_hole(bytes, &mut buf)?;
            }
            chunk = end;
        }
        Ok(())
    }

    /// Checks that chunks without a sum are zeros for whoever maps the file.
    fn verify_hole(&self, bytes: Range<u64>, buf: &mut [u8]) -> Result<(), ImageError> {
        let mut at = bytes.start;
        while let Some(data) = next_data(&self.file, &self.path, at..bytes.end)? {
            at = data.start;
            while at < data.end {
                let count = in_memory(data.end - at).min(buf.len());
                let part = &mut buf[..count];
                read_at(&self.file, &self.path, at, part)?;
                if !is_zero(part) {
                    let what = format!("there is data near byte {at}, where zeros belong");
                    return Err(ImageError::damaged(&self.path, what));
                }
                at += part.len() as u64;
            }
        }
        Ok(())
    }
}
