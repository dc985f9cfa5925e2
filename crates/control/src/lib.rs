//! The control plane: the public HTTP and WebSocket API, the store behind it, and the links to the hosts.
//!
//! ```text
//! api (parse, authorise, map) ──► capsules, hosts ──► store   (PostgreSQL)
//!                             ──► guest           ──► hosts::transport ──► agent ──► guest daemon
//! ```
//!
//! Any number of replicas may run over one database: each keeps nothing but caches and links in memory, and every
//! change of a status is a compare-and-set in the store.

pub mod admin;
pub mod api;
pub mod auth;
pub mod capsules;
pub mod config;
mod error;
mod exec;
mod guest;
pub mod hosts;
pub mod pki;
mod secret;
mod serve;
mod state;
pub mod store;
mod templates;
mod ws;

pub use config::ControlConfig;
pub use error::{Error, Result};
pub use serve::{serve, serve_on};
pub use store::Store;
