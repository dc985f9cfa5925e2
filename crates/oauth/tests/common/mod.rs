//! One visit of a browser.

use std::error::Error;

use wrenn_oauth::testing::{CLIENT_SECRET, open, parameter};
use wrenn_oauth::{Authorization, Exchange, Identity, Provider, ProviderError};

pub(crate) const REDIRECT: &str = "http://127.0.0.1:9/auth/oauth/x/callback";
pub(crate) const STATE: &str = "a state & its signature";
pub(crate) const VERIFIER: &str = "the-verifier-of-one-browser-0123456789-abcdef";
pub(crate) const NONCE: &str = "the-nonce-of-one-browser";

pub(crate) const AUTHORIZATION: Authorization<'_> =
    Authorization { state: STATE, redirect_uri: REDIRECT, pkce_verifier: VERIFIER, nonce: NONCE };

/// Lets the browser fetch a code.
pub(crate) async fn code(provider: &dyn Provider) -> String {
    let url = provider.authorize_url(&AUTHORIZATION).await.expect("an address to authorize");
    let back = open(&url).await;
    assert!(back.as_str().starts_with(REDIRECT), "{back}");
    assert_eq!(parameter(&back, "state").as_deref(), Some(STATE));
    parameter(&back, "code").expect("a code")
}

pub(crate) fn exchange(code: &str) -> Exchange<'_> {
    Exchange { code, redirect_uri: REDIRECT, pkce_verifier: VERIFIER, nonce: NONCE }
}

/// Signs in, and checks what an error gives away.
pub(crate) async fn sign_in(provider: &dyn Provider) -> Result<Identity, ProviderError> {
    let code = code(provider).await;
    let result = provider.identify(&exchange(&code)).await;
    if let Err(error) = &result {
        let mut text = format!("{error:?}");
        let mut next: Option<&dyn Error> = Some(error);
        while let Some(error) = next {
            text.push_str(&error.to_string());
            next = error.source();
        }
        for secret in [code.as_str(), VERIFIER, NONCE, CLIENT_SECRET, "token-0"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    result
}

pub(crate) fn is_exchange(result: &Result<Identity, ProviderError>) -> bool {
    matches!(result, Err(ProviderError::Exchange(_)))
}

pub(crate) fn is_configuration(result: &Result<Identity, ProviderError>) -> bool {
    matches!(result, Err(ProviderError::Configuration(_)))
}

pub(crate) fn is_unreachable(result: &Result<Identity, ProviderError>) -> bool {
    matches!(result, Err(ProviderError::Unreachable { .. }))
}

pub(crate) fn is_invalid(result: &Result<Identity, ProviderError>) -> bool {
    matches!(result, Err(ProviderError::Invalid(_)))
}
