//! Signing in with somebody else's account: OAuth 2.0 and OpenID Connect providers behind a [`Registry`].
//!
//! A caller sends the browser to [`Provider::authorize_url`] and, when it comes back with a code, asks
//! [`Provider::identify`] who that is. Everything that has to survive in between (state, PKCE verifier, nonce) is the
//! caller's to keep; this crate knows of no server, cookie or database.
//!
//! Answers of a provider are trusted for what the provider vouches for and nothing else: an e-mail address counts only
//! if the provider says that it is verified, and no error text repeats what a provider, or a browser, has sent.

mod flow;
mod github;
mod http;
mod oidc;
mod provider;
mod registry;
#[cfg(feature = "testing")]
pub mod testing;

pub use github::{GitHub, GitHubConfig};
pub use http::DEFAULT_TIMEOUT;
pub use oidc::{Oidc, OidcConfig};
pub use provider::{Authorization, Exchange, Identity, MAX_DISPLAY_NAME, Provider, ProviderError};
pub use registry::{Registry, RegistryError};
