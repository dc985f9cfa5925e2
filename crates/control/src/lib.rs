//! The control plane: the public HTTP and WebSocket API, the store behind it, and the links to the hosts.
//!
//! ```text
//! api (parse, map) ──► accounts, teams, administration ──► store   (PostgreSQL)
//!  │                ──► capsules, hosts                ──► store
//!  ▼                ──► guest        ──► hosts::transport ──► agent ──► guest daemon
//! auth (who calls, and whether they may)
//! ```
//!
//! Any number of replicas may run over one database: each keeps nothing but caches and links in memory, and every
//! change of a status is a compare-and-set in the store.
//!
//! A program of your own can serve it with routes, middleware and background work added; `examples/extended.rs`, whole:
//!
//! ```ignore
#![doc = include_str!("../examples/extended.rs")]
//! ```

mod accounts;
pub mod admin;
mod administration;
pub mod api;
pub mod audit;
pub mod auth;
pub mod capsules;
pub mod config;
mod error;
mod exec;
mod guest;
pub mod hosts;
pub mod pki;
mod post;
mod secret;
mod serve;
mod state;
pub mod store;
mod teams;
mod templates;
pub mod vault;
mod ws;

pub use config::{AuthLimits, ControlConfig};
pub use error::{Error, Result};
pub use serve::{ControlPlane, serve};
pub use state::{App, Control};
pub use store::Store;
