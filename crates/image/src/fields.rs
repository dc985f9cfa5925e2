//! Little-endian fields of the files, read with every bound checked.

use crate::{BLOCK, Fault, MAX_IMAGE_BYTES};

/// Takes fields off the front of some bytes.
#[derive(Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (field, rest) = self.0.split_first_chunk().ok_or_else(cut_off)?;
        self.0 = rest;
        Ok(*field)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (field, rest) = self.0.split_at_checked(count).ok_or_else(cut_off)?;
        self.0 = rest;
        Ok(field)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }
}

fn cut_off() -> Fault {
    Fault::new("it ends in the middle of a field")
}

/// A count that is about to become the length of something in memory.
pub(crate) fn length(count: u64) -> Result<usize, Fault> {
    usize::try_from(count).map_err(|_| Fault::new(format!("a count of {count} is beyond this machine")))
}

/// A number of bytes that fits in memory by its origin: part of a slice, or below a constant. Should it not fit after
/// all, slicing with it fails rather than cutting it short.
pub(crate) fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The number of blocks of an image of `size_bytes`.
pub(crate) fn blocks(size_bytes: u64) -> Result<u64, Fault> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(BLOCK) || size_bytes > MAX_IMAGE_BYTES {
        return Err(Fault::new(format!(
            "an image of {size_bytes} bytes: a multiple of {BLOCK} from {BLOCK} to {MAX_IMAGE_BYTES} is possible"
        )));
    }
    Ok(size_bytes / BLOCK)
}
