//! GitHub, and GitHub Enterprise Server.
//!
//! After "Authorizing OAuth apps" and the REST API's "Get the authenticated user" and "List email addresses for the
//! authenticated user" in GitHub's documentation.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use oauth2::{AccessToken, AuthType};
use reqwest::StatusCode;
use reqwest::header::ACCEPT;
use serde::Deserialize;
use url::Url;

use crate::flow::Flow;
use crate::http::{Answer, DEFAULT_TIMEOUT, Http};
use crate::{Authorization, Exchange, Identity, Provider, ProviderError};

const SCOPES: &str = "read:user user:email";
const API_VERSION: &str = "2022-11-28";
/// More addresses than an account may have.
const ADDRESSES: &str = "100";

/// An OAuth app at GitHub.
#[derive(Clone)]
pub struct GitHubConfig {
    /// Of the app.
    pub client_id: String,
    /// Of the app.
    pub client_secret: String,
    /// Where people sign in: `https://github.com`, or an Enterprise Server.
    pub url: String,
    /// Where the API is: `https://api.github.com`, or `{url}/api/v3` on an Enterprise Server.
    pub api_url: String,
    /// For each request.
    pub timeout: Duration,
}

/// Signs in with accounts of GitHub.
#[derive(Debug)]
pub struct GitHub {
    flow: Flow,
    http: Http,
    user: Url,
    emails: Url,
}

#[derive(Deserialize)]
struct User {
    id: u64,
    login: String,
    name: Option<String>,
    email: Option<String>,
}

#[derive(Deserialize)]
struct Address {
    email: String,
    primary: bool,
    verified: bool,
}

impl GitHubConfig {
    /// An app at github.com.
    pub fn new(client_id: impl Into<String>, client_secret: impl Into<String>) -> Self {
        Self {
            client_id: client_id.into(),
            client_secret: client_secret.into(),
            url: "https://github.com".to_owned(),
            api_url: "https://api.github.com".to_owned(),
            timeout: DEFAULT_TIMEOUT,
        }
    }
}

impl fmt::Debug for GitHubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitHubConfig")
            .field("client_id", &self.client_id)
            .field("url", &self.url)
            .field("api_url", &self.api_url)
            .finish_non_exhaustive()
    }
}

impl GitHub {
    /// The provider `github`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ProviderError::Configuration`]: an address is none.
    pub fn new(config: GitHubConfig) -> Result<Self, ProviderError> {
        let (url, api) = (base(&config.url)?, base(&config.api_url)?);
        let http = Http::new(&[&url, &api], config.timeout)?;
        let flow = Flow::new(
            (&config.client_id, &config.client_secret),
            (below(&url, "login/oauth/authorize")?, below(&url, "login/oauth/access_token")?),
            AuthType::RequestBody,
            SCOPES,
        );
        let mut emails = below(&api, "user/emails")?;
        emails.query_pairs_mut().append_pair("per_page", ADDRESSES);
        Ok(Self { flow, http, user: below(&api, "user")?, emails })
    }

    async fn api(&self, what: &'static str, url: &Url, token: &AccessToken) -> Result<Answer, ProviderError> {
        let request = self
            .http
            .get(url.clone())
            .bearer_auth(token.secret())
            .header(ACCEPT, "application/vnd.github+json")
            .header("x-github-api-version", API_VERSION);
        self.http.send(what, request).await
    }

    /// The address of a profile that shows none. None also where the user, or the organization, withheld the scope.
    async fn hidden_email(&self, token: &AccessToken) -> Result<Option<String>, ProviderError> {
        let answer = self.api("e-mail addresses", &self.emails, token).await?;
        if matches!(answer.status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) {
            return Ok(None);
        }
        let addresses: Vec<Address> = answer.json("list of e-mail addresses")?;
        Ok(addresses.into_iter().find(|address| address.primary && address.verified).map(|a| a.email))
    }
}

#[async_trait]
impl Provider for GitHub {
    fn name(&self) -> &str {
        "github"
    }

    async fn authorize_url(&self, request: &Authorization<'_>) -> Result<String, ProviderError> {
        self.flow.authorize_url(request, &[])
    }

    async fn identify(&self, exchange: &Exchange<'_>) -> Result<Identity, ProviderError> {
        let token = self.flow.tokens(&self.http, exchange).await?.access;
        let user: User = self.api("profile", &self.user, &token).await?.json("profile")?;
        // A profile can only show an address that GitHub has verified.
        let shown = user.email.filter(|email| !email.trim().is_empty());
        let email = match shown {
            Some(email) => Some(email),
            None => self.hidden_email(&token).await?,
        };
        let names = [user.name.as_deref(), Some(user.login.as_str())];
        Ok(Identity::new(user.id.to_string(), email.as_deref(), names))
    }
}

fn base(text: &str) -> Result<Url, ProviderError> {
    let refused =
        || ProviderError::configuration(format!("GitHub's address {text:?} is not an https address"));
    let url = Url::parse(text).map_err(|_| refused())?;
    if url.cannot_be_a_base() { Err(refused()) } else { Ok(url) }
}

fn below(base: &Url, path: &str) -> Result<Url, ProviderError> {
    let text = format!("{}/{path}", base.as_str().trim_end_matches('/'));
    Url::parse(&text).map_err(|_| ProviderError::configuration(format!("{text:?} is not a URL")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_below_the_configured_addresses() {
        let mut config = GitHubConfig::new("id", "s3cret");
        assert_eq!(GitHub::new(config.clone()).unwrap().user.as_str(), "https://api.github.com/user");
        config.url = "https://git.example/".to_owned();
        config.api_url = "https://git.example/api/v3/".to_owned();
        let github = GitHub::new(config).unwrap();
        assert_eq!(github.user.as_str(), "https://git.example/api/v3/user");
        assert_eq!(github.emails.as_str(), "https://git.example/api/v3/user/emails?per_page=100");
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for bad in ["", "github.com", "ftp://github.com", "mailto:a@b", "https://"] {
            let config = GitHubConfig { url: bad.to_owned(), ..GitHubConfig::new("id", "secret") };
            assert!(matches!(GitHub::new(config), Err(ProviderError::Configuration(_))), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = GitHubConfig::new("id", "s3cret");
        let text = format!("{config:?}{:?}", GitHub::new(config.clone()).unwrap());
        assert!(!text.contains("s3cret"), "{text}");
    }
}
