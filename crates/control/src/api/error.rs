//! How a request fails: one envelope, one code per kind of failure, one place where each cause becomes both.
//!
//! Clients choose their reaction by the code, never by the text. The text of an internal failure is generic; its cause
//! goes to the log, where it is handled.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::RETRY_AFTER;
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::HashError;
use crate::store::StoreError;

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What kind of failure it is, for programs.
    pub code: &'static str,
    /// What is wrong and how to mend it, for people.
    pub message: String,
    /// Seconds after which the same request may succeed, where that is known.
    pub retry_after: Option<u64>,
}

/// Body of every answer that reports a failure.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The failure.
    pub error: ErrorDetail,
}

/// The failure inside [`ErrorBody`].
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// What kind of failure it is, for programs.
    #[schema(example = "not_found")]
    pub code: &'static str,
    /// What is wrong, for people.
    #[schema(example = "there is no such capsule")]
    pub message: String,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }

    /// 400: the request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// 401: no credential, or one that stands for nobody.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// 403: the thing is not the caller's to change.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 403: the credential is for a team that the person is not in (any more).
    pub fn no_team() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "no_team",
            "the token is for a team that is gone or that you are not in; switch to another team or sign in again",
        )
    }

    /// 403: the token is good, its person's account is not.
    pub fn account_deactivated() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "account_deactivated",
            "the account is not active (any more); ask an administrator of the platform",
        )
    }

    /// A refusal that only one call knows.
    pub(crate) fn special(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, code, message)
    }

    /// 429 where too many passwords are being checked, else 500.
    pub(crate) fn from_hash(error: HashError) -> Self {
        tracing::error!(%error, "a password was not checked");
        match error {
            HashError::Busy => Self::rate_limited(Duration::from_secs(5)),
            HashError::Failed => Self::internal(),
        }
    }

    /// 429: too many tries; says when the next one is welcome.
    pub fn rate_limited(wait: Duration) -> Self {
        let wait = wait.as_secs() + 1;
        let message = format!("too many attempts; try again in {wait} s");
        Self { retry_after: Some(wait), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message) }
    }

    /// 404: there is no such thing, or the caller may not know of it.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 405: the path takes other methods.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request", "this path does not take that method")
    }

    /// 409: the capsule is in a state that does not allow the call.
    pub fn invalid_state(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "invalid_state", message)
    }

    /// 409: the directory is there already.
    pub fn already_exists(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "already_exists", message)
    }

    /// 409: something else is in the way.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 413: more than the call takes.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// 502: the agent or the guest failed.
    pub fn agent(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "agent_error", message)
    }

    /// 501: the agent or guest is too old for the call.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "agent_error", message)
    }

    /// 507: the guest's disk is full.
    pub fn disk_full() -> Self {
        Self::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "agent_error",
            "the capsule's disk is full; free some space",
        )
    }

    /// 503: no host can serve the request now.
    pub fn host_unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "host_unavailable", message)
    }

    /// 504: a foreground command ran longer than it may.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    }

    /// 500: our fault. The cause belongs into the log.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "something went wrong on our side; try again",
        )
    }

    /// The body of the answer.
    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: ErrorDetail { code: self.code, message: self.message.clone() } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        tracing::error!(%error, cause, "the store failed a request");
        match error {
            StoreError::Unavailable(_) | StoreError::Silent => Self::host_unavailable(
                "the platform's database cannot be reached right now; try again shortly",
            ),
            _ => Self::internal(),
        }
    }
}

impl From<wrenn_core::IdError> for ApiError {
    fn from(error: wrenn_core::IdError) -> Self {
        Self::invalid(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_is_an_object_with_code_and_message() {
        let body = serde_json::to_value(ApiError::not_found("no").body()).unwrap();
        assert_eq!(body, serde_json::json!({"error": {"code": "not_found", "message": "no"}}));
    }

    #[test]
    fn a_lost_database_is_503_and_a_refused_query_is_500() {
        let lost = ApiError::from(StoreError::Unavailable(sqlx::Error::PoolTimedOut));
        assert_eq!((lost.status.as_u16(), lost.code), (503, "host_unavailable"));
        let refused = ApiError::from(StoreError::Query(sqlx::Error::RowNotFound));
        assert_eq!((refused.status.as_u16(), refused.code), (500, "internal_error"));
    }
}
