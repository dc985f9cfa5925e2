//! Why a call is refused, and what that is called in each of the two protocols spoken here.

use connectrpc::{ConnectError, ErrorCode};
use http::{HeaderValue, StatusCode};
use rustix::io::Errno;
use thiserror::Error;
use wrenn_protocol::guest::{GuestError, SPAWN_ERROR_HEADER, SpawnError};

use crate::accounts::UnknownUser;

/// Result of an operation of the daemon.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of refusal it is; decides code and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The request cannot be meant.
    Invalid,
    /// Something named in it is not there.
    NotFound,
    /// Something it would create is there.
    Exists,
    /// The acting user may not.
    Denied,
    /// The state of things forbids it.
    Precondition,
    /// No such user, or no right to call.
    Unauthenticated,
    /// The disk is full.
    NoSpace,
    /// More than the daemon hands out at once.
    TooMuch,
    /// Time is up.
    Deadline,
    /// The kernel refused for a reason of its own.
    Internal,
}

/// A refused call.
#[derive(Debug, Clone, Error)]
#[error("{message}")]
pub(crate) struct Error {
    kind: Kind,
    message: String,
    spawn: Option<SpawnError>,
}

impl Error {
    /// A refusal of `kind`, with a text for people.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), spawn: None }
    }

    /// The request cannot be meant.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// Something named in the request is not there.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// A process that could not be started.
    pub(crate) fn spawn(cause: SpawnError, message: impl Into<String>) -> Self {
        Self { spawn: Some(cause), ..Self::invalid(message) }
    }

    /// What the kernel said about `path`.
    pub(crate) fn path(path: &str, errno: impl Into<Errno>) -> Self {
        let errno = errno.into();
        let kind = match errno {
            Errno::NOENT => Kind::NotFound,
            Errno::EXIST | Errno::NOTEMPTY => Kind::Exists,
            Errno::ACCESS | Errno::PERM | Errno::ROFS => Kind::Denied,
            Errno::LOOP => Kind::Precondition,
            Errno::NOSPC | Errno::DQUOT => Kind::NoSpace,
            Errno::NOTDIR | Errno::ISDIR | Errno::INVAL | Errno::NAMETOOLONG | Errno::NXIO | Errno::XDEV => {
                Kind::Invalid
            }
            _ => Kind::Internal,
        };
        Self::new(kind, format!("{path}: {}", describe(errno)))
    }

    /// What `std` reports about `path`.
    pub(crate) fn io(path: &str, error: &std::io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(errno) => Self::path(path, errno),
            None => Self::new(Kind::Internal, format!("{path}: {error}")),
        }
    }

    /// What kind of refusal this is.
    #[cfg(test)]
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The status of a plain HTTP answer.
    pub(crate) fn status(&self) -> StatusCode {
        match self.kind {
            Kind::Invalid | Kind::Precondition | Kind::Exists => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Denied => StatusCode::FORBIDDEN,
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            Kind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Kind::TooMuch => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The body of a plain HTTP answer.
    pub(crate) fn body(&self) -> GuestError {
        GuestError { code: self.status().as_u16(), message: self.message.clone() }
    }

    fn code(&self) -> ErrorCode {
        match self.kind {
            Kind::Invalid => ErrorCode::InvalidArgument,
            Kind::NotFound => ErrorCode::NotFound,
            Kind::Exists => ErrorCode::AlreadyExists,
            Kind::Denied => ErrorCode::PermissionDenied,
            Kind::Precondition => ErrorCode::FailedPrecondition,
            Kind::Unauthenticated => ErrorCode::Unauthenticated,
            Kind::NoSpace => ErrorCode::ResourceExhausted,
            Kind::TooMuch => ErrorCode::OutOfRange,
            Kind::Deadline => ErrorCode::DeadlineExceeded,
            Kind::Internal => ErrorCode::Internal,
        }
    }
}

impl From<UnknownUser> for Error {
    fn from(error: UnknownUser) -> Self {
        Self::new(Kind::Unauthenticated, error.to_string())
    }
}

impl From<Error> for ConnectError {
    fn from(error: Error) -> Self {
        let mut refusal = Self::new(error.code(), error.message);
        if let Some(cause) = error.spawn {
            let value = HeaderValue::from_static(cause.as_str());
            refusal.response_headers_mut().insert(SPAWN_ERROR_HEADER, value);
        }
        refusal
    }
}

/// The kernel's reason without the number that `std` appends.
pub(crate) fn describe(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.split_once(" (os error") {
        Some((reason, _)) => reason.to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_reasons_keep_their_difference() {
        let status = |errno| Error::path("/x", errno).status().as_u16();
        assert_eq!(status(Errno::NOENT), 404);
        assert_eq!(status(Errno::NOTDIR), 400);
        assert_eq!(status(Errno::NOSPC), 507);
        assert_eq!(status(Errno::IO), 500);
        assert_eq!(Error::path("/x", Errno::NOENT).to_string(), "/x: no such file or directory");
    }

    #[test]
    fn a_spawn_failure_carries_its_marker() {
        let refusal = ConnectError::from(Error::spawn(SpawnError::NotFound, "nope"));
        assert_eq!(refusal.code, ErrorCode::InvalidArgument);
        assert_eq!(refusal.response_headers()[SPAWN_ERROR_HEADER], "not-found");
    }
}
