//! The guest's memory, from outside.
//!
//! QEMU maps a file privately. A page that the guest (or [`GuestMemory::patch`]) has written is anonymous memory then, and
//! `/proc/PID/pagemap` tells it from a page of the file: that is the exact set of what differs from the file, with no
//! log kept and no cost while the guest runs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use wrenn_image::{BLOCK_BYTES, BaseWriter, Image, LayerWriter, Piece};

use super::dirty;
use crate::machine::FileKey;
use crate::{MemorySaved, MemoryTarget, VmmError};

/// Bytes moved at once.
const BATCH_BYTES: usize = 1 << 20;
/// Blocks moved at once.
const BATCH: u64 = (BATCH_BYTES / BLOCK_BYTES) as u64;
/// Most pieces of one system call (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;
/// Batches that are read ahead.
const BUFFERS: usize = 2;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A stretch of the guest's memory in the VMM's address space.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// First block of the guest's memory.
    block: u64,
    blocks: u64,
    address: u64,
}

/// The guest's memory in one process.
#[derive(Debug)]
pub(super) struct GuestMemory {
    pid: libc::pid_t,
    parts: Vec<Part>,
}

impl GuestMemory {
    /// Finds the private mapping of the file `key` in the process.
    pub(super) fn find(pid: u32, key: FileKey) -> Result<Self, VmmError> {
        let path = PathBuf::from(format!("/proc/{pid}/maps"));
        let text = std::fs::read_to_string(&path).map_err(|source| VmmError::io("read", &path, source))?;
        let mut parts: Vec<Part> = text.lines().filter_map(|line| part(pid, line, key)).collect();
        parts.sort_by_key(|part| part.block);
        let starts_at_zero = parts.first().is_some_and(|part| part.block == 0);
        let gapless = parts.windows(2).all(|pair| pair[0].block + pair[0].blocks == pair[1].block);
        match libc::pid_t::try_from(pid) {
            Ok(pid) if starts_at_zero && gapless => Ok(Self { pid, parts }),
            _ => Err(VmmError::NoMemory { pid }),
        }
    }

    /// Blocks in all.
    fn blocks(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.block + part.blocks)
    }

    /// Ranges of blocks that were written since the mapping was made, ascending.
    fn dirty(&self) -> io::Result<Vec<Range<u64>>> {
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid))?;
        let mut found = Vec::new();
        for part in &self.parts {
            let written = dirty::written(&pagemap, part.address..part.address + part.blocks * BLOCK)?;
            let block = |address: u64| part.block + (address - part.address) / BLOCK;
            found.extend(written.into_iter().map(|range| block(range.start)..block(range.end)));
        }
        Ok(found)
    }

    /// The pieces of the process's memory that hold a range of blocks.
    fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = libc::iovec> + '_ {
        self.parts.iter().filter_map(move |part| {
            let (start, end) = (range.start.max(part.block), range.end.min(part.block + part.blocks));
            let address = part.address + start.checked_sub(part.block)? * BLOCK;
            let length = end.checked_sub(start).filter(|blocks| *blocks > 0)? * BLOCK;
            let (address, length) = (usize::try_from(address).ok()?, usize::try_from(length).ok()?);
            Some(libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: length })
        })
    }

    /// Reads the blocks of `ranges`, one after the other, into `buffer`.
    fn read(&self, ranges: &[Range<u64>], buffer: &mut [u8]) -> io::Result<()> {
        let remote: Vec<libc::iovec> = ranges.iter().flat_map(|range| self.pieces(range.clone())).collect();
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: `local` is all of `buffer`, which nothing else uses meanwhile; what the remote addresses point at in
        // the other process is the kernel's to check.
        let done = unsafe {
            libc::process_vm_readv(self.pid, &raw const local, 1, remote.as_ptr(), count(&remote)?, 0)
        };
        whole(done, buffer.len())
    }

    fn write(&self, block: u64, bytes: &[u8]) -> io::Result<()> {
        let blocks = (bytes.len() / BLOCK_BYTES) as u64;
        let remote: Vec<libc::iovec> = self.pieces(block..block + blocks).collect();
        let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: the call only reads `local`, which is all of `bytes`; the other process is stopped in the sense that
        // its guest does not run, and the kernel checks the remote addresses.
        let done = unsafe {
            libc::process_vm_writev(self.pid, &raw const local, 1, remote.as_ptr(), count(&remote)?, 0)
        };
        whole(done, bytes.len())
    }

    /// Writes what the layers of `image` put over its base.
    pub(super) fn patch(&self, image: &Image) -> Result<(), VmmError> {
        if image.size_bytes() != self.blocks() * BLOCK {
            return Err(VmmError::MemorySize { image: image.size_bytes(), machine: self.blocks() * BLOCK });
        }
        let zeros = vec![0; BATCH_BYTES];
        image.read_overrides(|block, piece| match piece {
            Piece::Data(bytes) => self.write(block, bytes).map_err(|source| self.error("write", source)),
            Piece::Zero(count) => {
                (block..block + count).step_by(BATCH_BYTES / BLOCK_BYTES).try_for_each(|at| {
                    let blocks = (block + count - at).min(BATCH);
                    let bytes = usize::try_from(blocks * BLOCK).unwrap_or(BATCH_BYTES);
                    self.write(at, &zeros[..bytes]).map_err(|source| self.error("write", source))
                })
            }
        })
    }

    /// Writes the memory to a new file.
    pub(super) fn save(&self, target: &MemoryTarget) -> Result<MemorySaved, VmmError> {
        let dirty = self.dirty().map_err(|source| self.error("look through", source))?;
        let dirty_blocks = dirty.iter().map(|range| range.end - range.start).sum();
        let written = match target {
            MemoryTarget::Base(path) => {
                let mut writer = BaseWriter::create(path, self.blocks() * BLOCK)?;
                self.visit(&dirty, |block, bytes| Ok(writer.write(block, bytes)?))?;
                writer.finish(false)?
            }
            MemoryTarget::Layer { path, parent } => {
                let mut writer = LayerWriter::create(path, self.blocks() * BLOCK)?;
                let mut cursor = parent.cursor();
                self.visit(&dirty, |block, bytes| Ok(writer.write_changed(&mut cursor, block, bytes)?))?;
                writer.finish(false)?
            }
        };
        Ok(MemorySaved { dirty_blocks, data_blocks: written.data_blocks, bytes: written.bytes })
    }

    /// Hands the blocks of `ranges` to `sink`, ascending, in contiguous runs. One thread copies the next batch out of the
    /// other process while this one looks at the last.
    fn visit(
        &self,
        ranges: &[Range<u64>],
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), VmmError>,
    ) -> Result<(), VmmError> {
        let (fill, filled) = mpsc::sync_channel(BUFFERS);
        let (give_back, empty) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for batch in batches(ranges) {
                    let mut buffer = empty.try_recv().unwrap_or_default();
                    let outcome = self.read_batch(&batch, &mut buffer);
                    // Nobody takes it where the other side has failed.
                    if fill.send((batch, buffer, outcome)).is_err() {
                        return;
                    }
                }
            });
            // Owned here, so that an early return ends the other thread too.
            for (batch, buffer, outcome) in filled {
                outcome.map_err(|source| self.error("read", source))?;
                let mut rest = &*buffer;
                for range in batch {
                    let length = usize::try_from((range.end - range.start) * BLOCK).unwrap_or(rest.len());
                    let (run, more) = rest.split_at(length);
                    sink(range.start, run)?;
                    rest = more;
                }
                // The reader may have finished.
                let _unwanted = give_back.send(buffer);
            }
            Ok(())
        })
    }

    /// Makes `buffer` what the blocks of a batch hold.
    fn read_batch(&self, batch: &[Range<u64>], buffer: &mut Vec<u8>) -> io::Result<()> {
        let blocks: u64 = batch.iter().map(|range| range.end - range.start).sum();
        buffer.resize(usize::try_from(blocks * BLOCK).map_err(io::Error::other)?, 0);
        self.read(batch, buffer)
    }

    fn error(&self, action: &'static str, source: io::Error) -> VmmError {
        VmmError::io(action, Path::new(&format!("/proc/{}/mem", self.pid)), source)
    }
}

/// Cuts ranges into groups that one system call takes.
fn batches(ranges: &[Range<u64>]) -> Vec<Vec<Range<u64>>> {
    let mut groups: Vec<Vec<Range<u64>>> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let mut start = range.start;
        while start < range.end {
            let full = groups.last().is_none_or(|group| group.len() == MAX_PIECES) || room == 0;
            if full {
                groups.push(Vec::new());
                room = BATCH;
            }
            let end = range.end.min(start + room);
            if let Some(group) = groups.last_mut() {
                group.push(start..end);
            }
            room -= end - start;
            start = end;
        }
    }
    groups
}

/// The stretch that a line of `maps` describes, where it is one of the file `key`.
fn part(pid: u32, line: &str, key: FileKey) -> Option<Part> {
    let mut fields = line.split_ascii_whitespace();
    let (range, access, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let inode: u64 = fields.nth(1)?.parse().ok()?;
    if inode != key.inode || access != "rw-p" {
        return None;
    }
    // The device in `maps` is not that of `stat` on every file system; what the entry leads to is.
    let file = std::fs::metadata(format!("/proc/{pid}/map_files/{range}")).ok()?;
    if file.dev() != key.device {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let offset = u64::from_str_radix(offset, 16).ok()?;
    Some(Part { block: offset / BLOCK, blocks: (end - start) / BLOCK, address: start })
}

fn count(pieces: &[libc::iovec]) -> io::Result<libc::c_ulong> {
    libc::c_ulong::try_from(pieces.len()).map_err(io::Error::other)
}

fn whole(done: isize, wanted: usize) -> io::Result<()> {
    match usize::try_from(done) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(done) if done == wanted => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn batches_keep_every_block_in_order_and_within_bounds() {
        let scattered = (0..3000).map(|n| n * 10..n * 10 + 1);
        let ranges: Vec<Range<u64>> =
            scattered.chain(std::iter::once(40_000..40_000 + 3 * BATCH + 7)).collect();
        let groups = batches(&ranges);
        for group in &groups {
            let blocks: u64 = group.iter().map(|range| range.end - range.start).sum();
            assert!(blocks <= BATCH && group.len() <= MAX_PIECES && blocks > 0);
        }
        let flat = |ranges: Vec<Range<u64>>| ranges.into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(flat(groups.into_iter().flatten().collect()), flat(ranges));
    }

    /// This process plays the VMM: what it writes into a private mapping is found, read and changed from outside.
    #[test]
    fn written_pages_of_a_private_mapping_are_found_read_and_patched() {
        use std::os::fd::AsRawFd;
        let file = tempfile::tempfile().unwrap();
        let blocks = 64_u64;
        file.set_len(blocks * BLOCK).unwrap();
        file.write_all_at(&[7; BLOCK_BYTES], 5 * BLOCK).unwrap();
        let length = usize::try_from(blocks * BLOCK).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice, released below.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: the mapping has `length` bytes and nobody else has a reference into it.
        let memory = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), length) };
        for block in [0, 9, 10, 63] {
            memory[block * BLOCK_BYTES] = 1;
        }
        assert_eq!(memory[5 * BLOCK_BYTES], 7, "a page that was only read");
        let found = GuestMemory::find(std::process::id(), FileKey::of(&file.metadata().unwrap())).unwrap();
        assert_eq!(found.blocks(), blocks);
        assert_eq!(found.dirty().unwrap(), [0..1, 9..11, 63..64]);
        found.write(20, &[3; 2 * BLOCK_BYTES]).unwrap();
        assert_eq!(found.dirty().unwrap(), [0..1, 9..11, 20..22, 63..64]);
        let mut bytes = vec![0; 3 * BLOCK_BYTES];
        found.read(&[9..10, 20..22], &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[BLOCK_BYTES], bytes[3 * BLOCK_BYTES - 1]), (1, 3, 3));
        // SAFETY: `memory` is not used any more.
        unsafe { libc::munmap(start, length) };
    }
}
