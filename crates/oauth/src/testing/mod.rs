//! Sign-in providers on the loopback interface, for tests.
//!
//! [`FakeGitHub`] and [`FakeOidc`] speak real HTTP and hold a client to the rules: client id and secret, callback
//! address, PKCE, codes that are good for one use. Nobody clicks, though: whoever opens the address to authorize is
//! whoever [`sign_in_as`](FakeGitHub::sign_in_as) named last, and is sent back at once. Dropping one closes it.
//!
//! What they cannot do because the socket, or a key, cannot be had, they panic over.

mod consent;
mod github;
mod oidc;
mod server;

use url::Url;

pub use github::{FakeGitHub, GitHubEmail, GitHubProfile};
pub use oidc::{FakeOidc, KeyKind, OidcProfile, Signing};
pub use server::Fault;

/// The client that is registered at a fake.
pub const CLIENT_ID: &str = "Iv1.test~client";
/// Its secret, which does not survive careless encoding.
pub const CLIENT_SECRET: &str = "test secret/+%:&=";

/// Opens an address to authorize as a browser without cookies would, and returns where it is sent.
///
/// # Panics
/// There is no answer, or it is no redirect.
pub async fn open(authorize_url: &str) -> Url {
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .expect("HTTP client");
    let response = client.get(authorize_url).send().await.expect("answer of the provider");
    let status = response.status();
    let location =
        response.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
    match location {
        Some(location) => Url::parse(&location).expect("an absolute address"),
        None => panic!("status {status}: {}", response.text().await.unwrap_or_default()),
    }
}

/// One parameter of an address, such as the `code` of the one that [`open`] returned.
pub fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}
