//! What the rooms of the house say to each other: the RPC services between control plane and agent and inside the
//! guest, the tunnel that joins them, the plain HTTP bodies of the guest daemon and its datagrams. No logic lives here.

pub mod datagram;
pub mod drained;
pub mod guest;
pub mod identity;
pub mod tunnel;

/// Generated messages, clients and service traits, by protobuf package.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::uninlined_format_args,
    clippy::semicolon_if_nothing_returned
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/services.rs"));
}

pub use generated::{filesystem, process, wrenn};

/// The service between control plane and agent.
pub mod agent {
    pub use crate::generated::wrenn::agent::v1::*;
}
