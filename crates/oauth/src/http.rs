//! How providers are spoken to: in time, within bounds, and never anywhere but where they were asked.

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Request, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use url::{Host, Url};

use crate::ProviderError;

/// How long a provider may take to answer one request, connecting included.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest answer that is read, in bytes. Real ones have some kilobytes.
pub(crate) const MAX_ANSWER: usize = 1 << 20;

const USER_AGENT: &str = concat!("wrenn/", env!("CARGO_PKG_VERSION"));

/// Speaks to one provider.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: Client,
    plain: bool,
}

/// What a provider answered, once it is known to be neither too long nor an outage.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Http {
    /// A client for a provider at these configured addresses. Only if one of them is itself `http://` may any request
    /// go unencrypted.
    pub(crate) fn new(configured: &[&Url], timeout: Duration) -> Result<Self, ProviderError> {
        let mut plain = false;
        for url in configured {
            match url.scheme() {
                "https" => {}
                "http" => plain = true,
                _ => return Err(ProviderError::configuration(format!("{url} is not an https address"))),
            }
        }
        if let Some(url) = configured.iter().find(|url| url.scheme() == "http" && !is_loopback(url)) {
            tracing::warn!(%url, "secrets go to this sign-in provider unencrypted; use an https address");
        }
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(timeout)
            .timeout(timeout)
            .redirect(Policy::none())
            .https_only(!plain);
        if configured.iter().all(|url| is_loopback(url)) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            ProviderError::configuration(format!("no HTTP client: {}", error.without_url()))
        })?;
        Ok(Self { client, plain })
    }

    /// Parses an address that the provider names and refuses one that would go unencrypted.
    pub(crate) fn endpoint(&self, what: &str, text: &str) -> Result<Url, ProviderError> {
        let url = Url::parse(text).map_err(|_| ProviderError::invalid(format!("the {what} is not a URL")))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.plain => Ok(url),
            _ => Err(ProviderError::invalid(format!("the {what} is not an https address"))),
        }
    }

    pub(crate) fn get(&self, url: Url) -> RequestBuilder {
        self.client.get(url)
    }

    /// Sends a request for `what` and reads the answer.
    pub(crate) async fn send(
        &self,
        what: &'static str,
        request: RequestBuilder,
    ) -> Result<Answer, ProviderError> {
        let request = request.build().map_err(|_| {
            ProviderError::configuration(format!("the request for the {what} cannot be written"))
        })?;
        self.execute(what, request).await
    }

    pub(crate) async fn execute(
        &self,
        what: &'static str,
        request: Request,
    ) -> Result<Answer, ProviderError> {
        let failed = |error: reqwest::Error| ProviderError::unreachable(what, error.without_url());
        let mut response = self.client.execute(request).await.map_err(failed)?;
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        if is_outage(status, &headers) {
            return Err(ProviderError::unreachable(
                what,
                format!("it answers with status {}", status.as_u16()),
            ));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(ProviderError::invalid(format!("the {what} is longer than {MAX_ANSWER} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body })
    }
}

impl Answer {
    /// The body of a successful answer.
    pub(crate) fn json<T: DeserializeOwned>(&self, what: &str) -> Result<T, ProviderError> {
        if self.status != StatusCode::OK {
            let status = self.status.as_u16();
            return Err(ProviderError::invalid(format!(
                "asked for the {what}, it answers with status {status}"
            )));
        }
        // serde_json's own text repeats the values, which may be tokens.
        serde_json::from_slice(&self.body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            ProviderError::invalid(format!(
                "the {what} is not the expected JSON (line {line}, column {column})"
            ))
        })
    }
}

/// Whether waiting may help. GitHub uses 403 for its rate limits too.
fn is_outage(status: StatusCode, headers: &HeaderMap) -> bool {
    let limited = || {
        headers.contains_key(RETRY_AFTER)
            || headers.get("x-ratelimit-remaining").is_some_and(|left| left.as_bytes() == b"0")
    };
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || (status == StatusCode::FORBIDDEN && limited())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(url: &str) -> Result<Http, ProviderError> {
        Http::new(&[&Url::parse(url).unwrap()], DEFAULT_TIMEOUT)
    }

    #[test]
    fn only_http_and_https_are_configured() {
        assert!(http("https://example.com").is_ok());
        assert!(http("http://127.0.0.1:1").is_ok());
        assert!(matches!(http("ftp://example.com"), Err(ProviderError::Configuration(_))));
    }

    #[test]
    fn an_encrypted_provider_names_no_unencrypted_endpoint() {
        let encrypted = http("https://example.com").unwrap();
        assert!(encrypted.endpoint("token endpoint", "https://example.com/token").is_ok());
        for bad in ["http://example.com/token", "http://127.0.0.1/token", "file:///etc/passwd", "/token", ""]
        {
            assert!(encrypted.endpoint("token endpoint", bad).is_err(), "{bad}");
        }
        assert!(http("http://[::1]:1").unwrap().endpoint("token endpoint", "http://[::1]:1/token").is_ok());
    }

    #[test]
    fn a_parse_error_repeats_no_value() {
        let answer = Answer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: br#"{"id": "gho_s3cret"}"#.to_vec(),
        };
        let error = answer.json::<std::collections::BTreeMap<String, u64>>("profile").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    }

    #[test]
    fn a_rate_limit_is_an_outage() {
        let mut headers = HeaderMap::new();
        assert!(!is_outage(StatusCode::FORBIDDEN, &headers));
        headers.insert("x-ratelimit-remaining", "0".parse().unwrap());
        assert!(is_outage(StatusCode::FORBIDDEN, &headers));
        assert!(!is_outage(StatusCode::OK, &headers));
    }
}
