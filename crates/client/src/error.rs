//! What can go wrong in a call, and the error envelope of the API.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use wrenn_core::{CapsuleId, CapsuleStatus};

/// An answer other than success, as the server worded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// Stable name of the reason, for example `not_found`; empty where the answer came from something other than
    /// the platform, such as a proxy in front of it.
    pub code: String,
    /// Text for people.
    pub message: String,
    /// The server's name for the request (`x-request-id`), to look it up in its log.
    pub request_id: Option<String>,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.code.as_str() {
            "" => write!(f, " (HTTP {}", self.status)?,
            code => write!(f, " ({code}")?,
        }
        match &self.request_id {
            Some(id) => write!(f, ", request {id})"),
            None => f.write_str(")"),
        }
    }
}

impl std::error::Error for ApiError {}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base URL cannot be used.
    #[error("`{url}` is not a usable base URL: {reason}")]
    BaseUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The API key holds characters that no header may carry.
    #[error("the API key holds characters that a key cannot have; it looks like `wrn_` and 32 hex digits")]
    ApiKey,
    /// The token holds characters that no header may carry.
    #[error("the token holds characters that a token cannot have; sign in again")]
    Token,
    /// The HTTP stack could not be set up.
    #[error("cannot set up the HTTP client")]
    Setup(#[source] reqwest::Error),
    /// No connection could be made.
    #[error("cannot reach {base_url}")]
    Unreachable {
        /// The base URL of the client.
        base_url: String,
        /// What the connection failed with.
        #[source]
        source: reqwest::Error,
    },
    /// The connection failed, or the deadline passed, in the middle of a call.
    #[error("the connection to {base_url} failed during the call")]
    Transport {
        /// The base URL of the client.
        base_url: String,
        /// What it failed with.
        #[source]
        source: reqwest::Error,
    },
    /// The server refused or failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The server said something that the API does not have.
    #[error("the server's answer does not follow the API: {0}")]
    Protocol(String),
    /// A session ended with an error message.
    #[error("{0}")]
    Session(String),
    /// A session's connection failed.
    #[error("the session's connection failed")]
    Socket(#[source] Box<tokio_tungstenite::tungstenite::Error>),
    /// A session ended without saying how; what ran in it may still run.
    #[error("the session's connection was closed before the process ended")]
    Disconnected,
    /// A capsule reached a state from which it will not become what was waited for.
    #[error("capsule {id} is {status} and will not become {wanted}")]
    Lost {
        /// The capsule.
        id: CapsuleId,
        /// Its state.
        status: CapsuleStatus,
        /// The state that was waited for.
        wanted: CapsuleStatus,
    },
    /// A template that was being made failed; the server's log has the cause.
    #[error("template {name} was not made; the platform's log says why")]
    NotMade {
        /// Its name.
        name: String,
    },
    /// A capsule took too long.
    #[error("capsule {id} is still {status} after {} s", waited.as_secs())]
    TooSlow {
        /// The capsule.
        id: CapsuleId,
        /// Its state.
        status: CapsuleStatus,
        /// How long was waited.
        waited: Duration,
    },
}

impl Error {
    /// The API's code of the failure, where the server named one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Api(api) => Some(&api.code),
            _ => None,
        }
    }

    /// The HTTP status of the failure, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api(api) => Some(api.status),
            _ => None,
        }
    }

    /// Whether the thing that was named does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some("not_found")
    }
}

#[derive(Deserialize)]
struct Envelope {
    error: Inner,
}

#[derive(Deserialize)]
struct Inner {
    code: String,
    #[serde(default)]
    message: String,
}

/// Longest piece of a foreign error body that is repeated, in characters.
const FOREIGN_BODY: usize = 200;

impl ApiError {
    /// Reads the envelope; an answer that has none (a proxy's page) is quoted in part.
    pub(crate) fn from_body(status: u16, request_id: Option<String>, body: &[u8]) -> Self {
        match serde_json::from_slice::<Envelope>(body) {
            Ok(Envelope { error }) => Self { status, code: error.code, message: error.message, request_id },
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
                let mut message = line.chars().take(FOREIGN_BODY).collect::<String>();
                if message.is_empty() {
                    "the server refused without a reason".clone_into(&mut message);
                }
                Self { status, code: String::new(), message, request_id }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_is_read_and_shown_with_code_and_request() {
        let body = br#"{"error":{"code":"not_found","message":"no such capsule"}}"#;
        let error = ApiError::from_body(404, Some("r-1".into()), body);
        assert_eq!((error.code.as_str(), error.status), ("not_found", 404));
        assert_eq!(error.to_string(), "no such capsule (not_found, request r-1)");
        assert!(Error::from(error).is_not_found());
    }

    #[test]
    fn a_foreign_answer_is_quoted_in_part() {
        let error = ApiError::from_body(502, None, "<h1>Bad\n  Gateway</h1>".repeat(50).as_bytes());
        assert_eq!(error.code, "");
        assert!(error.to_string().starts_with("<h1>Bad Gateway</h1>"));
        assert!(error.to_string().ends_with("(HTTP 502)"));
        assert!(error.message.chars().count() <= FOREIGN_BODY);
        assert_eq!(
            ApiError::from_body(500, None, b"").to_string(),
            "the server refused without a reason (HTTP 500)"
        );
    }
}
