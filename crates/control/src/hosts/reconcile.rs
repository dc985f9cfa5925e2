//! What to do about a capsule whose row and host disagree. Pure: [`decide`] looks at the two sides and names the cure.

use std::time::Duration;

use wrenn_core::CapsuleStatus;

/// What a host says a capsule is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Running,
    Stopping,
}

/// A host's side of a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// The host reports it.
    Present(Phase),
    /// The online host has not reported it for this long.
    Absent(Duration),
}

/// The cure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cure {
    /// The two agree, or it is too early to tell.
    None,
    /// Take over that it runs.
    Runs,
    /// Take over that it is in this state.
    Becomes(CapsuleStatus),
    /// Tell the host again to remove it.
    Destroy,
}

/// Absence after which a transitional capsule is given up.
pub(crate) const STUCK: Duration = Duration::from_secs(120);
/// Absence after which a running capsule is taken for stopped. Longer than any report is under way, shorter than
/// [`STUCK`] because a host that runs a capsule always reports it.
pub(crate) const GONE: Duration = Duration::from_secs(30);

/// The cure for a capsule whose row says `status`.
pub(crate) fn decide(status: CapsuleStatus, sight: Sight) -> Cure {
    use CapsuleStatus::{
        Error, Hibernated, Missing, Paused, Pausing, Pending, Resuming, Running, Snapshotting, Starting,
        Stopped, Stopping,
    };
    match (status, sight) {
        (Pending | Starting | Resuming | Missing, Sight::Present(Phase::Running)) => Cure::Runs,
        (Stopping | Stopped | Error, Sight::Present(Phase::Running | Phase::Starting)) => Cure::Destroy,
        (_, Sight::Present(_)) => Cure::None,
        (Missing, Sight::Absent(_)) => Cure::Becomes(Stopped),
        (Running, Sight::Absent(time)) if time >= GONE => Cure::Becomes(Stopped),
        (Pending | Starting | Resuming | Snapshotting, Sight::Absent(time)) if time >= STUCK => {
            Cure::Becomes(Error)
        }
        (Pausing, Sight::Absent(time)) if time >= STUCK => Cure::Becomes(Paused),
        (Stopping, Sight::Absent(time)) if time >= STUCK => Cure::Becomes(Stopped),
        (
            Pending | Starting | Resuming | Snapshotting | Pausing | Stopping | Running | Paused | Hibernated
            | Stopped | Error,
            Sight::Absent(_),
        ) => Cure::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGHTS: [Sight; 6] = [
        Sight::Present(Phase::Starting),
        Sight::Present(Phase::Running),
        Sight::Present(Phase::Stopping),
        Sight::Absent(Duration::ZERO),
        Sight::Absent(GONE),
        Sight::Absent(STUCK),
    ];

    #[test]
    fn every_cure_is_a_legal_move() {
        for status in CapsuleStatus::ALL {
            for sight in SIGHTS {
                let to = match decide(status, sight) {
                    Cure::Runs => CapsuleStatus::Running,
                    Cure::Becomes(to) => to,
                    Cure::None | Cure::Destroy => continue,
                };
                // `pending` is never produced; its row would go through `starting` in one step.
                assert!(
                    status == CapsuleStatus::Pending || status.can_become(to),
                    "{status} to {to} on {sight:?}"
                );
            }
        }
    }

    #[test]
    fn a_missing_capsule_comes_back_as_what_its_host_says() {
        assert_eq!(decide(CapsuleStatus::Missing, Sight::Present(Phase::Running)), Cure::Runs);
        assert_eq!(
            decide(CapsuleStatus::Missing, Sight::Absent(Duration::ZERO)),
            Cure::Becomes(CapsuleStatus::Stopped)
        );
    }

    #[test]
    fn stuck_states_are_repaired_only_after_two_minutes() {
        let cases = [
            (CapsuleStatus::Starting, CapsuleStatus::Error),
            (CapsuleStatus::Resuming, CapsuleStatus::Error),
            (CapsuleStatus::Snapshotting, CapsuleStatus::Error),
            (CapsuleStatus::Pausing, CapsuleStatus::Paused),
            (CapsuleStatus::Stopping, CapsuleStatus::Stopped),
        ];
        for (status, repaired) in cases {
            assert_eq!(decide(status, Sight::Absent(STUCK / 2)), Cure::None);
            assert_eq!(decide(status, Sight::Absent(STUCK)), Cure::Becomes(repaired));
        }
    }

    #[test]
    fn what_should_be_gone_is_removed_again() {
        for status in [CapsuleStatus::Stopping, CapsuleStatus::Stopped, CapsuleStatus::Error] {
            assert_eq!(decide(status, Sight::Present(Phase::Running)), Cure::Destroy);
        }
    }
}
