//! Which pages of a private file mapping were written.
//!
//! Two ways to the same answer. Linux 6.7 and later list the ranges in one system call (`PAGEMAP_SCAN`); before, each page's
//! entry in `/proc/PID/pagemap` is looked at. Source of both: the kernel's `admin-guide/mm/pagemap.rst`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
const PAGE_BYTES: usize = wrenn_image::BLOCK_BYTES;
const PAGE: u64 = PAGE_BYTES as u64;

/// Entries of pagemap read at once.
const ENTRIES: usize = 64 * 1024;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page is of a file, or of shared memory.
const OF_FILE: u64 = 1 << 61;

/// `PAGEMAP_SCAN` of linux/fs.h: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
/// Ranges returned by one call.
const REGIONS: usize = 4096;

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    region_count: u64,
    max_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    returned: u64,
}

/// The ranges of addresses within `range` that were written, ascending, in the process that `pagemap` is of.
pub(super) fn written(pagemap: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    match scan(pagemap, range.clone()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => read(pagemap, range),
        done => done,
    }
}

fn scan(pagemap: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut regions = vec![Region::default(); REGIONS];
    let mut start = range.start;
    while start < range.end {
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start,
            end: range.end,
            regions: regions.as_mut_ptr() as u64,
            region_count: REGIONS as u64,
            inverted: IS_FILE,
            all_of: IS_FILE,
            any_of: IS_PRESENT | IS_SWAPPED,
            ..Scan::default()
        };
        // SAFETY: `scan` is a pm_scan_arg of the size it states; the kernel writes it, and at most `region_count` regions to
        // `regions`, which has room for them and outlives the call.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        regions[..count].iter().for_each(|region| join(&mut found, region.start..region.end));
        if scan.walk_end <= start {
            return Err(io::ErrorKind::InvalidData.into());
        }
        start = scan.walk_end;
    }
    Ok(found)
}

fn read(pagemap: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut bytes = vec![0; ENTRIES * 8];
    let mut start = range.start;
    while start < range.end {
        let pages = usize::try_from((range.end - start) / PAGE).map_or(ENTRIES, |pages| pages.min(ENTRIES));
        let entries = &mut bytes[..pages * 8];
        pagemap.read_exact_at(entries, start / PAGE * 8)?;
        for (entry, address) in entries.chunks_exact(8).zip((start..).step_by(PAGE_BYTES)) {
            if is_written(entry.try_into().map_or(0, u64::from_le_bytes)) {
                join(&mut found, address..address + PAGE);
            }
        }
        start += pages as u64 * PAGE;
    }
    Ok(found)
}

fn is_written(entry: u64) -> bool {
    entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT
}

/// Adds a range, as part of the last one where it continues it.
fn join(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => ranges.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_written_pages_count() {
        assert!(is_written(PRESENT) && is_written(SWAPPED) && is_written(PRESENT | SWAPPED));
        assert!(!is_written(0) && !is_written(PRESENT | OF_FILE) && !is_written(OF_FILE));
    }

    #[test]
    fn both_ways_see_the_same() {
        let file = tempfile::tempfile().unwrap();
        let length = 9000 * PAGE_BYTES;
        file.set_len(length as u64).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice, released below.
        let start = unsafe {
            let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
            libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_PRIVATE, fd, 0)
        };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: the mapping has `length` bytes and nobody else has a reference into it.
        let memory = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), length) };
        // More ranges than one call returns, pages that are only read, and a range at each end.
        let mut sum = 0_u8;
        for page in 0..9000 {
            match page % 2 {
                0 => memory[page * PAGE_BYTES] = 1,
                _ => sum = sum.wrapping_add(memory[page * PAGE_BYTES]),
            }
        }
        assert_eq!(sum, 0);
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let range = start as u64..start as u64 + length as u64;
        let slow = read(&pagemap, range.clone()).unwrap();
        assert_eq!(slow.len(), 4500);
        assert_eq!(slow[0], range.start..range.start + PAGE);
        match scan(&pagemap, range) {
            Ok(fast) => assert_eq!(fast, slow),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "an older kernel"),
        }
        // SAFETY: `memory` is not used any more.
        unsafe { libc::munmap(start, length) };
    }
}
