//! Copy-on-write layers, with a writer that stands in for the kernel and a reader of their own.
//!
//! Both are written from the kernel's source, not from the crate's code. That they agree with the kernel itself is
//! what `devices.rs` shows, in which the kernel writes and this reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use wrenn_disk::{AHEAD, Chain, CowDisks, MIB};

use super::Kind;

pub(crate) const CHUNK: usize = 4096;
const PER_AREA: u64 = 256;

pub(crate) struct Cow;

impl Kind for Cow {
    type Disks = CowDisks;
    const SUFFIX: &str = ".cow";
    const EMPTY: u64 = AHEAD + MIB;
    const SMALL_SYSTEM: u64 = 160 * MIB;

    fn write(chain: &Chain, at: usize, length: usize, value: u8) {
        assert!(at.is_multiple_of(CHUNK) && length.is_multiple_of(CHUNK));
        let mut store = StandInKernel::load(chain.top());
        for chunk in at / CHUNK..(at + length) / CHUNK {
            store.write(chunk as u64, &[value; CHUNK]);
        }
    }

    fn discard(_: &Chain, _: usize, _: usize) -> bool {
        false
    }

    fn content(chain: &Chain) -> Vec<u8> {
        let mut disk = std::fs::read(&chain.base).unwrap();
        for layer in &chain.layers {
            disk.resize(usize::try_from(header(layer).0).unwrap(), 0);
            let file = File::open(layer).unwrap();
            for (old, new) in exceptions(&file) {
                let at = usize::try_from(old).unwrap() * CHUNK;
                file.read_exact_at(&mut disk[at..at + CHUNK], store_at(new)).unwrap();
            }
        }
        disk
    }

    fn assert_sound(chain: &Chain) {
        let mut below = "disk-0".to_owned();
        let mut size = chain.base.metadata().unwrap().len();
        for layer in &chain.layers {
            let (bytes, builds_on) = header(layer);
            assert!(bytes >= size && builds_on == below, "{layer:?}: {bytes}, {builds_on}");
            let file = File::open(layer).unwrap();
            let mut store = [0; 16];
            file.read_exact_at(&mut store, 4096).unwrap();
            assert_eq!(store, [b'S', b'n', b'A', b'p', 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]);
            let found = exceptions(&file);
            let places: BTreeSet<_> = found.iter().map(|(_, new)| *new).collect();
            assert_eq!(places.len(), found.len(), "{layer:?} uses a place twice");
            let chunks = bytes / CHUNK as u64;
            assert!(found.iter().all(|(old, new)| *old < chunks && *new > 1 && new % 257 != 1), "{layer:?}");
            // Every chunk of the disk may come to have an exception, and an area must follow the last one.
            let needs = 2 + chunks + chunks / PER_AREA;
            assert!(file.metadata().unwrap().len() >= store_at(needs), "{layer:?} is too short");
            below = layer.file_name().unwrap().to_str().unwrap().to_owned();
            size = bytes;
        }
        assert_eq!(size, chain.virtual_bytes);
    }
}

/// Capacity and name of what is below, from the first block.
pub(crate) fn header(layer: &Path) -> (u64, String) {
    let file = File::open(layer).unwrap();
    let mut block = [0; 512];
    file.read_exact_at(&mut block, 0).unwrap();
    assert_eq!(&block[..8], b"WrennCow");
    assert_eq!(block[508..], crc32c::crc32c(&block[..508]).to_le_bytes());
    let name = block[24..].iter().take_while(|byte| **byte != 0).copied().collect();
    (u64::from_le_bytes(*block[16..].first_chunk().unwrap()), String::from_utf8(name).unwrap())
}

/// Where a chunk of the store is in the file.
fn store_at(chunk: u64) -> u64 {
    (chunk + 1) * CHUNK as u64
}

/// All exceptions, as `read_exceptions` of the kernel reads them.
pub(crate) fn exceptions(file: &File) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    for area in 0.. {
        let mut bytes = [0; CHUNK];
        file.read_exact_at(&mut bytes, store_at(1 + area * (PER_AREA + 1))).unwrap();
        for entry in bytes.as_chunks::<16>().0 {
            let old = u64::from_le_bytes(*entry.first_chunk().unwrap());
            let new = u64::from_le_bytes(*entry.last_chunk().unwrap());
            if new == 0 {
                return found;
            }
            found.push((old, new));
        }
    }
    found
}

/// Writes to a store as `drivers/md/dm-snap-persistent.c` does.
pub(crate) struct StandInKernel {
    file: File,
    index: BTreeMap<u64, u64>,
    committed: u64,
    next_free: u64,
}

impl StandInKernel {
    /// Reads what is in a layer.
    pub(crate) fn load(layer: &Path) -> Self {
        let file = File::options().read(true).write(true).open(layer).unwrap();
        let found = exceptions(&file);
        let last = found.iter().map(|(_, new)| *new).max();
        let committed = found.len() as u64;
        let mut kernel = Self {
            file,
            index: found.into_iter().collect(),
            committed,
            next_free: last.map_or(2, |new| new + 1),
        };
        kernel.skip_metadata();
        kernel
    }

    /// Writes a whole chunk of the disk.
    pub(crate) fn write(&mut self, chunk: u64, data: &[u8; CHUNK]) {
        if let Some(new) = self.index.get(&chunk) {
            return self.file.write_all_at(data, store_at(*new)).unwrap();
        }
        let new = self.next_free;
        assert!(store_at(new + 1) <= self.file.metadata().unwrap().len(), "the store overflows");
        self.next_free += 1;
        self.skip_metadata();
        self.file.write_all_at(data, store_at(new)).unwrap();
        let entry = [chunk.to_le_bytes(), new.to_le_bytes()].concat();
        let (area, slot) = (self.committed / PER_AREA, self.committed % PER_AREA);
        if slot == PER_AREA - 1 {
            self.file.write_all_at(&[0; CHUNK], store_at(1 + (area + 1) * (PER_AREA + 1))).unwrap();
        }
        self.file.write_all_at(&entry, store_at(1 + area * (PER_AREA + 1)) + slot * 16).unwrap();
        self.committed += 1;
        self.index.insert(chunk, new);
    }

    fn skip_metadata(&mut self) {
        if self.next_free % (PER_AREA + 1) == 1 {
            self.next_free += 1;
        }
    }
}
