//! Network slots: everything one virtual machine needs to be on the network, built and removed as a unit.
//!
//! A slot is a number from 1 to 32767, and every name and address follows from it by bit arithmetic
//! ([`SlotIndex`]), so nothing has to be remembered but the number:
//!
//! ```text
//!  host namespace                                 namespace wrenn-<i>                    guest
//!  ┌───────────────────────────┐   veth /31   ┌───────────────────────────┐   TAP /30   ┌──────────────┐
//!  │ route 10.11.x.y/32 ─▶ wrenn-<i> ════════ wrenn-veth       wrenn-tap ═══════════════ 169.254.0.21  │
//!  │                  10.12.a.b│              │ 10.12.a.b+1  169.254.0.22 │             │              │
//!  │ table inet wrenn          │              │ tables ip/ip6 wrenn, DNS  │             │              │
//!  └───────────────────────────┘              └───────────────────────────┘             └──────────────┘
//! ```
//!
//! The guest's side is the same in every slot, so a memory snapshot fits any of them. The host reaches a guest
//! at 10.11.x.y, which the namespace translates; the guest leaves through two translations, in its namespace
//! and on the host. What a guest may not reach is refused in its own namespace, and again on the host by a
//! static table that knows only the names `wrenn-*`.
//!
//! Several agents may share a machine. A slot belongs to whoever holds its claim file; the file is made before
//! the first kernel object and removed after the last, so a crash at any point leaves a claim from which
//! [`Network::sweep`] can clean up.

mod address;
mod assemble;
mod claims;
mod dns;
pub mod doctor;
mod error;
mod firewall;
mod host;
mod ledger;
mod links;
mod namespace;
mod network;
mod nft;
mod slot;
mod tap;

pub use address::{GUEST_ADDR, GUEST_MAC, GUEST_PREFIX_LEN, IndexError, SlotIndex, TAP_ADDR};
pub use error::{NetError, Result};
pub use network::{Network, NetworkConfig, SweepReport};
pub use slot::Slot;

#[cfg(test)]
#[path = "../tests/slots/machine.rs"]
mod machine;
