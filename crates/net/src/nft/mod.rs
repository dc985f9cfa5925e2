//! A small encoder for nf_tables over nfnetlink: tables, base chains, and rules made of the few expressions a
//! slot needs.
//!
//! A slot's rules are written while somebody waits for the slot, and an `nft` process costs more than the whole
//! rest of it, so they go to the kernel in one message. No library fits: those over libnftnl link C, rustables
//! is GPL, and the pure ones have no expressions for connection tracking and address translation.
//!
//! [`wire`] writes attributes, [`Rule`] strings expressions together, [`Batch`] makes the transaction, and
//! [`Batch::commit`] sends it to the namespace of the calling thread. The numbers are those of
//! `linux/netfilter/nf_tables.h` and `nfnetlink.h`; names of attributes are kept as there.

mod batch;
mod rule;
mod socket;
mod wire;

pub(crate) use batch::{Batch, Chain, Family, Hook, Policy};
pub(crate) use rule::{CtState, Rule};
pub(crate) use socket::table_exists;
