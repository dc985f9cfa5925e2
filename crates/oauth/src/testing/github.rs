//! GitHub as its documentation describes it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Value, json};

use super::consent::{Consent, Parameters, Refused, form};
use super::server::{Fault, Server, listen};
use super::{CLIENT_ID, CLIENT_SECRET};
use crate::{GitHub, GitHubConfig, Provider};

/// An account at a [`FakeGitHub`].
#[derive(Debug, Clone)]
pub struct GitHubProfile {
    /// Never changes.
    pub id: u64,
    /// May change.
    pub login: String,
    /// Which most people leave out.
    pub name: Option<String>,
    /// The address that the profile shows, if it shows one.
    pub email: Option<String>,
    /// What `/user/emails` lists.
    pub emails: Vec<GitHubEmail>,
    /// Whether the person takes `user:email` out of what is asked for.
    pub withholds_emails: bool,
}

/// An address of an account.
#[derive(Debug, Clone, Serialize)]
pub struct GitHubEmail {
    /// The address.
    pub email: String,
    /// Whether it is the one that GitHub writes to.
    pub primary: bool,
    /// Whether GitHub has seen that it is theirs.
    pub verified: bool,
}

/// A GitHub of one's own.
#[derive(Debug)]
pub struct FakeGitHub {
    url: String,
    consent: Arc<Consent<GitHubProfile>>,
    server: Server,
}

impl GitHubProfile {
    /// An account that has neither a name nor an address.
    pub fn new(id: u64, login: &str) -> Self {
        Self {
            id,
            login: login.to_owned(),
            name: None,
            email: None,
            emails: Vec::new(),
            withholds_emails: false,
        }
    }

    /// Adds an address that the profile does not show.
    #[must_use]
    pub fn with_hidden_email(mut self, email: &str, primary: bool, verified: bool) -> Self {
        self.emails.push(GitHubEmail { email: email.to_owned(), primary, verified });
        self
    }
}

impl FakeGitHub {
    /// Where browsers go.
    pub const AUTHORIZE: &str = "/login/oauth/authorize";
    /// Where codes are exchanged.
    pub const TOKEN: &str = "/login/oauth/access_token";
    /// Where profiles are.
    pub const USER: &str = "/api/v3/user";
    /// Where addresses are.
    pub const EMAILS: &str = "/api/v3/user/emails";

    /// Listens on a free port.
    ///
    /// # Panics
    /// There is none.
    pub async fn start() -> Self {
        let (listener, url) = listen().await;
        let consent = Arc::new(Consent::default());
        let router = Router::new()
            .route(Self::AUTHORIZE, get(authorize))
            .route(Self::TOKEN, post(token))
            .route(Self::USER, get(user))
            .route(Self::EMAILS, get(emails))
            .with_state(consent.clone());
        Self { url, consent, server: Server::start(listener, router) }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The configuration of the client that is registered here.
    pub fn config(&self) -> GitHubConfig {
        GitHubConfig {
            url: self.url.clone(),
            api_url: format!("{}/api/v3", self.url),
            ..GitHubConfig::new(CLIENT_ID, CLIENT_SECRET)
        }
    }

    /// A provider that signs in here.
    ///
    /// # Panics
    /// There is no HTTP client.
    pub fn provider(&self) -> Arc<dyn Provider> {
        Arc::new(GitHub::new(self.config()).expect("a provider"))
    }

    /// A provider that soon gives up waiting.
    ///
    /// # Panics
    /// There is no HTTP client.
    pub fn impatient_provider(&self) -> Arc<dyn Provider> {
        let config = GitHubConfig { timeout: Duration::from_millis(200), ..self.config() };
        Arc::new(GitHub::new(config).expect("a provider"))
    }

    /// Whoever opens the address to authorize from now on is this person, and agrees.
    pub fn sign_in_as(&self, profile: GitHubProfile) {
        self.consent.sign_in_as(profile);
    }

    /// The person says no, until [`sign_in_as`](Self::sign_in_as) is called again.
    pub fn refuse_consent(&self) {
        self.consent.refuse();
    }

    /// Lets the endpoint of this path fail until [`recover`](Self::recover).
    pub fn fail(&self, path: &str, fault: Fault) {
        self.server.fail(path, fault);
    }

    /// Ends all faults.
    pub fn recover(&self) {
        self.server.recover();
    }

    /// How many requests the endpoint of this path has had.
    pub fn requests(&self, path: &str) -> usize {
        self.server.requests(path)
    }
}

type Refusal = (StatusCode, &'static str);
type Shared = State<Arc<Consent<GitHubProfile>>>;

async fn authorize(State(consent): Shared, Query(query): Query<Parameters>) -> Response {
    consent.authorize(&query)
}

/// Refuses with status 200, and answers in a form's encoding unless JSON is asked for.
async fn token(State(consent): Shared, headers: HeaderMap, body: String) -> Response {
    let form = form(&body);
    let is = |name: &str, value: &str| form.get(name).is_some_and(|given| given == value);
    let answer = if !is("client_id", CLIENT_ID) || !is("client_secret", CLIENT_SECRET) {
        refusal("incorrect_client_credentials", "The client_id and/or client_secret passed are incorrect.")
    } else {
        match consent.redeem(&form) {
            Ok(grant) => {
                let scope = if grant.person.withholds_emails { "read:user" } else { "read:user,user:email" };
                json!({"access_token": consent.issue(grant.person), "scope": scope, "token_type": "bearer"})
            }
            Err(Refused::RedirectUri) => {
                refusal("redirect_uri_mismatch", "The redirect_uri MUST match the registered callback URL.")
            }
            Err(Refused::Code | Refused::Verifier) => {
                refusal("bad_verification_code", "The code passed is incorrect or expired.")
            }
        }
    };
    if text(&headers, ACCEPT.as_str()).contains("application/json") {
        return Json(answer).into_response();
    }
    let pairs =
        answer.as_object().into_iter().flatten().filter_map(|(key, value)| Some((key, value.as_str()?)));
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish().into_response()
}

fn refusal(error: &str, description: &str) -> Value {
    json!({"error": error, "error_description": description, "error_uri": "/apps/oauth-apps/"})
}

async fn user(State(consent): Shared, headers: HeaderMap) -> Response {
    match caller(&consent, &headers) {
        Ok(profile) => Json(json!({
            "id": profile.id,
            "login": profile.login,
            "node_id": "MDQ6VXNlcjE=",
            "type": "User",
            "name": profile.name,
            "email": profile.email,
        }))
        .into_response(),
        Err(refusal) => message(refusal),
    }
}

async fn emails(State(consent): Shared, headers: HeaderMap) -> Response {
    match caller(&consent, &headers) {
        Ok(profile) if profile.withholds_emails => message((StatusCode::NOT_FOUND, "Not Found")),
        Ok(profile) => Json(profile.emails).into_response(),
        Err(refusal) => message(refusal),
    }
}

fn caller(consent: &Consent<GitHubProfile>, headers: &HeaderMap) -> Result<GitHubProfile, Refusal> {
    if text(headers, USER_AGENT.as_str()).is_empty() {
        let reason = "Request forbidden by administrative rules. Please make sure your request has a User-Agent header";
        return Err((StatusCode::FORBIDDEN, reason));
    }
    let version = text(headers, "x-github-api-version");
    if !version.is_empty() && version != "2022-11-28" {
        return Err((StatusCode::BAD_REQUEST, "The version is not supported"));
    }
    consent.bearer(text(headers, AUTHORIZATION.as_str())).ok_or((StatusCode::UNAUTHORIZED, "Bad credentials"))
}

fn message((status, message): Refusal) -> Response {
    (status, Json(json!({"message": message, "documentation_url": "https://docs.github.com/rest"})))
        .into_response()
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
