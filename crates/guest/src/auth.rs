//! Who may call, and as which Linux user the call acts. The access token is checked here and nowhere else.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::{HeaderMap, Method, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use wrenn_protocol::tunnel::ACCESS_TOKEN_HEADER;

use crate::accounts::User;
use crate::error::{Error, Kind, Result};
use crate::settings::{Settings, Values};

/// Lets a request pass when it carries the access token, when it needs none, or when `/files` will check its
/// signature.
pub(crate) async fn guard(State(settings): State<Settings>, request: Request, next: Next) -> Response {
    match admit(&settings.get(), request.method(), request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// The rule behind [`guard`].
pub(crate) fn admit(values: &Values, method: &Method, path: &str, headers: &HeaderMap) -> Result<()> {
    let token = headers.get(ACCESS_TOKEN_HEADER).map(http::HeaderValue::as_bytes);
    let open = path == "/health" && method == Method::GET;
    let signed = path == "/files" && token.is_none();
    if open || signed || values.admits(token) {
        return Ok(());
    }
    Err(unauthenticated("the access token in x-access-token is missing or wrong"))
}

/// The query of a `/files` request as far as it bears on who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signature<'a> {
    /// `read` or `write`.
    pub(crate) operation: &'a str,
    /// Path as given.
    pub(crate) path: &'a str,
    /// User as given, or empty.
    pub(crate) username: &'a str,
    /// The signature itself.
    pub(crate) signature: Option<&'a str>,
    /// Unix seconds after which it counts no more.
    pub(crate) expiration: Option<&'a str>,
}

impl Signature<'_> {
    /// Demands a valid signature when a token is set and the request does not carry it.
    pub(crate) fn check(&self, values: &Values, headers: &HeaderMap) -> Result<()> {
        let Some(token) = &values.token else { return Ok(()) };
        if headers.contains_key(ACCESS_TOKEN_HEADER) {
            return Ok(());
        }
        let given = self.signature.ok_or_else(|| {
            unauthenticated("neither an access token nor a signature was given; send x-access-token")
        })?;
        let right: bool = self.expected(token).as_bytes().ct_eq(given.as_bytes()).into();
        if !right {
            return Err(unauthenticated("the signature does not match the request"));
        }
        self.check_expiry()
    }

    fn check_expiry(&self) -> Result<()> {
        let Some(expiration) = self.expiration else { return Ok(()) };
        let expiration: u64 = expiration
            .parse()
            .map_err(|_| Error::invalid("signature_expiration must be a time in Unix seconds"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        if expiration < now {
            return Err(unauthenticated("signature is already expired"));
        }
        Ok(())
    }

    fn expected(&self, token: &str) -> String {
        let mut text = format!("{}:{}:{}:{token}", self.path, self.operation, self.username);
        if let Some(expiration) = self.expiration {
            text.push(':');
            text.push_str(expiration);
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
    }
}

fn unauthenticated(message: &str) -> Error {
    Error::new(Kind::Unauthenticated, message)
}

/// The user an RPC acts as: the name of HTTP Basic credentials, else the default user.
pub(crate) fn rpc_user(headers: &HeaderMap, values: &Values) -> Result<User> {
    match headers.get(header::AUTHORIZATION) {
        Some(value) => {
            let name = basic_name(value.as_bytes())
                .ok_or_else(|| unauthenticated("authorization must be Basic with a user name"))?;
            named_user(Some(&name), values)
        }
        None => named_user(None, values),
    }
}

/// The user called `name`, or the default user for none.
pub(crate) fn named_user(name: Option<&str>, values: &Values) -> Result<User> {
    let name = name.filter(|n| !n.is_empty()).or(values.default_user.as_deref()).unwrap_or("root");
    Ok(User::find(name)?)
}

fn basic_name(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    decoded.split_once(':').map(|(name, _)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values { token: Some("tok".into()), ..Values::default() }
    }

    #[test]
    fn every_call_but_health_and_signed_files_needs_the_token() {
        let none = HeaderMap::new();
        let admitted = |path: &str| admit(&values(), &Method::GET, path, &none).is_ok();
        assert!(admitted("/health"));
        assert!(admitted("/files"));
        for path in ["/init", "/metrics", "/envs", "/connect", "/process.Process/List", "/health/", "/"] {
            assert!(!admitted(path), "{path}");
        }
        assert!(admit(&values(), &Method::POST, "/health", &none).is_err());
    }

    #[test]
    fn a_wrong_token_is_refused_even_for_files() {
        let mut headers = HeaderMap::new();
        headers.insert(ACCESS_TOKEN_HEADER, "no".parse().unwrap());
        assert!(admit(&values(), &Method::GET, "/files", &headers).is_err());
        headers.insert(ACCESS_TOKEN_HEADER, "tok".parse().unwrap());
        assert!(admit(&values(), &Method::GET, "/files", &headers).is_ok());
    }

    #[test]
    fn a_signature_covers_path_operation_user_and_expiry() {
        let mut signature = Signature {
            operation: "read",
            path: "/a b",
            username: "user",
            signature: None,
            expiration: Some("9999999999"),
        };
        let right = signature.expected("tok");
        signature.signature = Some(&right);
        assert!(signature.check(&values(), &HeaderMap::new()).is_ok());
        let forged = Signature { operation: "write", ..signature };
        assert!(forged.check(&values(), &HeaderMap::new()).is_err());
        let late = Signature { expiration: Some("1"), ..signature };
        let right = late.expected("tok");
        let late = Signature { signature: Some(&right), ..late };
        let error = late.check(&values(), &HeaderMap::new()).unwrap_err();
        assert_eq!(error.to_string(), "signature is already expired");
    }

    #[test]
    fn the_name_of_basic_credentials_is_the_user() {
        assert_eq!(basic_name(b"Basic dXNlcjo=").as_deref(), Some("user"));
        assert_eq!(basic_name(b"Bearer dXNlcjo="), None);
        assert_eq!(basic_name(b"Basic ####"), None);
    }
}
