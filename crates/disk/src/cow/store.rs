//! The persistent exception store of the device-mapper's snapshot target, which is the body of a layer.
//!
//! Source: `drivers/md/dm-snap-persistent.c` of Linux, "Documentation/admin-guide/device-mapper/snapshot.rst". The store
//! is made of chunks, here of 4 KiB. An exception says that a chunk of the disk lies in a chunk of the store; what has
//! none shows what is below.
//!
//! ```text
//!   chunk 0   header: magic, valid, version, sectors of a chunk   (u32 each)
//!         1   exceptions of area 0: 256 of {old chunk, new chunk} (u64 each); the list ends at a new chunk of 0
//!     2‥257   data of area 0
//!       258   exceptions of area 1
//!       …
//! ```
//!
//! All numbers are little-endian. The kernel gives chunks out in ascending order and frees none. It reads areas until it
//! meets one that is not full, and clears the next one before it fills one up: so there is always an area behind the
//! last chunk, and the store must be long enough for it. A header is written here beforehand. To a store without one,
//! the kernel would write its own, which it cannot through a read-only table.

/// Bytes of a chunk: of the disk, of the store.
pub(crate) const CHUNK: u64 = 4096;
/// Sectors of a chunk.
pub(crate) const CHUNK_SECTORS: u64 = CHUNK / 512;
/// Exceptions that one area lists.
pub(super) const AREA: u64 = CHUNK / 16;

const MAGIC: u32 = 0x7041_6e53;
const VERSION: u32 = 1;
/// The header, and area 0.
const FIRST_DATA: u64 = 2;

/// Chunk of the exceptions of area `area`.
pub(super) const fn area_chunk(area: u64) -> u64 {
    1 + area * (AREA + 1)
}

/// Chunk of the data of the `index`-th exception.
pub(super) const fn data_chunk(index: u64) -> u64 {
    FIRST_DATA + index + index / AREA
}

/// Bytes of a store for a disk of `virtual_bytes`, all of whose chunks may be written.
pub(crate) const fn length(virtual_bytes: u64) -> u64 {
    // The area behind the last chunk counts, even where it stays empty.
    data_chunk(virtual_bytes.div_ceil(CHUNK)) * CHUNK
}

/// The first bytes of a store.
pub(super) fn encode_header() -> [u8; 16] {
    let mut out = [0; 16];
    let fields = [MAGIC, 1, VERSION, 8];
    for (field, value) in out.as_chunks_mut().0.iter_mut().zip(fields) {
        *field = u32::to_le_bytes(value);
    }
    out
}

/// Checks the first bytes of a store.
///
/// # Errors
/// What is wrong with them.
pub(super) fn check_header(bytes: &[u8]) -> Result<(), &'static str> {
    let field = |index: usize| {
        let bytes = bytes.get(index * 4..).and_then(|bytes| bytes.first_chunk());
        bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or("its exception store is cut short")
    };
    if field(0)? != MAGIC || field(2)? != VERSION {
        return Err("it has no exception store of a known version");
    }
    if field(1)? != 1 {
        return Err(
            "the kernel gave its exception store up when it could not write to it, and it cannot be recovered",
        );
    }
    if u64::from(field(3)?) != CHUNK_SECTORS {
        return Err("its exception store has chunks of another size");
    }
    Ok(())
}

/// A chunk of the disk that lies in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Exception {
    /// Of the disk.
    pub(super) old: u64,
    /// Of the store.
    pub(super) new: u64,
}

impl Exception {
    /// As it stands in an area.
    pub(super) fn encode(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.old.to_le_bytes());
        out[8..].copy_from_slice(&self.new.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; 16]) -> Self {
        let field = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Self { old: field(0), new: field(8) }
    }
}

/// Adds the exceptions of one area to `found` and says whether the area is full, so that another one follows. The disk
/// has `chunks`.
///
/// # Errors
/// What is wrong with one.
pub(super) fn read_area(area: &[u8], chunks: u64, found: &mut Vec<Exception>) -> Result<bool, &'static str> {
    for bytes in area.as_chunks().0 {
        let exception = Exception::decode(bytes);
        if exception.new == 0 {
            return Ok(false);
        }
        if exception.old >= chunks {
            return Err("its exception store has a chunk from behind the end of the disk");
        }
        let is_data = exception.new >= FIRST_DATA && exception.new % (AREA + 1) != 1;
        if !is_data || exception.new >= length(chunks * CHUNK) / CHUNK {
            return Err("its exception store has a chunk at an impossible place");
        }
        found.push(exception);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_are_those_that_the_kernel_gives_out() {
        // As `persistent_prepare_exception` counts.
        let mut next = 2;
        for index in 0..3 * AREA {
            assert_eq!(data_chunk(index), next, "{index}");
            next += 1;
            if next % (AREA + 1) == 1 {
                next += 1;
            }
        }
        assert_eq!((area_chunk(0), area_chunk(1), area_chunk(2)), (1, 258, 515));
    }

    #[test]
    fn a_store_holds_every_chunk_and_the_area_behind_the_last() {
        for chunks in (1..600).chain([1 << 20, (1 << 30) + 5]) {
            let has = length(chunks * CHUNK) / CHUNK;
            assert!(data_chunk(chunks - 1) < has && area_chunk(chunks / AREA) < has, "{chunks}");
            assert!(has <= data_chunk(chunks - 1) + 3, "{chunks}");
        }
    }

    #[test]
    fn only_a_valid_header_of_this_kind_is_accepted() {
        assert_eq!(check_header(&encode_header()), Ok(()));
        assert!(check_header(&encode_header()[..15]).is_err());
        for (at, value) in [(0, 0), (4, 0), (4, 2), (8, 2), (12, 16), (15, 1)] {
            let mut bytes = encode_header();
            bytes[at] = value;
            assert!(check_header(&bytes).is_err(), "{at}");
        }
    }

    proptest! {
        #[test]
        fn exceptions_are_read_up_to_the_end_of_the_list(count in 0..=AREA, chunks in AREA..10_000) {
            let written: Vec<_> =
                (0..count).map(|index| Exception { old: chunks - 1 - index, new: data_chunk(index) }).collect();
            let mut area: Vec<u8> = written.iter().flat_map(|exception| exception.encode()).collect();
            area.resize(4096, 0);
            let mut found = Vec::new();
            prop_assert_eq!(read_area(&area, chunks, &mut found), Ok(count == AREA));
            prop_assert_eq!(found, written);
        }

        #[test]
        fn no_bytes_lead_out_of_the_store(area in prop::collection::vec(any::<u8>(), 4096), chunks in 1_u64..1 << 40) {
            let mut found = Vec::new();
            let _ = read_area(&area, chunks, &mut found);
            prop_assert!(found.iter().all(|e| e.old < chunks && (e.new + 1) * CHUNK <= length(chunks * CHUNK)));
        }
    }
}
