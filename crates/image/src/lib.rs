//! Layered block images: a flat base, packed layers of what changed since, and a header that says which block comes
//! from where.
//!
//! An image is a fixed number of blocks of [`BLOCK_BYTES`] bytes. It lies in three kinds of file, all of them immutable
//! once they have their name, and all in one directory:
//!
//! | file | holds | written by |
//! |---|---|---|
//! | base | every block at its own address, zeros as holes, checksums behind the last block | [`BaseWriter`], [`Image::materialise`] |
//! | layer | blocks that differ from what is below, packed; ranges that became zero, without data | [`LayerWriter`], [`Image::merge`] |
//! | header | names and identities of the files, and the map of blocks to layers | [`Image::create`] |
//!
//! The base has nothing in front of its first block, so a VMM can map it as it is. Because files never change, images
//! share them by hard links ([`Image::link_into`]), and deleting an image can never hurt another.
//!
//! Every file is written beside its final name and then renamed, the header last: until then the older image is as
//! usable as before. All data carries CRC-32C sums, which are checked before a byte is handed out; damage is an error
//! that names the file, never wrong content. `docs/image-format.md` describes every byte.
//!
//! The I/O is synchronous: call it from threads that may block.

mod base;
mod base_file;
mod copy;
mod cursor;
mod error;
#[cfg(test)]
mod example;
mod fields;
mod flatten;
mod footer;
mod header;
mod image;
mod layer;
mod layer_file;
mod link;
mod map;
mod partial;
mod verified;

pub use base::BaseWriter;
pub use cursor::{Cursor, Piece};
pub use error::{Fault, ImageError};
pub use header::{FileEntry, Header};
pub use image::Image;
pub use layer::LayerWriter;
pub use map::{Extent, Source};

/// Bytes of a block, the smallest unit that an image addresses: a memory page.
pub const BLOCK_BYTES: usize = 4096;
/// Layers that an image may have over its base. An image with as many is due for [`Image::merge`].
pub const MAX_LAYERS: usize = 8;
/// The largest image, in bytes: 1 TiB.
pub const MAX_IMAGE_BYTES: u64 = 1 << 40;

/// Bytes of a block, for arithmetic on file offsets.
const BLOCK: u64 = BLOCK_BYTES as u64;
/// Bytes of a chunk, the unit in which a base is summed. The last chunk of a base may be shorter.
const CHUNK_BYTES: usize = 64 << 10;
/// Blocks of a chunk.
const CHUNK_BLOCKS: u64 = (CHUNK_BYTES / BLOCK_BYTES) as u64;
/// Bytes read or written in one go.
const RUN_BYTES: usize = 1 << 20;
/// The largest header, or table of sums, in bytes. What is larger is refused before memory is taken for it.
const MAX_TABLE_BYTES: u64 = 256 << 20;
/// Zeros to compare and to sum with.
static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// What a writer has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Blocks whose bytes are in the file.
    pub data_blocks: u64,
    /// Blocks that are recorded as zeros: in a layer those of its zero ranges, in a base all others.
    pub zero_blocks: u64,
    /// Bytes really written, sums and index included, holes not.
    pub bytes: u64,
}

/// The identity of a base or a layer: 16 random bytes, in the file itself and in every header that names it.
pub type FileId = [u8; 16];

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(CHUNK_BYTES).all(|part| part == &ZEROS[..part.len()])
}

/// Splits whole blocks into runs that are all zero or hold no zero block: (first block of the run, bytes, is zero).
fn runs(block: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8], bool)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let zero = is_zero(bytes.get(at..at + BLOCK_BYTES)?);
        let start = at;
        at += BLOCK_BYTES;
        while bytes.get(at..at + BLOCK_BYTES).is_some_and(|next| is_zero(next) == zero) {
            at += BLOCK_BYTES;
        }
        Some((block + (start / BLOCK_BYTES) as u64, &bytes[start..at], zero))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_split_where_zeros_begin_and_end() {
        let mut bytes = vec![0; 5 * BLOCK_BYTES];
        bytes[BLOCK_BYTES + 7] = 1;
        bytes[3 * BLOCK_BYTES - 1] = 1;
        let found: Vec<_> =
            runs(10, &bytes).map(|(block, part, zero)| (block, part.len() / BLOCK_BYTES, zero)).collect();
        assert_eq!(found, [(10, 1, true), (11, 2, false), (13, 2, true)]);
        assert_eq!(runs(0, &[]).count(), 0);
    }
}
