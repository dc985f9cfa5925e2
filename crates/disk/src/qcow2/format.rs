//! The header of a qcow2 image, as far as a layer of a disk uses it.
//!
//! Source: "Qcow2 Image File Format", `docs/interop/qcow2.rst` of QEMU. A layer is version 3 with 64 KiB clusters and
//! 16-bit reference counts, not encrypted, not compressed, without internal snapshots and without a feature that a
//! reader must know; it always has a backing file, whose format is given. That is what is written here and what QEMU
//! makes of it, so anything else is refused when read. Files were in the hands of a VMM: their bytes are hostile.

use crate::MIB;

/// log2 of the bytes of a cluster.
const CLUSTER_BITS: u32 = 16;
/// Bytes of a cluster, the unit of allocation in the file and on the disk.
pub(super) const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Clusters that one second-level table maps.
pub(super) const L2_ENTRIES: u64 = CLUSTER / 8;
/// Bytes of the disk that one first-level entry stands for: 512 MiB.
pub(super) const REGION: u64 = CLUSTER * L2_ENTRIES;
/// Bytes of the longest first-level table that QEMU reads.
const L1_LIMIT: u64 = 32 << 20;
/// MiB of the largest disk: 2 PiB.
pub(super) const MOST_MB: u64 = L1_LIMIT / 8 * (REGION / MIB);

const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
const REFCOUNT_ORDER: u32 = 4;
const HEADER_BYTES: usize = 104;
/// Longest backing file name.
const NAME_LIMIT: usize = 1023;
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// What a backing file is, by the name that QEMU has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Raw,
    Qcow2,
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What a layer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Capacity of the disk, bytes; a multiple of [`CLUSTER`].
    pub(super) virtual_bytes: u64,
    /// Name of what it builds on. Not checked.
    pub(super) backing: String,
    /// Format of what it builds on.
    pub(super) backing_format: Format,
    /// Where the first-level table starts.
    pub(super) l1_offset: u64,
    /// Where the table of reference count blocks starts.
    pub(super) refcounts_offset: u64,
    /// Clusters of that table.
    pub(super) refcounts_clusters: u32,
}

impl Header {
    /// Entries of the first-level table.
    pub(super) fn l1_entries(&self) -> u64 {
        self.virtual_bytes.div_ceil(REGION)
    }

    /// The first bytes of the file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let format = self.backing_format.name().as_bytes();
        let extension = 8 + format.len().next_multiple_of(8);
        let name_at = HEADER_BYTES + extension + 8;
        let mut out = Vec::with_capacity(name_at + self.backing.len());
        let mut u32s = |values: &[u32]| values.iter().for_each(|v| out.extend(v.to_be_bytes()));
        u32s(&[MAGIC, VERSION, 0, length(name_at), length(self.backing.len()), CLUSTER_BITS]);
        out.extend(self.virtual_bytes.to_be_bytes());
        let l1_entries = u32::try_from(self.l1_entries()).unwrap_or(u32::MAX);
        [0, l1_entries].iter().for_each(|v: &u32| out.extend(v.to_be_bytes()));
        [self.l1_offset, self.refcounts_offset].iter().for_each(|v| out.extend(v.to_be_bytes()));
        out.extend(self.refcounts_clusters.to_be_bytes());
        // No snapshots (a count and an offset), no features of any of the three kinds.
        out.extend([0; 4 + 8 + 3 * 8]);
        [REFCOUNT_ORDER, length(HEADER_BYTES), EXTENSION_BACKING_FORMAT, length(format.len())]
            .iter()
            .for_each(|v| out.extend(v.to_be_bytes()));
        out.extend(format);
        // The padding of the extension, and the one that ends the list.
        out.resize(name_at, 0);
        out.extend(self.backing.as_bytes());
        out
    }

    /// Reads the first cluster of a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let at = Fields(bytes);
        if at.u32(0)? != MAGIC {
            return Err("it does not start like a qcow2 image");
        }
        check_kind(at)?;
        let virtual_bytes = at.u64(24)?;
        if virtual_bytes == 0 || !virtual_bytes.is_multiple_of(CLUSTER) || virtual_bytes > MOST_MB * MIB {
            return Err("its capacity is none that a disk has");
        }
        let header = Self {
            virtual_bytes,
            backing: backing_name(at)?,
            backing_format: backing_format(at)?,
            l1_offset: at.u64(40)?,
            refcounts_offset: at.u64(48)?,
            refcounts_clusters: at.u32(56)?,
        };
        if u64::from(at.u32(36)?) < header.l1_entries() {
            return Err("its first-level table is too short for its capacity");
        }
        if header.l1_offset == 0 || !header.l1_offset.is_multiple_of(CLUSTER) {
            return Err("its first-level table is at an impossible place");
        }
        Ok(header)
    }
}

fn length(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The fixed fields that say which of the format's many variants this is.
fn check_kind(at: Fields<'_>) -> Result<(), &'static str> {
    if at.u32(4)? != VERSION || at.u32(20)? != CLUSTER_BITS || at.u32(96)? != REFCOUNT_ORDER {
        return Err("it is a qcow2 image of another version, cluster size or reference count width");
    }
    if at.u32(32)? != 0 || at.u32(60)? != 0 {
        return Err("it is encrypted or has snapshots inside");
    }
    if at.u64(72)? != 0 {
        return Err("it is marked as dirty or corrupt, or uses a feature that layers do not use");
    }
    Ok(())
}

fn backing_name(at: Fields<'_>) -> Result<String, &'static str> {
    const BAD: &str = "the name of what it builds on cannot be read";
    let start = usize::try_from(at.u64(8)?).map_err(|_| BAD)?;
    let length = usize::try_from(at.u32(16)?).map_err(|_| BAD)?;
    if start == 0 || length == 0 {
        return Err("it builds on nothing");
    }
    if length > NAME_LIMIT {
        return Err(BAD);
    }
    let name = at.bytes(start, length).map_err(|_| BAD)?;
    std::str::from_utf8(name).map(str::to_owned).map_err(|_| BAD)
}

fn backing_format(at: Fields<'_>) -> Result<Format, &'static str> {
    let mut next = usize::try_from(at.u32(100)?).unwrap_or(usize::MAX);
    if next < HEADER_BYTES || !next.is_multiple_of(8) {
        return Err("its header has an impossible length");
    }
    loop {
        let (kind, length) = (at.u32(next)?, at.u32(next.saturating_add(4))?);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let data = at.bytes(next.saturating_add(8), length);
        match kind {
            EXTENSION_END => return Err("it does not say what kind of file it builds on"),
            EXTENSION_BACKING_FORMAT => {
                let name = data?;
                return [Format::Raw, Format::Qcow2]
                    .into_iter()
                    .find(|format| format.name().as_bytes() == name)
                    .ok_or("it builds on a file of another format");
            }
            _ => next += 8 + data?.len().next_multiple_of(8),
        }
    }
}

/// Big-endian fields of a buffer that may end anywhere.
#[derive(Debug, Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(self, start: usize, length: usize) -> Result<&'a [u8], &'static str> {
        let end = start.checked_add(length);
        end.and_then(|end| self.0.get(start..end)).ok_or("its header is cut short")
    }

    fn u32(self, at: usize) -> Result<u32, &'static str> {
        let bytes = self.bytes(at, 4)?.first_chunk().ok_or("its header is cut short")?;
        Ok(u32::from_be_bytes(*bytes))
    }

    fn u64(self, at: usize) -> Result<u64, &'static str> {
        let bytes = self.bytes(at, 8)?.first_chunk().ok_or("its header is cut short")?;
        Ok(u64::from_be_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(size: u64, name: &str, backing_format: Format) -> Header {
        Header {
            virtual_bytes: size,
            backing: name.to_owned(),
            backing_format,
            l1_offset: CLUSTER,
            refcounts_offset: 3 * CLUSTER,
            refcounts_clusters: 1,
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(mb in 1..MOST_MB, name in "[ -~]{1,100}", raw: bool) {
            let format = if raw { Format::Raw } else { Format::Qcow2 };
            let header = header(mb * MIB, &name, format);
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(
            changes in prop::collection::vec((0_usize..200, any::<u8>()), 1..20),
            cut in 0_usize..200,
            noise in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut bytes = header(MIB, "disk-0", Format::Raw).encode();
            bytes.extend(noise);
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            let _ = Header::decode(&bytes);
            let _ = Header::decode(&bytes[..cut.min(bytes.len())]);
        }
    }

    #[test]
    fn an_unknown_extension_is_skipped_and_a_missing_format_refused() {
        let mut bytes = header(MIB, "disk-0", Format::Qcow2).encode();
        let mut unknown = 0x6803_f857_u32.to_be_bytes().to_vec();
        unknown.extend(3_u32.to_be_bytes());
        unknown.extend([1, 2, 3, 0, 0, 0, 0, 0]);
        bytes.splice(HEADER_BYTES..HEADER_BYTES, unknown);
        let name_at = u64::try_from(bytes.len() - "disk-0".len()).unwrap();
        bytes[8..16].copy_from_slice(&name_at.to_be_bytes());
        assert_eq!(Header::decode(&bytes).map(|h| h.backing_format), Ok(Format::Qcow2));
        let mut bytes = header(MIB, "disk-0", Format::Qcow2).encode();
        bytes[HEADER_BYTES..HEADER_BYTES + 4].fill(0);
        assert_eq!(Header::decode(&bytes), Err("it does not say what kind of file it builds on"));
    }
}
