//! What a pager is told at its start, from both sides.
//!
//! The order is JSON in a variable of the environment. What is to be fetched in advance may be thousands of ranges, more
//! than a variable may hold (128 KiB), so it comes as JSON in a file without a name, by its descriptor.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::ops::Range;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use super::PagerError;

/// The variable with the order.
pub(super) const VARIABLE: &str = "WRENN_PAGER";

/// Everything that a pager is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// The image's header.
    pub(super) image: PathBuf,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The listening socket to which the VMM connects.
    pub(super) socket: RawFd,
    /// The pidfd of the VMM.
    pub(super) vmm: RawFd,
    /// A pipe: [`READY`] once the pager listens, else the text of its error.
    pub(super) ready: RawFd,
    /// A file with the ranges of blocks to fetch in advance.
    pub(super) prefetch: RawFd,
}

/// What a pager says when it listens. No error begins with this.
pub(super) const READY: &[u8] = b"\0";

impl Order {
    /// The order of this process.
    pub(super) fn of_this_process() -> Result<Self, PagerError> {
        let wrong = |problem: String| PagerError::Order { variable: VARIABLE, problem };
        let text = std::env::var(VARIABLE).map_err(|error| wrong(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| wrong(format!("cannot be read ({error})")))
    }
}

/// Takes over a descriptor that the order names.
pub(super) fn inherited(number: RawFd) -> Result<OwnedFd, PagerError> {
    let wrong = |problem| PagerError::Order { variable: VARIABLE, problem };
    if number <= libc::STDERR_FILENO {
        return Err(wrong(format!("names the descriptor {number}")));
    }
    // SAFETY: the borrow ends with the next line; a number that is not open makes the call fail and nothing else.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(borrowed)
        .map_err(|error| wrong(format!("names the descriptor {number} ({error})")))?;
    // SAFETY: it is open, and was left open at the start of this process for the pager alone, which takes each number of
    // its order once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A file with the ranges, to be inherited.
pub(super) fn write_ranges(ranges: &[Range<u64>]) -> std::io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("prefetch", MemfdFlags::CLOEXEC)?);
    let pairs: Vec<(u64, u64)> = ranges.iter().map(|range| (range.start, range.end)).collect();
    file.write_all(&serde_json::to_vec(&pairs)?)?;
    file.rewind()?;
    Ok(file.into())
}

/// The ranges of an inherited file.
pub(super) fn read_ranges(file: OwnedFd) -> Result<Vec<Range<u64>>, PagerError> {
    let mut text = Vec::new();
    File::from(file)
        .read_to_end(&mut text)
        .map_err(|error| PagerError::system("read what to fetch in advance", error))?;
    let pairs: Vec<(u64, u64)> = serde_json::from_slice(&text).map_err(|error| PagerError::Order {
        variable: VARIABLE,
        problem: format!("names ranges that cannot be read ({error})"),
    })?;
    Ok(pairs.into_iter().map(|(start, end)| start..end).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_ranges_than_an_environment_holds_arrive() {
        let ranges: Vec<_> = (0..50_000).map(|block| block * 8..block * 8 + 3).collect();
        let file = write_ranges(&ranges).unwrap();
        assert_eq!(read_ranges(file).unwrap(), ranges);
    }

    #[test]
    fn a_descriptor_that_is_not_open_or_is_a_standard_stream_is_refused() {
        for number in [-1, 0, 2, 1_000_000] {
            let error = inherited(number).unwrap_err();
            assert!(error.to_string().contains(&number.to_string()), "{error}");
        }
    }
}
