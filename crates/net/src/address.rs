//! What follows from a slot's number: names and addresses.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The guest's own address, the same in every slot.
pub const GUEST_ADDR: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);

/// The TAP's address inside the namespace: the guest's gateway and its DNS server.
pub const TAP_ADDR: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);

/// Prefix length of the network shared by [`GUEST_ADDR`] and [`TAP_ADDR`].
pub const GUEST_PREFIX_LEN: u8 = 30;

/// The guest's hardware address, the same in every slot: nobody has to ask for it.
pub const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Hardware address of the host's end, the same in every slot: a guest that is brought back from a snapshot remembers
/// it.
pub(crate) const TAP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// Name of the TAP inside a slot's namespace.
pub(crate) const TAP_NAME: &str = "wrenn-tap";

/// Name of the veth end inside a slot's namespace.
pub(crate) const VETH_NAME: &str = "wrenn-veth";

/// Where `ip netns` looks for named namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// The addresses at which the host reaches guests.
pub(crate) const GUEST_NET: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 11, 0, 0), 16);

/// The veth pairs between the host and the namespaces.
pub(crate) const VETH_NET: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 12, 0, 0), 16);

/// Prefix length of one veth pair.
pub(crate) const VETH_PREFIX_LEN: u8 = 31;

/// A number outside [`SlotIndex::MIN`]..=[`SlotIndex::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a slot is numbered from 1 to 32767, not {0}")]
pub struct IndexError(pub u16);

/// The number of a slot: 15 bits, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct SlotIndex(u16);

impl SlotIndex {
    /// The lowest slot.
    pub const MIN: Self = Self(1);
    /// The highest slot: its veth pair ends at the last address of 10.12.0.0/16.
    pub const MAX: Self = Self(0x7fff);

    /// The number itself.
    pub fn get(self) -> u16 {
        self.0
    }

    /// The slot after this one, beginning anew after the last.
    pub(crate) fn next(self) -> Self {
        if self == Self::MAX { Self::MIN } else { Self(self.0 + 1) }
    }

    /// The address at which the host reaches this slot's guest.
    pub fn guest_addr(self) -> Ipv4Addr {
        offset(GUEST_NET.0, u32::from(self.0))
    }

    /// The host's end of the veth pair: the even address.
    pub(crate) fn veth_host_addr(self) -> Ipv4Addr {
        offset(VETH_NET.0, u32::from(self.0) << 1)
    }

    /// The namespace's end of the veth pair: the odd address.
    pub(crate) fn veth_namespace_addr(self) -> Ipv4Addr {
        offset(VETH_NET.0, u32::from(self.0) << 1 | 1)
    }

    /// The name of both the namespace and the host's veth end.
    pub(crate) fn name(self) -> String {
        format!("wrenn-{}", self.0)
    }

    /// Where the namespace is mounted.
    pub(crate) fn netns_path(self) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(self.name())
    }
}

fn offset(network: Ipv4Addr, host: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(network.to_bits() | host)
}

impl TryFrom<u16> for SlotIndex {
    type Error = IndexError;

    fn try_from(value: u16) -> Result<Self, IndexError> {
        if (Self::MIN.0..=Self::MAX.0).contains(&value) { Ok(Self(value)) } else { Err(IndexError(value)) }
    }
}

impl From<SlotIndex> for u16 {
    fn from(index: SlotIndex) -> Self {
        index.0
    }
}

impl std::fmt::Display for SlotIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn index() -> impl Strategy<Value = SlotIndex> {
        (1u16..=0x7fff).prop_map(|n| SlotIndex::try_from(n).expect("in range"))
    }

    fn within(addr: Ipv4Addr, (network, prefix): (Ipv4Addr, u8)) -> bool {
        addr.to_bits() >> (32 - prefix) == network.to_bits() >> (32 - prefix)
    }

    #[test]
    fn zero_and_numbers_above_the_range_are_refused() {
        for number in [0, 0x8000, u16::MAX] {
            assert_eq!(SlotIndex::try_from(number), Err(IndexError(number)));
            assert!(serde_json::from_str::<SlotIndex>(&number.to_string()).is_err());
        }
    }

    #[test]
    fn no_two_slots_share_an_address_and_all_stay_in_their_network() {
        let mut seen = HashSet::new();
        let mut index = SlotIndex::MIN;
        loop {
            assert!(within(index.guest_addr(), GUEST_NET));
            assert!(within(index.veth_host_addr(), VETH_NET));
            assert!(within(index.veth_namespace_addr(), VETH_NET));
            for addr in [index.guest_addr(), index.veth_host_addr(), index.veth_namespace_addr()] {
                assert!(seen.insert(addr), "{addr} appears twice");
            }
            index = index.next();
            if index == SlotIndex::MIN {
                break;
            }
        }
        assert_eq!(seen.len(), 3 * 0x7fff);
    }

    proptest! {
        #[test]
        fn a_veth_pair_is_one_network_of_two(index in index()) {
            let (host, inside) = (index.veth_host_addr().to_bits(), index.veth_namespace_addr().to_bits());
            prop_assert_eq!(host & 1, 0);
            prop_assert_eq!(host | 1, inside);
        }

        #[test]
        fn names_fit_an_interface_name_and_differ(a in index(), b in index()) {
            prop_assert!(a.name().len() < libc::IFNAMSIZ);
            prop_assert_eq!(a.name() == b.name(), a == b);
            prop_assert!(a.name() != TAP_NAME && a.name() != VETH_NAME);
        }

        #[test]
        fn serde_round_trips(index in index()) {
            let text = serde_json::to_string(&index).expect("writes");
            prop_assert_eq!(serde_json::from_str::<SlotIndex>(&text).expect("reads"), index);
        }
    }
}
