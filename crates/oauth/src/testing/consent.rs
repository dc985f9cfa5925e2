//! What happens in the browser, and what a code is worth afterwards.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use oauth2::{PkceCodeChallenge, PkceCodeVerifier};
use url::Url;

use super::CLIENT_ID;
use super::server::lock;

/// Parameters of a query or of a form.
pub(super) type Parameters = HashMap<String, String>;

/// Who is in front of the browser, and what they have agreed to.
#[derive(Debug)]
pub(super) struct Consent<P> {
    person: Mutex<Option<P>>,
    refuses: Mutex<bool>,
    grants: Mutex<HashMap<String, Grant<P>>>,
    tokens: Mutex<HashMap<String, P>>,
    issued: AtomicU64,
}

/// What a code stands for.
#[derive(Debug)]
pub(super) struct Grant<P> {
    pub(super) person: P,
    pub(super) nonce: Option<String>,
    redirect_uri: String,
    challenge: String,
}

/// Why a code is not exchanged.
pub(super) enum Refused {
    Code,
    RedirectUri,
    Verifier,
}

impl<P> Default for Consent<P> {
    fn default() -> Self {
        Self {
            person: Mutex::default(),
            refuses: Mutex::default(),
            grants: Mutex::default(),
            tokens: Mutex::default(),
            issued: AtomicU64::default(),
        }
    }
}

impl<P: Clone> Consent<P> {
    pub(super) fn sign_in_as(&self, person: P) {
        *lock(&self.person) = Some(person);
        *lock(&self.refuses) = false;
    }

    pub(super) fn refuse(&self) {
        *lock(&self.refuses) = true;
    }

    /// Answers the browser that opened the address to authorize.
    pub(super) fn authorize(&self, query: &Parameters) -> Response {
        match self.decide(query) {
            Ok(location) => (StatusCode::FOUND, [(LOCATION, location.as_str())]).into_response(),
            Err((status, reason)) => (status, reason).into_response(),
        }
    }

    fn decide(&self, query: &Parameters) -> Result<Url, (StatusCode, &'static str)> {
        let get = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        if get("client_id") != CLIENT_ID {
            return Err((StatusCode::NOT_FOUND, "unknown client_id"));
        }
        let bad = |reason| (StatusCode::BAD_REQUEST, reason);
        let mut location = Url::parse(get("redirect_uri")).map_err(|_| bad("redirect_uri is not a URL"))?;
        if get("response_type") != "code" {
            return Err(bad("response_type is not code"));
        }
        if get("state").is_empty() {
            return Err(bad("state is missing"));
        }
        let challenge = get("code_challenge");
        let hash = challenge.len() == 43
            && challenge.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !hash || get("code_challenge_method") != "S256" {
            return Err(bad("code_challenge is not an S256 one"));
        }
        let person = lock(&self.person).clone().ok_or((StatusCode::UNAUTHORIZED, "nobody has signed in"))?;
        let answer = if *lock(&self.refuses) {
            ("error", "access_denied".to_owned())
        } else {
            let grant = Grant {
                person,
                nonce: query.get("nonce").cloned(),
                redirect_uri: get("redirect_uri").to_owned(),
                challenge: challenge.to_owned(),
            };
            let code = self.unique("code");
            lock(&self.grants).insert(code.clone(), grant);
            ("code", code)
        };
        location.query_pairs_mut().append_pair(answer.0, &answer.1).append_pair("state", get("state"));
        Ok(location)
    }

    /// Takes a code, which is used up even if it is refused.
    pub(super) fn redeem(&self, form: &Parameters) -> Result<Grant<P>, Refused> {
        let get = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        let grant = lock(&self.grants).remove(get("code")).ok_or(Refused::Code)?;
        if get("redirect_uri") != grant.redirect_uri {
            return Err(Refused::RedirectUri);
        }
        let verifier = get("code_verifier");
        let fits = (43..=128).contains(&verifier.len()) && {
            let verifier = PkceCodeVerifier::new(verifier.to_owned());
            PkceCodeChallenge::from_code_verifier_sha256(&verifier).as_str() == grant.challenge
        };
        if fits { Ok(grant) } else { Err(Refused::Verifier) }
    }

    /// An access token for what the person has agreed to.
    pub(super) fn issue(&self, person: P) -> String {
        let token = self.unique("token");
        lock(&self.tokens).insert(token.clone(), person);
        token
    }

    /// Whose token an `Authorization` header carries.
    pub(super) fn bearer(&self, authorization: &str) -> Option<P> {
        let (scheme, token) = authorization.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        lock(&self.tokens).get(token).cloned()
    }

    fn unique(&self, what: &str) -> String {
        format!("{what}-{:016}", self.issued.fetch_add(1, Ordering::Relaxed))
    }
}

/// The parameters of a form.
pub(super) fn form(body: &str) -> Parameters {
    url::form_urlencoded::parse(body.as_bytes()).into_owned().collect()
}
