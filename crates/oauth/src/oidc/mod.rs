//! Any provider of OpenID Connect.

mod cache;
mod discovery;
mod token;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use url::Url;

use self::cache::Cache;
use self::discovery::Endpoints;
use self::token::{Claims, Expected, Keys, Profile};
use crate::flow::Tokens;
use crate::http::{DEFAULT_TIMEOUT, Http};
use crate::{Authorization, Exchange, Identity, Provider, ProviderError};

const KEYS: &str = "signing keys";
const PROFILE: &str = "profile";

/// A client of an OpenID Connect provider.
#[derive(Clone)]
pub struct OidcConfig {
    /// The [`Provider::name`].
    pub name: String,
    /// Exactly as the provider writes it, such as `https://accounts.google.com`.
    pub issuer: String,
    /// Of the client registered there.
    pub client_id: String,
    /// Of the client registered there.
    pub client_secret: String,
    /// Separated by spaces; `openid` must be among them.
    pub scopes: String,
    /// For each request.
    pub timeout: Duration,
}

impl OidcConfig {
    /// A client that asks for the name and the address.
    pub fn new(
        name: impl Into<String>,
        issuer: impl Into<String>,
        client_id: impl Into<String>,
        client_secret: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            issuer: issuer.into(),
            client_id: client_id.into(),
            client_secret: client_secret.into(),
            scopes: "openid email profile".to_owned(),
            timeout: DEFAULT_TIMEOUT,
        }
    }
}

impl fmt::Debug for OidcConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OidcConfig")
            .field("name", &self.name)
            .field("issuer", &self.issuer)
            .field("client_id", &self.client_id)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

/// Signs in with accounts of one issuer. What the issuer publishes about itself is fetched when first needed.
#[derive(Debug)]
pub struct Oidc {
    config: OidcConfig,
    document: Url,
    http: Http,
    endpoints: Cache<Endpoints>,
    keys: Cache<Keys>,
}

#[derive(Deserialize)]
struct Userinfo {
    sub: String,
    #[serde(flatten)]
    profile: Profile,
}

impl Oidc {
    /// The provider of the configured name. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ProviderError::Configuration`]: the issuer is no address, or `openid` is not among the scopes.
    pub fn new(config: OidcConfig) -> Result<Self, ProviderError> {
        let document = discovery::document_url(&config.issuer)?;
        if !config.scopes.split_ascii_whitespace().any(|scope| scope == "openid") {
            return Err(ProviderError::configuration("`openid` must be among the scopes"));
        }
        let http = Http::new(&[&document], config.timeout)?;
        Ok(Self { config, document, http, endpoints: Cache::default(), keys: Cache::default() })
    }

    async fn endpoints(&self) -> Result<Arc<Endpoints>, ProviderError> {
        self.endpoints.get(discovery::endpoints(&self.http, self.document.clone(), &self.config)).await
    }

    async fn fetch_keys(&self, endpoints: &Endpoints) -> Result<Keys, ProviderError> {
        self.http.send(KEYS, self.http.get(endpoints.keys.clone())).await?.json(KEYS)
    }

    /// The claims of an ID token. A token of an unknown key may be the first after a change of keys.
    async fn verified(
        &self,
        endpoints: &Endpoints,
        token: &str,
        nonce: &str,
    ) -> Result<Claims, ProviderError> {
        let header = token::header(token)?;
        let mut keys = self.keys.get(self.fetch_keys(endpoints)).await?;
        if keys.find(&header).is_none()
            && let Some(renewed) = self.keys.renew(&keys, self.fetch_keys(endpoints)).await?
        {
            tracing::debug!(provider = self.config.name, "fetched the signing keys anew");
            keys = renewed;
        }
        let key = keys.find(&header).ok_or_else(|| {
            ProviderError::invalid("the ID token is signed with a key that the provider does not publish")
        })?;
        let expected = Expected { issuer: &self.config.issuer, client_id: &self.config.client_id, nonce };
        token::verify(token, header.alg, key, &expected)
    }

    async fn userinfo(&self, url: &Url, tokens: &Tokens, subject: &str) -> Result<Profile, ProviderError> {
        let request = self.http.get(url.clone()).bearer_auth(tokens.access.secret());
        let userinfo: Userinfo = self.http.send(PROFILE, request).await?.json(PROFILE)?;
        if userinfo.sub != subject {
            return Err(ProviderError::invalid("the profile is of somebody else than the ID token"));
        }
        Ok(userinfo.profile)
    }
}

#[async_trait]
impl Provider for Oidc {
    fn name(&self) -> &str {
        &self.config.name
    }

    async fn authorize_url(&self, request: &Authorization<'_>) -> Result<String, ProviderError> {
        self.endpoints().await?.flow.authorize_url(request, &[("nonce", request.nonce)])
    }

    async fn identify(&self, exchange: &Exchange<'_>) -> Result<Identity, ProviderError> {
        let endpoints = self.endpoints().await?;
        let tokens = endpoints.flow.tokens(&self.http, exchange).await?;
        let token =
            tokens.id.as_deref().ok_or_else(|| ProviderError::invalid("there is no ID token in it"))?;
        let Claims { sub, mut profile, .. } = self.verified(&endpoints, token, exchange.nonce).await?;
        if let Some(url) = &endpoints.userinfo
            && profile.is_incomplete()
        {
            profile.complete(self.userinfo(url, &tokens, &sub).await?);
        }
        let names = [profile.name.as_deref(), profile.preferred_username.as_deref()];
        Ok(Identity::new(sub, profile.email(), names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openid_is_asked_for() {
        let mut config = OidcConfig::new("sso", "https://sso.example", "id", "secret");
        assert!(Oidc::new(config.clone()).is_ok());
        for bad in ["", "email profile", "openidx"] {
            config.scopes = bad.to_owned();
            assert!(matches!(Oidc::new(config.clone()), Err(ProviderError::Configuration(_))), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = OidcConfig::new("sso", "https://sso.example", "id", "s3cret");
        let text = format!("{config:?}{:?}", Oidc::new(config.clone()).unwrap());
        assert!(!text.contains("s3cret"), "{text}");
    }
}
