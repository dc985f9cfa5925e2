//! The tunnel: how a request of the control plane reaches the daemon inside a guest.
//!
//! The agent answers `ANY /guest/{capsule id}/{path}?{query}` on its mutual-TLS listener by passing the request to
//! the guest daemon as `/{path}?{query}`: method, headers, body and answer unchanged, streamed both ways, with
//! the capsule's access token added. Hop-by-hop headers stay on their hop. While it runs, the request holds a
//! lease on the capsule. One HTTP/1.1 connection carries one request at a time, so that a stream whose reader is
//! slow holds up nothing but itself.
//!
//! A request that never reached the guest is answered by the agent itself, marked with [`ERROR_HEADER`].

use wrenn_core::CapsuleId;

/// First path segment of tunnelled requests.
pub const PREFIX: &str = "/guest/";

/// Set on answers that come from the agent and not from the guest; its value is a [`TunnelError`] by name.
pub const ERROR_HEADER: &str = "wrenn-tunnel-error";

/// Carries the guest daemon's access token (added by the agent; a client's own is dropped).
pub const ACCESS_TOKEN_HEADER: &str = "x-access-token";

/// Why a request did not reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelError {
    /// The host does not have the capsule (404).
    UnknownCapsule,
    /// The capsule is there but takes no traffic now: starting, stopping, draining (409).
    NotRunning,
    /// The guest daemon did not answer (502).
    GuestUnreachable,
}

impl TunnelError {
    /// The value of [`ERROR_HEADER`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownCapsule => "unknown-capsule",
            Self::NotRunning => "not-running",
            Self::GuestUnreachable => "guest-unreachable",
        }
    }

    /// The HTTP status that goes with it.
    pub const fn status(self) -> http::StatusCode {
        match self {
            Self::UnknownCapsule => http::StatusCode::NOT_FOUND,
            Self::NotRunning => http::StatusCode::CONFLICT,
            Self::GuestUnreachable => http::StatusCode::BAD_GATEWAY,
        }
    }

    /// Reads the value of [`ERROR_HEADER`] back.
    pub fn parse(value: &str) -> Option<Self> {
        [Self::UnknownCapsule, Self::NotRunning, Self::GuestUnreachable]
            .into_iter()
            .find(|e| e.as_str() == value)
    }
}

/// The path under which a guest's `path` (which begins with `/` and may carry a query) is reached.
pub fn path(capsule: CapsuleId, path: &str) -> String {
    format!("{PREFIX}{capsule}{path}")
}

/// Takes [`path`] apart again: the capsule's id as text, and the guest's path with its leading `/`.
pub fn split(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix(PREFIX)?;
    let slash = rest.find('/')?;
    Some(rest.split_at(slash))
}

/// Whether a tunnelled request resets the capsule's inactivity clock: starting, listing, signalling, attaching and
/// typing do; file calls and terminal resizes do not.
pub fn counts_as_activity(guest_path: &str) -> bool {
    guest_path.strip_prefix("/process.Process/").is_some_and(|method| method != "Update")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_apart_as_they_were_put_together() {
        let id = CapsuleId::random();
        let joined = path(id, "/files?path=/a/b");
        assert_eq!(split(&joined), Some((id.to_string().as_str(), "/files?path=/a/b")));
        assert_eq!(split("/guest/"), None);
        assert_eq!(split("/other/x/y"), None);
    }

    #[test]
    fn only_process_calls_count_as_activity() {
        assert!(counts_as_activity("/process.Process/Start"));
        assert!(counts_as_activity("/process.Process/SendInput"));
        assert!(!counts_as_activity("/process.Process/Update"));
        assert!(!counts_as_activity("/filesystem.Filesystem/Stat"));
        assert!(!counts_as_activity("/files"));
    }
}
