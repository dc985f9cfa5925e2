//! An OpenID Connect provider with its own keys, which can be told to lie.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Map, Value, json};

use super::consent::{Consent, Grant, Parameters, form};
use super::server::{Fault, Server, listen, lock};
use super::{CLIENT_ID, CLIENT_SECRET};
use crate::{Oidc, OidcConfig, Provider};

const LIFETIME: u64 = 300;

/// An account at a [`FakeOidc`].
#[derive(Debug, Clone)]
pub struct OidcProfile {
    /// Never changes.
    pub subject: String,
    /// What ID token and userinfo endpoint tell besides, such as `email`, `email_verified` and `name`.
    pub claims: Map<String, Value>,
}

/// Which kind of key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// ES256.
    P256,
    /// ES384.
    P384,
    /// EdDSA.
    Ed25519,
    /// RS256.
    Rsa,
}

/// How an ID token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signing {
    /// With the published key.
    Published,
    /// With another key under the published one's id.
    AnotherKey,
    /// Not at all: `alg` is `none`.
    Unsigned,
    /// With HS256, taking the public key, which everybody has, for the secret.
    PublicKeyAsSecret,
}

/// An OpenID Connect provider of one's own.
#[derive(Debug)]
pub struct FakeOidc {
    shared: Arc<Shared>,
    server: Server,
}

#[derive(Debug)]
struct Shared {
    url: String,
    consent: Consent<OidcProfile>,
    key: Mutex<Key>,
    signing: Mutex<Signing>,
    metadata: Mutex<Map<String, Value>>,
    token: Mutex<Map<String, Value>>,
    userinfo: Mutex<Map<String, Value>>,
}

#[derive(Debug)]
struct Key {
    id: String,
    algorithm: Algorithm,
    pair: KeyPair,
}

impl OidcProfile {
    /// An account with these claims.
    ///
    /// # Panics
    /// They are no JSON object.
    pub fn new(subject: &str, claims: &Value) -> Self {
        let claims = claims.as_object().expect("an object").clone();
        Self { subject: subject.to_owned(), claims }
    }
}

impl FakeOidc {
    /// Where it describes itself.
    pub const DISCOVERY: &str = "/.well-known/openid-configuration";
    /// Where browsers go.
    pub const AUTHORIZE: &str = "/authorize";
    /// Where codes are exchanged.
    pub const TOKEN: &str = "/token";
    /// Where its public key is.
    pub const KEYS: &str = "/keys";
    /// Where profiles are.
    pub const USERINFO: &str = "/userinfo";

    /// Listens on a free port, with a P-256 key.
    ///
    /// # Panics
    /// There is no port.
    pub async fn start() -> Self {
        let (listener, url) = listen().await;
        let shared = Arc::new(Shared {
            url,
            consent: Consent::default(),
            key: Mutex::new(Key::new("key-1", KeyKind::P256)),
            signing: Mutex::new(Signing::Published),
            metadata: Mutex::default(),
            token: Mutex::default(),
            userinfo: Mutex::default(),
        });
        let router = Router::new()
            .route(Self::DISCOVERY, get(discovery))
            .route(Self::AUTHORIZE, get(authorize))
            .route(Self::TOKEN, post(token))
            .route(Self::KEYS, get(keys))
            .route(Self::USERINFO, get(userinfo))
            .with_state(shared.clone());
        Self { shared, server: Server::start(listener, router) }
    }

    /// Its address, which is the issuer too.
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// The configuration of the client that is registered here, under a name.
    pub fn config(&self, name: &str) -> OidcConfig {
        OidcConfig::new(name, self.url(), CLIENT_ID, CLIENT_SECRET)
    }

    /// A provider that signs in here.
    ///
    /// # Panics
    /// There is no HTTP client.
    pub fn provider(&self, name: &str) -> Arc<dyn Provider> {
        Arc::new(Oidc::new(self.config(name)).expect("a provider"))
    }

    /// A provider that soon gives up waiting.
    ///
    /// # Panics
    /// There is no HTTP client.
    pub fn impatient_provider(&self, name: &str) -> Arc<dyn Provider> {
        let config = OidcConfig { timeout: Duration::from_millis(200), ..self.config(name) };
        Arc::new(Oidc::new(config).expect("a provider"))
    }

    /// Whoever opens the address to authorize from now on is this person, and agrees.
    pub fn sign_in_as(&self, profile: OidcProfile) {
        self.shared.consent.sign_in_as(profile);
    }

    /// The person says no, until [`sign_in_as`](Self::sign_in_as) is called again.
    pub fn refuse_consent(&self) {
        self.shared.consent.refuse();
    }

    /// Replaces the key; the old one is no longer published.
    ///
    /// # Panics
    /// There is no new one.
    pub fn rotate_key(&self, id: &str, kind: KeyKind) {
        *lock(&self.shared.key) = Key::new(id, kind);
    }

    /// How the next ID tokens are signed.
    pub fn sign(&self, signing: Signing) {
        *lock(&self.shared.signing) = signing;
    }

    /// Overrides a claim of the next ID tokens; `null` takes it out.
    pub fn override_token(&self, claim: &str, value: Value) {
        lock(&self.shared.token).insert(claim.to_owned(), value);
    }

    /// Overrides a claim at the userinfo endpoint; `null` takes it out.
    pub fn override_userinfo(&self, claim: &str, value: Value) {
        lock(&self.shared.userinfo).insert(claim.to_owned(), value);
    }

    /// Overrides what it says about itself; `null` takes it out.
    pub fn override_metadata(&self, name: &str, value: Value) {
        lock(&self.shared.metadata).insert(name.to_owned(), value);
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

impl Key {
    fn new(id: &str, kind: KeyKind) -> Self {
        let (algorithm, signature) = match kind {
            KeyKind::P256 => (Algorithm::ES256, &rcgen::PKCS_ECDSA_P256_SHA256),
            KeyKind::P384 => (Algorithm::ES384, &rcgen::PKCS_ECDSA_P384_SHA384),
            KeyKind::Ed25519 => (Algorithm::EdDSA, &rcgen::PKCS_ED25519),
            KeyKind::Rsa => (Algorithm::RS256, &rcgen::PKCS_RSA_SHA256),
        };
        let pair = KeyPair::generate_for(signature).expect("a key");
        Self { id: id.to_owned(), algorithm, pair }
    }

    fn encoding(&self) -> EncodingKey {
        let pem = self.pair.serialize_pem();
        match self.algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_pem(pem.as_bytes()),
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem.as_bytes()),
            _ => EncodingKey::from_ec_pem(pem.as_bytes()),
        }
        .expect("a private key")
    }

    fn public(&self) -> Jwk {
        // jsonwebtoken cannot read the public half of an Ed25519 key in the form in which rcgen writes both.
        let mut jwk: Jwk = if self.algorithm == Algorithm::EdDSA {
            let x = BASE64_URL_SAFE_NO_PAD.encode(self.pair.public_key_raw());
            serde_json::from_value(json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": x}))
                .expect("a public key")
        } else {
            Jwk::from_encoding_key(&self.encoding(), self.algorithm).expect("a public key")
        };
        jwk.common.key_id = Some(self.id.clone());
        jwk
    }

    fn sign(&self, signing: Signing, claims: &Map<String, Value>) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.clone());
        let (header, key) = match signing {
            Signing::Published => (header, self.encoding()),
            Signing::AnotherKey => {
                let pair = KeyPair::generate_for(self.pair.algorithm()).expect("a key");
                (header, Self { id: self.id.clone(), algorithm: self.algorithm, pair }.encoding())
            }
            Signing::Unsigned => {
                let encode = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
                let header = json!({"alg": "none", "typ": "JWT", "kid": self.id});
                return format!("{}.{}.", encode(header), encode(json!(claims)));
            }
            Signing::PublicKeyAsSecret => {
                header.alg = Algorithm::HS256;
                (header, EncodingKey::from_secret(self.pair.public_key_pem().as_bytes()))
            }
        };
        jsonwebtoken::encode(&header, claims, &key).expect("a token")
    }
}

impl Shared {
    fn id_token(&self, grant: &Grant<OidcProfile>) -> String {
        let now = jsonwebtoken::get_current_timestamp();
        let mut claims = grant.person.claims.clone();
        claims.insert("iss".to_owned(), json!(self.url));
        claims.insert("sub".to_owned(), json!(grant.person.subject));
        claims.insert("aud".to_owned(), json!(CLIENT_ID));
        claims.insert("iat".to_owned(), json!(now));
        claims.insert("exp".to_owned(), json!(now + LIFETIME));
        claims.insert("nonce".to_owned(), json!(grant.nonce));
        let claims = overridden(claims, &self.token);
        lock(&self.key).sign(*lock(&self.signing), &claims)
    }

    /// Whether the client has proved itself as RFC 6749 section 2.3.1 says, in a way that is announced.
    fn knows(&self, headers: &HeaderMap, form: &Parameters) -> bool {
        let post_only = lock(&self.metadata)
            .get("token_endpoint_auth_methods_supported")
            .is_some_and(|methods| *methods == json!(["client_secret_post"]));
        if post_only {
            let is = |name: &str, value: &str| form.get(name).is_some_and(|given| given == value);
            return is("client_id", CLIENT_ID) && is("client_secret", CLIENT_SECRET);
        }
        let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let credentials = format!("{}:{}", encode(CLIENT_ID), encode(CLIENT_SECRET));
        authorization(headers) == format!("Basic {}", BASE64_STANDARD.encode(credentials))
    }
}

fn overridden(mut claims: Map<String, Value>, by: &Mutex<Map<String, Value>>) -> Map<String, Value> {
    claims.extend(lock(by).clone());
    claims.retain(|_, value| !value.is_null());
    claims
}

fn authorization(headers: &HeaderMap) -> &str {
    headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn discovery(State(shared): State<Arc<Shared>>) -> Json<Map<String, Value>> {
    let endpoint = |path: &str| json!(format!("{}{path}", shared.url));
    let document = [
        ("issuer", endpoint("")),
        ("authorization_endpoint", endpoint(FakeOidc::AUTHORIZE)),
        ("token_endpoint", endpoint(FakeOidc::TOKEN)),
        ("jwks_uri", endpoint(FakeOidc::KEYS)),
        ("userinfo_endpoint", endpoint(FakeOidc::USERINFO)),
        ("response_types_supported", json!(["code"])),
        ("subject_types_supported", json!(["public"])),
        ("code_challenge_methods_supported", json!(["S256"])),
    ];
    let document = document.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Json(overridden(document, &shared.metadata))
}

async fn authorize(State(shared): State<Arc<Shared>>, Query(query): Query<Parameters>) -> Response {
    let openid = query.get("scope").is_some_and(|scopes| scopes.split(' ').any(|scope| scope == "openid"));
    if !openid {
        return (StatusCode::BAD_REQUEST, "openid is not among the scopes").into_response();
    }
    shared.consent.authorize(&query)
}

async fn token(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: String) -> Response {
    let form = form(&body);
    if !shared.knows(&headers, &form) {
        return (StatusCode::UNAUTHORIZED, Json(json!({"error": "invalid_client"}))).into_response();
    }
    if form.get("grant_type").is_none_or(|kind| kind != "authorization_code") {
        return (StatusCode::BAD_REQUEST, Json(json!({"error": "unsupported_grant_type"}))).into_response();
    }
    match shared.consent.redeem(&form) {
        Ok(grant) => Json(json!({
            "id_token": shared.id_token(&grant),
            "access_token": shared.consent.issue(grant.person),
            "token_type": "Bearer",
            "expires_in": LIFETIME,
        }))
        .into_response(),
        Err(_) => (StatusCode::BAD_REQUEST, Json(json!({"error": "invalid_grant"}))).into_response(),
    }
}

async fn keys(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"keys": [lock(&shared.key).public()]}))
}

async fn userinfo(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    match shared.consent.bearer(authorization(&headers)) {
        Some(person) => {
            let mut claims = person.claims;
            claims.insert("sub".to_owned(), json!(person.subject));
            Json(overridden(claims, &shared.userinfo)).into_response()
        }
        None => StatusCode::UNAUTHORIZED.into_response(),
    }
}
