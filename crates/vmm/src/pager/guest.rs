//! The guest's memory: which blocks it was given, and the one way in which it is given any.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use wrenn_image::BLOCK_BYTES;

use super::PagerError;
use super::handshake::Mapping;
use super::uffd::{Event, Filled, Uffd};

/// Bytes of a block of the image, and of a page of the guest.
pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// What became of blocks that were to be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// The guest has them.
    Done,
    /// Not all of them: the VMM changes its memory, and waits for its events to be read.
    Changing,
    /// The VMM has no memory any more.
    Gone,
}

/// The memory of a guest in another process.
#[derive(Debug)]
pub(super) struct Guest {
    uffd: Uffd,
    regions: Vec<Region>,
    given: Mutex<Given>,
}

/// Blocks that lie one after another in the VMM.
#[derive(Debug)]
struct Region {
    address: u64,
    blocks: Range<u64>,
}

/// A bit for each block that the image has no more say over.
#[derive(Debug)]
struct Given(Vec<u64>);

impl Guest {
    /// The memory of checked mappings.
    pub(super) fn new(uffd: Uffd, mappings: &[Mapping]) -> Self {
        let regions: Vec<_> = mappings.iter().map(Region::new).collect();
        let blocks = regions.last().map_or(0, |last| last.blocks.end);
        Self { uffd, regions, given: Mutex::new(Given::new(blocks)) }
    }

    /// The block that lies at an address.
    pub(super) fn block_at(&self, address: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| region.block_at(address))
    }

    /// The blocks that lie in one piece with this one.
    pub(super) fn around(&self, block: u64) -> Option<Range<u64>> {
        self.regions.iter().find(|region| region.blocks.contains(&block)).map(|region| region.blocks.clone())
    }

    /// Whether the image has no more say over a block.
    pub(super) fn is_given(&self, block: u64) -> bool {
        self.given().has(block)
    }

    /// The range without what is given at both of its ends.
    pub(super) fn missing(&self, blocks: Range<u64>) -> Range<u64> {
        let given = self.given();
        let mut missing = blocks.filter(|block| !given.has(*block));
        missing.next().map_or(0..0, |first| first..missing.next_back().unwrap_or(first) + 1)
    }

    /// Reads what the kernel tells, notes what was removed and returns the addresses of faults. Nothing is left to read
    /// when `None` comes back.
    pub(super) fn events(&self) -> Result<Option<Vec<u64>>, PagerError> {
        // Until its event is read, memory that is about to be dropped takes no copies. From then on the bits must say so:
        // hence the lock is held over the reading.
        let mut given = self.given();
        let events = self.uffd.read()?;
        if events.is_empty() {
            return Ok(None);
        }
        let mut faults = Vec::new();
        for event in events {
            match event {
                Event::Fault(address) => faults.push(address),
                Event::Removed(start, end) => {
                    for region in &self.regions {
                        region.within(start, end).for_each(|block| given.set(block));
                    }
                }
            }
        }
        Ok(Some(faults))
    }

    /// Gives the guest whole blocks of its image, from `block` on and all in one piece of its memory. What was given
    /// before is left as it is.
    pub(super) fn place(&self, block: u64, bytes: &[u8]) -> Result<Placed, PagerError> {
        let mut given = self.given();
        let (content, _) = bytes.as_chunks::<BLOCK_BYTES>();
        let fresh = |given: &Given, at: usize| {
            content.get(at).filter(|_| !given.has(block + at as u64)).map(|bytes| *bytes == ZEROS)
        };
        let (mut at, mut longest) = (0, usize::MAX);
        while at < content.len() {
            let Some(zero) = fresh(&given, at) else {
                at += 1;
                continue;
            };
            let more = (at + 1..).take_while(|next| fresh(&given, *next) == Some(zero));
            let count = 1 + more.take(longest - 1).count();
            let first = block + at as u64;
            let filled = self.fill(first, &content[at..at + count], zero)?;
            let done = match filled {
                Filled::Bytes(bytes) => bytes / BLOCK,
                Filled::Exists => 1,
                Filled::Changing => return Ok(Placed::Changing),
                // The VMM may have split a region of its own, by other protection for a part. Blocks never lie across.
                Filled::Nowhere if count > 1 => {
                    longest = 1;
                    continue;
                }
                Filled::Nowhere | Filled::Gone => return Ok(Placed::Gone),
            };
            (first..first + done).for_each(|block| given.set(block));
            at += usize::try_from(done).unwrap_or(usize::MAX);
        }
        Ok(Placed::Done)
    }

    /// Puts zeros in the place of a block that was given and is missing again. One that is there stays.
    pub(super) fn renew(&self, block: u64) -> Result<Placed, PagerError> {
        let _given = self.given();
        Ok(match self.fill(block, &[ZEROS], true)? {
            Filled::Bytes(_) | Filled::Exists => Placed::Done,
            Filled::Changing => Placed::Changing,
            Filled::Nowhere | Filled::Gone => Placed::Gone,
        })
    }

    /// Lets a thread go on that waits for a block, also where it was there before the thread was heard.
    pub(super) fn release(&self, block: u64) -> Result<(), PagerError> {
        match self.uffd.wake(self.address_of(block), BLOCK) {
            Ok(()) => Ok(()),
            Err(errno) => Err(PagerError::system("let the guest go on", errno)),
        }
    }

    fn fill(&self, block: u64, content: &[[u8; BLOCK_BYTES]], zero: bool) -> Result<Filled, PagerError> {
        let (address, bytes) = (self.address_of(block), content.as_flattened());
        if zero { self.uffd.zero(address, bytes.len() as u64) } else { self.uffd.copy(address, bytes) }
    }

    /// The address of a block of this guest.
    fn address_of(&self, block: u64) -> u64 {
        let region = self.regions.iter().find(|region| region.blocks.contains(&block));
        region.map_or(0, |region| region.address + (block - region.blocks.start) * BLOCK)
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Guest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

impl Region {
    fn new(mapping: &Mapping) -> Self {
        let first = mapping.offset / BLOCK;
        Self { address: mapping.address, blocks: first..first + mapping.size / BLOCK }
    }

    fn block_at(&self, address: u64) -> Option<u64> {
        let block = self.blocks.start + address.checked_sub(self.address)? / BLOCK;
        Some(block).filter(|block| self.blocks.contains(block))
    }

    /// Blocks of which an address lies between these two.
    fn within(&self, start: u64, end: u64) -> Range<u64> {
        let block = |address: u64| self.blocks.start + address.saturating_sub(self.address).div_ceil(BLOCK);
        block(start).min(self.blocks.end)..block(end).min(self.blocks.end)
    }
}

impl Given {
    fn new(blocks: u64) -> Self {
        let words = usize::try_from(blocks.div_ceil(64)).unwrap_or(usize::MAX);
        Self(vec![0; words])
    }

    fn place(block: u64) -> (usize, u64) {
        (usize::try_from(block / 64).unwrap_or(usize::MAX), 1 << (block % 64))
    }

    fn has(&self, block: u64) -> bool {
        let (word, bit) = Self::place(block);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    fn set(&mut self, block: u64) {
        let (word, bit) = Self::place(block);
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions() -> [Region; 2] {
        [Region { address: 0x10_0000, blocks: 0..4 }, Region { address: 0x20_0000, blocks: 4..8 }]
    }

    #[test]
    fn addresses_and_blocks_belong_together_on_both_sides_of_the_hole() {
        let [low, high] = regions();
        assert_eq!(low.block_at(0x10_0000), Some(0));
        assert_eq!(low.block_at(0x10_3FFF), Some(3));
        assert_eq!(low.block_at(0x10_4000), None);
        assert_eq!(low.block_at(0xF_FFFF), None);
        assert_eq!(high.block_at(0x20_1000), Some(5));
        assert_eq!(high.block_at(u64::MAX), None);
    }

    #[test]
    fn what_is_removed_is_cut_to_the_region() {
        let [low, high] = regions();
        assert_eq!(low.within(0x10_1000, 0x10_3000), 1..3);
        assert_eq!(low.within(0, u64::MAX), 0..4);
        assert!(low.within(0x20_0000, 0x20_4000).is_empty() && high.within(0x10_0000, 0x10_4000).is_empty());
        assert_eq!(high.within(0x10_0000, 0x20_1000), 4..5);
    }

    #[test]
    fn bits_stay_where_they_are_set() {
        let mut given = Given::new(130);
        for block in [0, 63, 64, 129] {
            assert!(!given.has(block));
            given.set(block);
            assert!(given.has(block) && !given.has(block + 1));
        }
        given.set(10_000);
        assert!(!given.has(10_000), "beyond the end there is nothing");
    }
}
