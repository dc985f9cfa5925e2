//! The block in front of a layer's exception store: what the kernel's format has no place for.
//!
//! ```text
//!     0  "WrennCow"
//!     8  version, 1                      u32
//!    12  bytes of the name               u32
//!    16  capacity of the disk, bytes     u64
//!    24  name of what the layer builds on, then zeros
//!   508  CRC-32C of all before it        u32
//!   512  zeros up to the store at 4096
//! ```
//!
//! Numbers are little-endian, as they are in the store. All of it lies in one sector, so that a capacity that is written
//! anew is there or is not, even when the power fails. A layer may come from another machine: its bytes are hostile.

use super::store::CHUNK;

/// Bytes of the block, and so the offset of the store in the file.
pub(crate) const BLOCK: u64 = 4096;
/// Bytes of the largest disk: 8 TiB, for a store of that size still fits into a file of ext4.
pub(crate) const MOST_BYTES: u64 = 8 << 40;

const MAGIC: &[u8; 8] = b"WrennCow";
const VERSION: u32 = 1;
const NAME_AT: usize = 24;
/// Longest name of what a layer builds on.
const NAME_LIMIT: usize = 64;
const CHECKSUM_AT: usize = 508;
const SECTOR: usize = 512;

/// What a layer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// Capacity of the disk, bytes; a multiple of [`CHUNK`].
    pub(crate) virtual_bytes: u64,
    /// Name of what it builds on. Not checked.
    pub(crate) below: String,
}

impl Header {
    /// The sector that the file starts with.
    pub(crate) fn encode(&self) -> [u8; SECTOR] {
        let name = &self.below.as_bytes()[..self.below.len().min(NAME_LIMIT)];
        let mut out = [0; SECTOR];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_le_bytes());
        out[16..24].copy_from_slice(&self.virtual_bytes.to_le_bytes());
        out[NAME_AT..NAME_AT + name.len()].copy_from_slice(name);
        let sum = crc32c::crc32c(&out[..CHECKSUM_AT]);
        out[CHECKSUM_AT..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the first bytes of a file.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let sector: &[u8; SECTOR] = bytes.first_chunk().ok_or("its header is cut short")?;
        if sector[..8] != *MAGIC {
            return Err("it does not start like a copy-on-write layer");
        }
        if sector[CHECKSUM_AT..] != crc32c::crc32c(&sector[..CHECKSUM_AT]).to_le_bytes() {
            return Err("the checksum of its header is wrong");
        }
        if u32_at(sector, 8) != VERSION {
            return Err("it is of a version that this program does not know");
        }
        let virtual_bytes = u64::from(u32_at(sector, 16)) | u64::from(u32_at(sector, 20)) << 32;
        if virtual_bytes == 0 || !virtual_bytes.is_multiple_of(CHUNK) || virtual_bytes > MOST_BYTES {
            return Err("its capacity is none that a disk has");
        }
        let length = usize::try_from(u32_at(sector, 12)).unwrap_or(usize::MAX);
        if length == 0 || length > NAME_LIMIT {
            return Err("it builds on nothing");
        }
        let below = std::str::from_utf8(&sector[NAME_AT..NAME_AT + length]);
        let below = below.map_err(|_| "the name of what it builds on cannot be read")?.to_owned();
        Ok(Self { virtual_bytes, below })
    }
}

fn u32_at(sector: &[u8; SECTOR], at: usize) -> u32 {
    sector[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(chunks: u64, below: &str) -> Header {
        Header { virtual_bytes: chunks * CHUNK, below: below.to_owned() }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(chunks in 1..=MOST_BYTES / CHUNK, name in "[ -~]{1,64}") {
            let header = header(chunks, &name);
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn a_changed_byte_is_found(at in 0..SECTOR, change in 1..=u8::MAX) {
            let mut bytes = header(256, "disk-0").encode();
            bytes[at] ^= change;
            prop_assert!(Header::decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_with_a_right_checksum_make_the_reader_panic(
            changes in prop::collection::vec((8..CHECKSUM_AT, any::<u8>()), 1..40),
            cut in 0..=SECTOR,
        ) {
            let mut bytes = header(256, "disk-0").encode();
            for (at, value) in changes {
                bytes[at] = value;
            }
            let sum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
            bytes[CHECKSUM_AT..].copy_from_slice(&sum.to_le_bytes());
            let _ = Header::decode(&bytes);
            let _ = Header::decode(&bytes[..cut]);
        }
    }

    #[test]
    fn capacities_and_names_that_cannot_be_are_refused() {
        let most = MOST_BYTES;
        for bytes in [0, 512, CHUNK + 1, most + CHUNK, u64::MAX - 4095] {
            let header = Header { virtual_bytes: bytes, below: "disk-0".to_owned() };
            assert_eq!(
                Header::decode(&header.encode()),
                Err("its capacity is none that a disk has"),
                "{bytes}"
            );
        }
        assert_eq!(Header::decode(&header(1, "").encode()), Err("it builds on nothing"));
    }
}
