//! Who is calling, and whether they may.
//!
//! A handler names what it needs in its signature: [`Caller`] for whoever acts for a team, [`SignedIn`] for a person,
//! [`TeamMember`], [`TeamAdmin`] and [`TeamOwner`] for the team in the path, [`Administrator`] for the platform's own. There
//! is no other way to be authenticated, and no middleware to forget. What a person may do is read from the database at
//! each request, never from the claims of their token.

mod access;
mod client;
mod cookies;
mod keys;
mod limit;
mod password;
mod tokens;

pub use access::{Administrator, Caller, SignedIn, TeamAdmin, TeamMember, TeamOwner};
pub(crate) use access::{administrator, authenticate, by_token, may_go_on, ranked};
pub use client::ClientAddress;
pub(crate) use client::{Peer, is_https};
pub(crate) use cookies::{CookieJar, Cookies, Signer};
pub use keys::{KEY_HEADER, is_key};
pub(crate) use keys::{KeyCache, new_key, record_uses};
pub(crate) use limit::{Limits, Unhurried};
pub(crate) use password::{HashError, Passwords};
pub(crate) use tokens::{Subject, UserTokens};
