//! The states of a capsule and the moves between them.
//!
//! ```text
//!            create
//!              │
//!          starting ───────────────► error
//!              │ booted
//!              ▼        pause            paused
//!           running ──────────► pausing ───────► paused ──┐
//!            ▲ │ ▲ ◄── failed ─────┘               │ ▲    │ resume
//!            │ │ └──────────── resuming ◄──────────┘ └─ failed
//!            │ └─► snapshotting ─► (back to running or paused)
//!            │
//!   missing ◄┴─► (host silent / host back)
//!
//!   any state but stopped and error ── destroy ──► stopping ──► stopped
//! ```
//!
//! A status changes only by compare-and-set on the current one: the loser of a race is told so and starts
//! no work. This module says which moves exist; the store makes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a capsule is in its life. Serialised as the lower-case name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CapsuleStatus {
    /// Accepted, no host chosen yet.
    Pending,
    /// Its host is booting it.
    Starting,
    /// Serves commands, files and ports.
    Running,
    /// Its memory is being written to disk.
    Pausing,
    /// On disk, with its memory.
    Paused,
    /// A template is being made from it.
    Snapshotting,
    /// Its memory is being brought back.
    Resuming,
    /// Being removed.
    Stopping,
    /// Kept for clients of older deployments; never produced.
    Hibernated,
    /// Gone for good.
    Stopped,
    /// Its host has been silent for too long to know.
    Missing,
    /// Failed for good; nothing of it is left on the host.
    Error,
}

/// A move that the state machine does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a capsule that is {from} cannot become {to}")]
pub struct IllegalTransition {
    /// The state it is in.
    pub from: CapsuleStatus,
    /// The state that was wanted.
    pub to: CapsuleStatus,
}

impl CapsuleStatus {
    /// Every state, in declaration order.
    pub const ALL: [Self; 12] = [
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Snapshotting,
        Self::Resuming,
        Self::Stopping,
        Self::Hibernated,
        Self::Stopped,
        Self::Missing,
        Self::Error,
    ];
    /// States that nothing leaves.
    pub const TERMINAL: [Self; 2] = [Self::Stopped, Self::Error];
    /// States from which a destroy starts work (in `stopping` it is already under way).
    pub const DESTROYABLE: [Self; 9] = [
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Snapshotting,
        Self::Resuming,
        Self::Hibernated,
        Self::Missing,
    ];

    /// The name used on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Snapshotting => "snapshotting",
            Self::Resuming => "resuming",
            Self::Stopping => "stopping",
            Self::Hibernated => "hibernated",
            Self::Stopped => "stopped",
            Self::Missing => "missing",
            Self::Error => "error",
        }
    }

    /// Whether nothing leaves this state.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Stopped | Self::Error)
    }

    /// Whether the capsule is on its way between two states that last.
    pub const fn is_transitional(self) -> bool {
        matches!(
            self,
            Self::Pending
                | Self::Starting
                | Self::Pausing
                | Self::Snapshotting
                | Self::Resuming
                | Self::Stopping
        )
    }

    /// Whether the state machine has the move from here to `to`.
    pub const fn can_become(self, to: Self) -> bool {
        use CapsuleStatus::{
            Error, Hibernated, Missing, Paused, Pausing, Pending, Resuming, Running, Snapshotting, Starting,
            Stopped, Stopping,
        };
        match (self, to) {
            (Stopped | Error, _) | (_, Pending | Hibernated) => false,
            (Stopping, to) => matches!(to, Stopped),
            (_, Stopping) => true,
            (Pending, to) => matches!(to, Starting | Error | Missing),
            (Starting, to) => matches!(to, Running | Error | Missing),
            (Running, to) => matches!(to, Pausing | Snapshotting | Stopped | Missing),
            (Pausing, to) => matches!(to, Paused | Running | Error),
            (Paused, to) => matches!(to, Resuming | Snapshotting),
            (Snapshotting, to) => matches!(to, Running | Paused | Error),
            (Resuming, to) => matches!(to, Running | Paused | Error),
            (Missing, to) => matches!(to, Running | Paused | Stopped),
            (Hibernated, to) => matches!(to, Resuming),
        }
    }

    /// `to`, where the state machine has that move.
    ///
    /// # Errors
    /// [`IllegalTransition`] where it has not.
    pub const fn transition(self, to: Self) -> Result<Self, IllegalTransition> {
        if self.can_become(to) { Ok(to) } else { Err(IllegalTransition { from: self, to }) }
    }
}

impl fmt::Display for CapsuleStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a capsule status")]
pub struct UnknownStatus(String);

impl FromStr for CapsuleStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_states_are_left_by_nothing() {
        for from in CapsuleStatus::TERMINAL {
            assert!(CapsuleStatus::ALL.into_iter().all(|to| !from.can_become(to)), "{from}");
            assert!(from.is_terminal());
        }
    }

    #[test]
    fn destroy_starts_from_every_state_that_is_alive() {
        for from in CapsuleStatus::ALL {
            let destroyable = CapsuleStatus::DESTROYABLE.contains(&from);
            assert_eq!(from.can_become(CapsuleStatus::Stopping), destroyable, "{from}");
        }
    }

    #[test]
    fn every_transitional_state_has_a_way_out_that_lasts() {
        for from in CapsuleStatus::ALL.into_iter().filter(|s| s.is_transitional()) {
            assert!(
                CapsuleStatus::ALL.into_iter().any(|to| !to.is_transitional() && from.can_become(to)),
                "{from}"
            );
        }
    }

    #[test]
    fn no_state_becomes_itself() {
        for state in CapsuleStatus::ALL {
            assert!(state.transition(state).is_err(), "{state}");
        }
    }

    #[test]
    fn names_read_back() {
        for state in CapsuleStatus::ALL {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        assert!("Running".parse::<CapsuleStatus>().is_err());
    }
}
