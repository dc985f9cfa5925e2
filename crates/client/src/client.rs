//! The client itself: addresses, credentials, deadlines, retries.

use std::fmt;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wrenn_core::CapsuleId;

use crate::error::{ApiError, Error};

/// Deadline of a plain request.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadline of a TCP and TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses before the second and the third attempt of an idempotent request.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(600)];

/// Characters that stand for themselves in a path segment (RFC 3986, `unreserved`).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A client of one deployment with one credential: an API key, or the token of a person who signed in. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base_url: String,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the API at `base_url`, with or without a path prefix such as `/api`, that speaks for the team of an
    /// API key. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::BaseUrl`] and [`Error::ApiKey`] for unusable arguments, [`Error::Setup`] where the system's
    /// certificate authorities cannot be loaded for an `https` URL.
    pub fn new(base_url: &str, api_key: &str) -> Result<Self, Error> {
        let key = HeaderValue::from_str(api_key).map_err(|_| Error::ApiKey)?;
        Self::build(base_url, Some((HeaderName::from_static("x-api-key"), key)))
    }

    /// [`Client::new`] for a person, with the token that [`Client::login`] gives.
    ///
    /// # Errors
    /// [`Error::BaseUrl`] and [`Error::Token`] for unusable arguments, [`Error::Setup`] as with [`Client::new`].
    pub fn with_token(base_url: &str, token: &str) -> Result<Self, Error> {
        let bearer = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| Error::Token)?;
        Self::build(base_url, Some((AUTHORIZATION, bearer)))
    }

    /// [`Client::new`] without a credential, for [`Client::login`], [`Client::signup`] and [`Client::activate`].
    ///
    /// # Errors
    /// [`Error::BaseUrl`] and [`Error::Setup`] as with [`Client::new`].
    pub fn anonymous(base_url: &str) -> Result<Self, Error> {
        Self::build(base_url, None)
    }

    fn build(base_url: &str, credential: Option<(HeaderName, HeaderValue)>) -> Result<Self, Error> {
        let base_url = normalise(base_url)?;
        let credential = credential.map(|(name, mut value)| {
            value.set_sensitive(true);
            (name, value)
        });
        let mut builder = reqwest::Client::builder()
            .default_headers(HeaderMap::from_iter(credential))
            .user_agent(concat!("wrenn-client/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            // WebSocket handshakes need HTTP/1.1, and one connection pool serves everything.
            .http1_only();
        if base_url.starts_with("http:") {
            // A machine without certificate authorities can still speak to a local deployment.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(Error::Setup)?;
        Ok(Self { http, base_url })
    }

    /// The base URL, without a trailing slash.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// `base_url/v1/capsules/<id><rest>`.
    pub(crate) fn capsule_url(&self, id: CapsuleId, rest: &str) -> String {
        format!("{}/v1/capsules/{id}{rest}", self.base_url)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    /// A request that the caller finishes and gives to [`Client::send`].
    pub(crate) fn request(&self, method: Method, url: &str) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// GET or DELETE with a deadline, repeated after a failed connection.
    pub(crate) async fn idempotent(&self, method: Method, url: &str) -> Result<Response, Error> {
        let mut pauses = RETRY_PAUSES.into_iter();
        loop {
            let result = self.request(method.clone(), url).timeout(REQUEST_TIMEOUT).send().await;
            match (result, pauses.next()) {
                (Ok(response), _) => return check(response).await,
                (Err(error), Some(pause)) if is_connection_failure(&error) => tokio::time::sleep(pause).await,
                (Err(error), _) => return Err(self.transport(error)),
            }
        }
    }

    /// GET whose answer is JSON.
    pub(crate) async fn get_json<T: DeserializeOwned>(&self, url: &str) -> Result<T, Error> {
        self.json(self.idempotent(Method::GET, url).await?).await
    }

    /// POST of a JSON body with a deadline, sent once.
    pub(crate) async fn post(
        &self,
        url: &str,
        body: &impl Serialize,
        deadline: Option<Duration>,
    ) -> Result<Response, Error> {
        let request = self.request(Method::POST, url).json(body);
        self.send(request.timeout(deadline.unwrap_or(REQUEST_TIMEOUT))).await
    }

    /// A JSON body by any method with a deadline, sent once.
    pub(crate) async fn submit(
        &self,
        method: Method,
        url: &str,
        body: &impl Serialize,
    ) -> Result<Response, Error> {
        self.send(self.request(method, url).json(body).timeout(REQUEST_TIMEOUT)).await
    }

    /// Sends once; every status other than success is an [`Error::Api`].
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        check(request.send().await.map_err(|e| self.transport(e))?).await
    }

    /// Reads a JSON answer.
    pub(crate) async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        let body = response.bytes().await.map_err(|e| self.transport(e))?;
        serde_json::from_slice(&body).map_err(|e| Error::Protocol(e.to_string()))
    }

    /// Sorts a failure by whether a connection existed.
    pub(crate) fn transport(&self, source: reqwest::Error) -> Error {
        // The URL repeats what the message says, with the id of a capsule in the middle of a sentence.
        let (base_url, source) = (self.base_url.clone(), source.without_url());
        if source.is_connect() {
            Error::Unreachable { base_url, source }
        } else {
            Error::Transport { base_url, source }
        }
    }
}

/// One percent-encoded path segment.
pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A base URL as [`Client::base_url`] gives it: the same for all ways to write it with or without spaces around it and a
/// slash at its end.
///
/// # Errors
/// [`Error::BaseUrl`] for what is no `http` or `https` URL, or has a query.
pub fn normalise(base_url: &str) -> Result<String, Error> {
    let refuse = |reason: &str| Error::BaseUrl { url: base_url.to_owned(), reason: reason.to_owned() };
    let url = Url::parse(base_url.trim()).map_err(|e| refuse(&e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("it must begin with http:// or https://"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("it cannot have a query or a fragment"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Whether the request may not have been answered because of the connection; a passed deadline is not that.
fn is_connection_failure(error: &reqwest::Error) -> bool {
    error.is_connect() || (error.is_request() && !error.is_timeout())
}

async fn check(response: Response) -> Result<Response, Error> {
    let status = response.status();
    if status.is_success() || status == reqwest::StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let request_id = response.headers().get("x-request-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
    // An unreadable error body is still an error of that status.
    let body = response.bytes().await.unwrap_or_default();
    Err(ApiError::from_body(status.as_u16(), request_id, &body).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_keep_their_prefix_and_lose_the_slash() {
        for (given, used) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://h:80/", "http://h"),
            (" https://app.wrenn.dev/api/ ", "https://app.wrenn.dev/api"),
        ] {
            assert_eq!(normalise(given).unwrap(), used);
        }
        for bad in ["", "localhost:8080", "ftp://x", "http://", "http://h/?a=b", "http://h/#x"] {
            assert!(matches!(normalise(bad), Err(Error::BaseUrl { .. })), "{bad}");
        }
    }

    #[test]
    fn keys_that_no_header_can_carry_are_refused_and_none_is_shown() {
        assert!(matches!(Client::new("http://h", "a\nb"), Err(Error::ApiKey)));
        let client = Client::new("http://h", "wrn_secret").unwrap();
        assert!(!format!("{client:?}").contains("secret"));
        assert!(matches!(Client::with_token("http://h", "a\nb"), Err(Error::Token)));
    }

    #[test]
    fn segments_cannot_leave_their_place() {
        assert_eq!(segment("../a b?#/ü"), "..%2Fa%20b%3F%23%2F%C3%BC");
        assert_eq!(segment("proc-0a1b"), "proc-0a1b");
    }
}
