//! The rules inside a slot's namespace: what its guest may reach, and who may reach its guest.
//!
//! Every packet of the guest passes here first. The table `ip wrenn` translates between the guest's fixed
//! address and the slot's, and forwards only what it names; the table `ip6 wrenn` lets nothing through.
//! Order matters in `forward`: forged senders go first, then known connections pass (so an answer to the host
//! is not taken for a visit to a private address), then the forbidden destinations, then the rest may leave.

use std::io;
use std::net::Ipv4Addr;

use crate::address::{GUEST_ADDR, GUEST_NET, SlotIndex, TAP_ADDR, TAP_NAME, VETH_NAME, VETH_NET};
use crate::nft::{Batch, Chain, CtState, Family, Hook, Policy, Rule};

/// The name of our tables, in the namespaces and on the host.
pub(crate) const TABLE: &str = "wrenn";

type Network = (Ipv4Addr, u8);

/// Never reachable from a guest: this host, other slots, metadata services, and what is no single host.
const ALWAYS_FORBIDDEN: [Network; 7] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    GUEST_NET,
    VETH_NET,
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    // Multicast, then the reserved block that ends with the broadcast address.
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Networks that are not part of the Internet (RFC 6890); an operator may open them.
const PRIVATE: [Network; 6] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
];

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS_PORT: u16 = 53;

const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SRCNAT: i32 = 100;

/// Whether guests may reach private networks beyond the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrivateNetworks {
    /// They may.
    Allowed,
    /// They may not.
    Forbidden,
}

/// Whether a namespace has rules already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// It was just made.
    Nothing,
    /// It may have those of an earlier process. They are replaced in one instant, and connections go on.
    Rules,
}

/// Writes a slot's rules; to be run inside its namespace.
pub(crate) fn apply(index: SlotIndex, private: PrivateNetworks, before: Before) -> io::Result<()> {
    let table = match before {
        Before::Nothing => Batch::new_table,
        Before::Rules => Batch::replace_table,
    };
    let mut batch = Batch::new(TABLE);
    table(&mut batch, Family::Ip);
    let nat = |name, hook, priority| Chain { name, kind: "nat", hook, priority, policy: Policy::Accept };
    batch.chain(Family::Ip, nat("prerouting", Hook::Prerouting, PRIORITY_DSTNAT), prerouting(index));
    batch.chain(Family::Ip, nat("postrouting", Hook::Postrouting, PRIORITY_SRCNAT), postrouting());
    batch.chain(Family::Ip, filter("forward", Hook::Forward), forward(private));
    batch.chain(Family::Ip, filter("input", Hook::Input), input());
    table(&mut batch, Family::Ip6);
    for (name, hook) in [("input", Hook::Input), ("forward", Hook::Forward), ("output", Hook::Output)] {
        batch.chain(Family::Ip6, filter(name, hook), []);
    }
    batch.commit()
}

fn filter(name: &'static str, hook: Hook) -> Chain {
    Chain { name, kind: "filter", hook, priority: PRIORITY_FILTER, policy: Policy::Drop }
}

fn prerouting(index: SlotIndex) -> Vec<Rule> {
    vec![Rule::default().arriving_on(VETH_NAME).sent_to(index.guest_addr()).translate_destination(GUEST_ADDR)]
}

fn postrouting() -> Vec<Rule> {
    [VETH_NAME, TAP_NAME].map(|link| Rule::default().leaving_on(link).masquerade()).into()
}

fn forward(private: PrivateNetworks) -> Vec<Rule> {
    let guest = || Rule::default().arriving_on(TAP_NAME);
    let mut rules = vec![
        guest().not_sent_by(GUEST_ADDR).drop(),
        Rule::default().state(CtState::INVALID).drop(),
        Rule::default().state(CtState::KNOWN).accept(),
    ];
    let forbidden = |network: &Network| guest().sent_into(*network).drop();
    rules.extend(ALWAYS_FORBIDDEN.iter().map(forbidden));
    if private == PrivateNetworks::Forbidden {
        rules.extend(PRIVATE.iter().map(forbidden));
    }
    rules.push(guest().leaving_on(VETH_NAME).accept());
    let visitor = Rule::default().arriving_on(VETH_NAME).leaving_on(TAP_NAME);
    rules.push(visitor.sent_to(GUEST_ADDR).destination_translated().accept());
    rules
}

fn input() -> Vec<Rule> {
    let guest = || Rule::default().arriving_on(TAP_NAME).sent_by(GUEST_ADDR).sent_to(TAP_ADDR);
    vec![
        Rule::default().arriving_on("lo").accept(),
        Rule::default().arriving_on(TAP_NAME).not_sent_by(GUEST_ADDR).drop(),
        Rule::default().state(CtState::KNOWN).accept(),
        guest().protocol(UDP).on_port(DNS_PORT).accept(),
        guest().protocol(TCP).on_port(DNS_PORT).accept(),
        guest().protocol(ICMP).icmp_echo_request().accept(),
    ]
}
