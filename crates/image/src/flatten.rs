//! New files out of an image: a flat base with everything in it, or one layer out of all.

use std::ops::Range;
use std::path::Path;

use crate::fields::in_memory;
use crate::{BLOCK, BaseWriter, CHUNK_BLOCKS, CHUNK_BYTES, Image, ImageError, LayerWriter, Piece, Written};

impl Image {
    /// Writes the content of the image into a new base. Chunks of 64 KiB in which no layer has a word are copied within
    /// the kernel, holes kept, together with their sums.
    ///
    /// # Errors
    /// [`ImageError`] where a file cannot be read, is damaged, or the new one cannot be written; it is gone then.
    pub fn materialise(&self, to: &Path, durable: bool) -> Result<Written, ImageError> {
        let mut writer = BaseWriter::create(to, self.size_bytes())?;
        let chunks = (self.size_bytes() / BLOCK).div_ceil(CHUNK_BLOCKS);
        let (mut done, mut buf) = (0, vec![0; CHUNK_BYTES]);
        for extent in self.overrides() {
            let touched = extent.block / CHUNK_BLOCKS..extent.end().div_ceil(CHUNK_BLOCKS);
            if touched.start > done {
                writer.adopt(done..touched.start, &self.base)?;
            }
            let start = touched.start.max(done);
            self.write_chunks(&mut writer, start..touched.end, &mut buf)?;
            done = touched.end.max(done);
        }
        writer.adopt(done..chunks, &self.base)?;
        writer.finish(durable)
    }

    fn write_chunks(
        &self,
        writer: &mut BaseWriter,
        chunks: Range<u64>,
        buf: &mut [u8],
    ) -> Result<(), ImageError> {
        for chunk in chunks {
            let first = chunk * CHUNK_BLOCKS;
            let bytes = (self.size_bytes() - first * BLOCK).min(CHUNK_BLOCKS * BLOCK);
            let buf = &mut buf[..in_memory(bytes)];
            self.read(first, buf)?;
            writer.write(first, buf)?;
        }
        Ok(())
    }

    /// Writes what all layers together put over the base into one new layer, for [`Image::create`] over the same base.
    ///
    /// # Errors
    /// [`ImageError`] where a layer cannot be read, is damaged, or the new one cannot be written; it is gone then.
    pub fn merge(&self, to: &Path, durable: bool) -> Result<Written, ImageError> {
        let mut writer = LayerWriter::create(to, self.size_bytes())?;
        self.read_overrides(|block, piece| match piece {
            Piece::Data(bytes) => writer.write(block, bytes),
            Piece::Zero(count) => writer.zero(block, count),
        })?;
        writer.finish(durable)
    }
}
