//! The control plane from outside, over real sockets and a real PostgreSQL. Tests with `fake_agent` in their name have a
//! host acted out for them; those with real VMs are elsewhere.

#![expect(
    refining_impl_trait,
    unreachable_pub,
    reason = "handlers of the acted-out services name their types, and a test binary has no outside"
)]
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

mod accounts;
mod administration;
mod audit;
mod auth;
mod authorisation;
mod capsules;
mod database;
mod exec;
mod extension;
mod fields;
mod files;
mod forks;
mod hosts;
mod openapi;
mod pausing;
mod providers;
mod reports;
mod requests;
mod sealed;
mod snapshots;
mod sockets;
mod support;
mod teams;
