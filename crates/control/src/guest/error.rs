//! What a failure inside or on the way to a guest means to the client.

use connectrpc::{ConnectError, ErrorCode};
use wrenn_protocol::guest::{SPAWN_ERROR_HEADER, SpawnError};
use wrenn_protocol::tunnel::TunnelError;

use crate::api::ApiError;
use crate::hosts::{HostError, host_error};

/// A failure that callers treat apart.
#[derive(Debug)]
pub(crate) enum GuestError {
    /// The process could not be started, and why.
    Spawn(SpawnError),
    /// Anything else, as an answer.
    Other(ApiError),
}

impl From<ConnectError> for GuestError {
    fn from(error: ConnectError) -> Self {
        let marked = [error.response_headers(), error.trailers()]
            .into_iter()
            .find_map(|headers| headers.get(SPAWN_ERROR_HEADER))
            .and_then(|value| SpawnError::parse(value.to_str().ok()?));
        match marked {
            Some(spawn) => Self::Spawn(spawn),
            None => Self::Other(failure(&error)),
        }
    }
}

/// The answer for a failed guest call.
pub(crate) fn failure(error: &ConnectError) -> ApiError {
    if let Some(host) = host_error(error) {
        return unreached(host);
    }
    let text = error.message.clone().unwrap_or_else(|| error.code.as_str().to_owned());
    match error.code {
        ErrorCode::NotFound => ApiError::not_found(text),
        ErrorCode::AlreadyExists => ApiError::already_exists(text),
        ErrorCode::InvalidArgument
        | ErrorCode::OutOfRange
        | ErrorCode::Unauthenticated
        | ErrorCode::PermissionDenied => ApiError::invalid(text),
        ErrorCode::FailedPrecondition => ApiError::conflict(text),
        ErrorCode::ResourceExhausted => ApiError::disk_full(),
        ErrorCode::Unimplemented => ApiError::unsupported(text),
        _ => ApiError::agent(text),
    }
}

/// The answer for a call that never reached the guest.
pub(super) fn unreached(error: &HostError) -> ApiError {
    match error {
        HostError::Unreachable(cause) => {
            tracing::warn!(error = ?cause, "a host cannot be reached");
            ApiError::host_unavailable("the capsule's host cannot be reached")
        }
        HostError::Tunnel(TunnelError::NotRunning) => ApiError::invalid_state(
            "the capsule takes nothing now: it is starting, pausing, paused, resuming or stopping",
        ),
        HostError::Tunnel(TunnelError::UnknownCapsule) => {
            ApiError::invalid_state("the capsule's host does not have it (any more)")
        }
        HostError::Tunnel(TunnelError::GuestUnreachable) => {
            ApiError::agent("the capsule's daemon does not answer; destroy the capsule if this lasts")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_spawn_failure_is_recognised_in_headers_and_trailers() {
        let mut headers = http::HeaderMap::new();
        headers.insert(SPAWN_ERROR_HEADER, http::HeaderValue::from_static("not-found"));
        let in_headers = ConnectError::invalid_argument("x").with_headers(headers.clone());
        let in_trailers = ConnectError::invalid_argument("x").with_trailers(headers);
        for error in [in_headers, in_trailers] {
            assert!(matches!(GuestError::from(error), GuestError::Spawn(SpawnError::NotFound)));
        }
    }

    #[test]
    fn each_code_has_its_status() {
        let cases = [
            (ConnectError::not_found("x"), 404),
            (ConnectError::already_exists("x"), 409),
            (ConnectError::invalid_argument("x"), 400),
            (ConnectError::new(ErrorCode::OutOfRange, "x"), 400),
            (ConnectError::resource_exhausted("x"), 507),
            (ConnectError::unimplemented("x"), 501),
            (ConnectError::internal("x"), 502),
        ];
        for (error, status) in cases {
            assert_eq!(failure(&error).status.as_u16(), status, "{error}");
        }
        let source = HostError::Tunnel(TunnelError::NotRunning);
        let error = ConnectError::unavailable("x").with_source(source);
        assert_eq!(failure(&error).code, "invalid_state");
    }
}
