//! What [`save_devices`](crate::Machine::save_devices) writes: Firecracker's own state of CPUs and devices, with the blocks of
//! memory that the guest touched since it was started or restored, which are what it is going to touch first the next time.
//!
//! | bytes | hold |
//! |---|---|
//! | 8 | `WRFCDEV1` |
//! | 8 | length of the state, little-endian, as all numbers |
//! | … | the state |
//! | 8 | number of ranges |
//! | 16 each | first block of 4 KiB, number of blocks; ascending |

use std::ops::Range;

const MAGIC: &[u8; 8] = b"WRFCDEV1";

/// The parts of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Devices {
    pub(super) state: Vec<u8>,
    pub(super) touched: Vec<Range<u64>>,
}

impl Devices {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend((self.state.len() as u64).to_le_bytes());
        bytes.extend(&self.state);
        bytes.extend((self.touched.len() as u64).to_le_bytes());
        for range in &self.touched {
            bytes.extend(range.start.to_le_bytes());
            bytes.extend((range.end - range.start).to_le_bytes());
        }
        bytes
    }

    /// None where the bytes are no such file.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let length = usize::try_from(number(&mut rest)?).ok()?;
        let (state, behind) = rest.split_at_checked(length)?;
        rest = behind;
        let count = number(&mut rest)?;
        if rest.len() as u64 != count.checked_mul(16)? {
            return None;
        }
        let mut touched = Vec::new();
        while !rest.is_empty() {
            let (start, blocks) = (number(&mut rest)?, number(&mut rest)?);
            touched.push(start..start.checked_add(blocks)?);
        }
        Some(Self { state: state.to_vec(), touched })
    }
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (bytes, behind) = rest.split_first_chunk::<8>()?;
    *rest = behind;
    Some(u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back_and_what_is_cut_does_not(
            state in proptest::collection::vec(any::<u8>(), 0..200),
            touched in proptest::collection::vec((0..1u64 << 40, 1..1u64 << 20), 0..20),
        ) {
            let touched = touched.into_iter().map(|(start, blocks)| start..start + blocks).collect();
            let devices = Devices { state, touched };
            let bytes = devices.encode();
            prop_assert_eq!(Devices::decode(&bytes), Some(devices));
            for length in 0..bytes.len() {
                prop_assert_eq!(Devices::decode(&bytes[..length]), None);
            }
        }

        #[test]
        fn anything_else_is_refused_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut framed = MAGIC.to_vec();
            framed.extend(&bytes);
            let _whole_or_not = Devices::decode(&framed);
            prop_assert_eq!(Devices::decode(&bytes), None);
        }
    }
}
