//! Rules: strings of expressions that load a value into a register, compare it, and end in a verdict.

use std::net::Ipv4Addr;

use super::wire::Writer;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;

const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;

const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_L4PROTO: u32 = 16;

const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;

const NFT_CT_STATE: u32 = 0;
const NFT_CT_STATUS: u32 = 2;
const IPS_DST_NAT: u32 = 1 << 5;

const NFT_NAT_DNAT: u32 = 1;
const NFPROTO_IPV4: u32 = 2;

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// Offset of the source address in an IPv4 header.
const SOURCE: u32 = 12;
/// Offset of the destination address in an IPv4 header.
const DESTINATION: u32 = 16;

/// How a loaded value is compared with a constant; the numbers are the kernel's.
#[derive(Debug, Clone, Copy)]
enum Compare {
    Equal = 0,
    NotEqual = 1,
}

/// States of a connection, as a set of the kernel's bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CtState(u32);

impl CtState {
    /// Belongs to no connection that could be.
    pub(crate) const INVALID: Self = Self(1);
    /// An answer to, or a continuation of, or an error about a known connection.
    pub(crate) const KNOWN: Self = Self(1 << 1 | 1 << 2);
}

/// One rule under construction: each method adds a condition, or ends the rule with what to do.
#[derive(Debug, Default)]
pub(crate) struct Rule {
    expressions: Writer,
}

impl Rule {
    /// Came in on the link `name`.
    pub(crate) fn arriving_on(self, name: &str) -> Self {
        self.link(NFT_META_IIFNAME, name)
    }

    /// Leaves on the link `name`.
    pub(crate) fn leaving_on(self, name: &str) -> Self {
        self.link(NFT_META_OIFNAME, name)
    }

    /// Has exactly this source.
    pub(crate) fn sent_by(self, addr: Ipv4Addr) -> Self {
        self.network_header(SOURCE, 4).compare(Compare::Equal, &addr.octets())
    }

    /// Has any source but this.
    pub(crate) fn not_sent_by(self, addr: Ipv4Addr) -> Self {
        self.network_header(SOURCE, 4).compare(Compare::NotEqual, &addr.octets())
    }

    /// Has exactly this destination.
    pub(crate) fn sent_to(self, addr: Ipv4Addr) -> Self {
        self.network_header(DESTINATION, 4).compare(Compare::Equal, &addr.octets())
    }

    /// Has a destination inside `network`.
    pub(crate) fn sent_into(self, (network, prefix): (Ipv4Addr, u8)) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
        self.network_header(DESTINATION, 4)
            .mask(&mask.to_be_bytes())
            .compare(Compare::Equal, &network.octets())
    }

    /// Carries this protocol (`IPPROTO_*`).
    pub(crate) fn protocol(self, number: u8) -> Self {
        self.load("meta", |data| {
            data.number(1, NFT_REG_1);
            data.number(2, NFT_META_L4PROTO);
        })
        .compare(Compare::Equal, &[number])
    }

    /// Goes to this port; only after [`Self::protocol`] has settled that there are ports.
    pub(crate) fn on_port(self, port: u16) -> Self {
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2).compare(Compare::Equal, &port.to_be_bytes())
    }

    /// Is an ICMP echo request; only after [`Self::protocol`] has settled that it is ICMP.
    pub(crate) fn icmp_echo_request(self) -> Self {
        const ECHO_REQUEST: u8 = 8;
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1).compare(Compare::Equal, &[ECHO_REQUEST])
    }

    /// Belongs to a connection in one of these states.
    pub(crate) fn state(self, states: CtState) -> Self {
        self.connection(NFT_CT_STATE, states.0)
    }

    /// Belongs to a connection whose destination was translated.
    pub(crate) fn destination_translated(self) -> Self {
        self.connection(NFT_CT_STATUS, IPS_DST_NAT)
    }

    /// Lets the packet go on to the next table.
    pub(crate) fn accept(self) -> Self {
        self.verdict(NF_ACCEPT)
    }

    /// Drops the packet.
    pub(crate) fn drop(self) -> Self {
        self.verdict(NF_DROP)
    }

    /// Sends the connection to `addr` instead.
    pub(crate) fn translate_destination(self, addr: Ipv4Addr) -> Self {
        self.load("immediate", |data| {
            data.number(1, NFT_REG_1);
            data.nested(2, |value| value.bytes(NFTA_DATA_VALUE, &addr.octets()));
        })
        .load("nat", |data| {
            data.number(1, NFT_NAT_DNAT);
            data.number(2, NFPROTO_IPV4);
            data.number(3, NFT_REG_1);
        })
    }

    /// Makes the connection come from the address of the link by which it leaves.
    pub(crate) fn masquerade(self) -> Self {
        self.load("masq", |_| {})
    }

    /// The list of expressions, as the content of `NFTA_RULE_EXPRESSIONS`.
    pub(super) fn expressions(&self) -> &[u8] {
        self.expressions.as_bytes()
    }

    fn link(self, key: u32, name: &str) -> Self {
        // The register holds the whole name, filled up with zeros, so the constant must as well.
        let mut padded = [0; libc::IFNAMSIZ];
        padded.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        self.load("meta", |data| {
            data.number(1, NFT_REG_1);
            data.number(2, key);
        })
        .compare(Compare::Equal, &padded)
    }

    fn network_header(self, offset: u32, length: u32) -> Self {
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length)
    }

    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        self.load("payload", |data| {
            data.number(1, NFT_REG_1);
            data.number(2, base);
            data.number(3, offset);
            data.number(4, length);
        })
    }

    fn connection(self, key: u32, bits: u32) -> Self {
        // The kernel keeps both words in its own byte order.
        self.load("ct", |data| {
            data.number(1, NFT_REG_1);
            data.number(2, key);
        })
        .mask(&bits.to_ne_bytes())
        .compare(Compare::NotEqual, &[0; 4])
    }

    fn mask(self, mask: &[u8; 4]) -> Self {
        self.load("bitwise", |data| {
            data.number(1, NFT_REG_1);
            data.number(2, NFT_REG_1);
            data.number(3, 4);
            data.nested(4, |value| value.bytes(NFTA_DATA_VALUE, mask));
            data.nested(5, |value| value.bytes(NFTA_DATA_VALUE, &[0; 4]));
        })
    }

    fn compare(self, operator: Compare, value: &[u8]) -> Self {
        self.load("cmp", |data| {
            data.number(1, NFT_REG_1);
            data.number(2, operator as u32);
            data.nested(3, |data| data.bytes(NFTA_DATA_VALUE, value));
        })
    }

    fn verdict(self, code: u32) -> Self {
        self.load("immediate", |data| {
            data.number(1, NFT_REG_VERDICT);
            data.nested(2, |data| {
                data.nested(NFTA_DATA_VERDICT, |verdict| verdict.number(NFTA_VERDICT_CODE, code));
            });
        })
    }

    fn load(mut self, name: &str, data: impl FnOnce(&mut Writer)) -> Self {
        self.expressions.nested(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, name);
            element.nested(NFTA_EXPR_DATA, data);
        });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes
            .chunks(4)
            .map(|word| word.iter().map(|b| format!("{b:02x}")).collect::<String>())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_verdict_is_an_immediate_into_the_verdict_register() {
        assert_eq!(
            hex(Rule::default().accept().expressions()),
            "30000180 0e000100 696d6d65 64696174 65000000 1c000280 \
             08000100 00000000 10000280 0c000280 08000100 00000001"
        );
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_network_is_loaded_masked_and_compared() {
        let rule = Rule::default().sent_into((Ipv4Addr::new(172, 16, 0, 0), 12));
        assert_eq!(
            hex(rule.expressions()),
            "34000180 0c000100 7061796c 6f616400 24000280 08000100 00000001 08000200 00000001 08000300 00000010 \
             08000400 00000004 \
             44000180 0c000100 62697477 69736500 34000280 08000100 00000001 08000200 00000001 08000300 00000004 \
             0c000480 08000100 fff00000 0c000580 08000100 00000000 \
             2c000180 08000100 636d7000 20000280 08000100 00000001 08000200 00000000 0c000380 08000100 ac100000"
        );
    }

    #[test]
    fn a_link_name_is_compared_over_the_whole_register() {
        let rule = Rule::default().arriving_on("wrenn-tap");
        let mut name = b"wrenn-tap".to_vec();
        name.resize(libc::IFNAMSIZ, 0);
        assert!(rule.expressions().ends_with(&name));
    }
}
