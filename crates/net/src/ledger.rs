//! Which slots this process believes free: a guess that keeps allocation cheap. The claim files decide.

use std::collections::BTreeSet;

use crate::address::SlotIndex;

/// Slots known to be taken, and those among them that this process holds.
#[derive(Debug)]
pub(crate) struct Ledger {
    taken: BTreeSet<SlotIndex>,
    live: BTreeSet<SlotIndex>,
    /// Where the search begins. It moves on, so that a slot just released rests as long as possible: clients
    /// may still hold the address of its former guest.
    cursor: SlotIndex,
}

impl Ledger {
    /// Begins with the slots that are taken now.
    pub(crate) fn new(taken: impl IntoIterator<Item = SlotIndex>) -> Self {
        Self { taken: taken.into_iter().collect(), live: BTreeSet::new(), cursor: SlotIndex::MIN }
    }

    /// Marks the next slot that seems free as held by this process; `None` where none seems free.
    pub(crate) fn reserve(&mut self) -> Option<SlotIndex> {
        let mut candidate = self.cursor;
        while self.taken.contains(&candidate) {
            candidate = candidate.next();
            if candidate == self.cursor {
                return None;
            }
        }
        self.hold(candidate);
        self.cursor = candidate.next();
        Some(candidate)
    }

    /// Marks a slot as held by this process.
    pub(crate) fn hold(&mut self, index: SlotIndex) {
        self.taken.insert(index);
        self.live.insert(index);
    }

    /// The slot turned out to be somebody else's, or is left for the next sweep.
    pub(crate) fn disown(&mut self, index: SlotIndex) {
        self.live.remove(&index);
    }

    /// The slot is free again.
    pub(crate) fn free(&mut self, index: SlotIndex) {
        self.live.remove(&index);
        self.taken.remove(&index);
    }

    /// Whether this process holds the slot, or is just building it.
    pub(crate) fn is_live(&self, index: SlotIndex) -> bool {
        self.live.contains(&index)
    }

    /// Replaces what is believed of others by what is taken now.
    pub(crate) fn refresh(&mut self, taken: impl IntoIterator<Item = SlotIndex>) {
        self.taken = taken.into_iter().chain(self.live.iter().copied()).collect();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(number: u16) -> SlotIndex {
        SlotIndex::try_from(number).unwrap()
    }

    #[test]
    fn a_slot_just_freed_is_not_the_next_one_given() {
        let mut ledger = Ledger::new([index(2)]);
        assert_eq!(ledger.reserve(), Some(index(1)));
        ledger.free(index(1));
        assert_eq!(ledger.reserve(), Some(index(3)));
    }

    #[test]
    fn every_slot_is_given_once_then_none_until_a_refresh_finds_one() {
        let mut ledger = Ledger::new([]);
        let given: BTreeSet<_> = std::iter::from_fn(|| ledger.reserve()).collect();
        assert_eq!(given.len(), 0x7fff);
        ledger.disown(index(77));
        assert_eq!(ledger.reserve(), None);
        ledger.refresh([]);
        assert_eq!(ledger.reserve(), Some(index(77)));
    }

    proptest! {
        #[test]
        fn what_is_reserved_was_neither_taken_nor_live(
            taken in proptest::collection::btree_set(1u16..40, 0..40), releases in proptest::collection::vec(any::<bool>(), 0..60)
        ) {
            let taken: BTreeSet<_> = taken.into_iter().map(index).collect();
            let mut ledger = Ledger::new(taken.clone());
            let mut held = BTreeSet::new();
            for release in releases {
                if release && let Some(index) = held.pop_first() {
                    ledger.free(index);
                    continue;
                }
                let given = ledger.reserve().expect("far from full");
                prop_assert!(!taken.contains(&given));
                prop_assert!(held.insert(given));
            }
        }
    }
}
