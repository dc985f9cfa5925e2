//! What to do about a capsule whose row and host disagree. Pure: [`decide`] looks at the two sides and names the cure.
//!
//! A report carries the host's count of changes, and so does the row. A report that is older than the row says nothing.
//! While the control plane itself has work under way (`pausing`, `resuming`, `snapshotting`), a report that is not newer
//! says nothing either: it was true before the host got the request. Only when nobody can be at work any more, a row that
//! is still in such a state becomes what the host says.

use std::time::Duration;

use wrenn_core::CapsuleStatus;

use crate::store::{HostCapsule, UNFINISHED};

/// What a host says a capsule is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Running,
    Pausing,
    Paused,
    Resuming,
    Stopping,
}

/// A host's side of a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// The host reports it, with its count of changes.
    Present(Phase, i64),
    /// The host reports that it has ended.
    Ended(End),
    /// The online host has not reported it for this long.
    Absent(Duration),
}

/// How a capsule ended on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Its time-out had passed, it could not be paused, and so it was removed.
    TimedOut,
    /// Any other way.
    Other,
}

/// The cure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cure {
    /// The two agree, or it is too early to tell.
    None,
    /// The two agree, but for the host's count of changes.
    Note,
    /// Take over that it is in this state.
    Becomes(CapsuleStatus),
    /// The host is more than one move ahead: make this one and look again.
    Via(CapsuleStatus),
    /// The host does not have it: give it up as this.
    GivenUp(CapsuleStatus),
    /// Tell the host again to remove it.
    Destroy,
}

/// Absence after which a transitional capsule is given up.
pub(crate) const STUCK: Duration = Duration::from_secs(120);
/// Absence after which a running capsule is taken for stopped. Longer than any report is under way, shorter than
/// [`STUCK`] because a host that runs a capsule always reports it.
pub(crate) const GONE: Duration = Duration::from_secs(30);
/// Age at which nobody is at work any more on a capsule that is `pausing` or `resuming`: more than the deadline of such
/// work.
pub(crate) const TURNED: Duration = Duration::from_secs(330);

/// The cure for a capsule.
pub(crate) fn decide(row: &HostCapsule, sight: Sight) -> Cure {
    match sight {
        Sight::Present(phase, generation) => present(row, phase, generation),
        Sight::Ended(end) => ended(row.status, end),
        Sight::Absent(time) => absent(row.status, time),
    }
}

fn present(row: &HostCapsule, phase: Phase, generation: i64) -> Cure {
    use CapsuleStatus::{
        Error, Missing, Paused, Pausing, Pending, Resuming, Running, Snapshotting, Starting, Stopped,
        Stopping,
    };
    let given_up = match row.status {
        Stopping | Stopped | Error if phase == Phase::Stopping => return Cure::None,
        Stopping | Stopped | Error => return Cure::Destroy,
        Pausing | Resuming => row.age >= TURNED,
        Snapshotting => row.age >= UNFINISHED,
        _ => false,
    };
    let newer = generation > row.generation;
    if generation < row.generation && !given_up {
        return Cure::None;
    }
    match (row.status, phase) {
        (Running, Phase::Running)
        | (Pausing, Phase::Pausing)
        | (Paused, Phase::Paused)
        | (Resuming, Phase::Resuming)
            if newer =>
        {
            Cure::Note
        }
        (Pending | Starting | Resuming | Missing, Phase::Running) => Cure::Becomes(Running),
        (Pausing | Missing, Phase::Paused) => Cure::Becomes(Paused),
        (Pausing, Phase::Running) if newer || given_up => Cure::Becomes(Running),
        (Resuming, Phase::Paused) if newer || given_up => Cure::Becomes(Paused),
        (Snapshotting, Phase::Running) if given_up => Cure::Becomes(Running),
        (Snapshotting, Phase::Paused) if given_up => Cure::Becomes(Paused),
        (Running, Phase::Pausing) if newer => Cure::Becomes(Pausing),
        (Paused, Phase::Resuming) if newer => Cure::Becomes(Resuming),
        (Pending | Starting, Phase::Pausing | Phase::Paused) => Cure::Via(Running),
        (Resuming, Phase::Pausing) if newer => Cure::Via(Running),
        (Running, Phase::Paused) if newer => Cure::Via(Pausing),
        (Paused, Phase::Running) if newer => Cure::Via(Resuming),
        _ => Cure::None,
    }
}

fn ended(status: CapsuleStatus, end: End) -> Cure {
    use CapsuleStatus::{
        Error, Hibernated, Missing, Paused, Pausing, Pending, Resuming, Running, Snapshotting, Starting,
        Stopped, Stopping,
    };
    match (status, end) {
        (Stopped | Error | Hibernated, _) => Cure::None,
        (Running | Missing | Stopping, _) => Cure::Becomes(Stopped),
        // Removed on purpose, though nobody called for it.
        (Pausing, End::TimedOut) | (Paused, _) => Cure::Via(Stopping),
        (Pending | Starting | Resuming | Snapshotting | Pausing, _) => Cure::Becomes(Error),
    }
}

fn absent(status: CapsuleStatus, time: Duration) -> Cure {
    use CapsuleStatus::{
        Error, Hibernated, Missing, Paused, Pausing, Pending, Resuming, Running, Snapshotting, Starting,
        Stopped, Stopping,
    };
    match status {
        Missing => Cure::GivenUp(Stopped),
        Running if time >= GONE => Cure::GivenUp(Stopped),
        Pending | Starting | Resuming | Snapshotting if time >= STUCK => Cure::GivenUp(Error),
        Pausing if time >= STUCK => Cure::GivenUp(Paused),
        Stopping if time >= STUCK => Cure::GivenUp(Stopped),
        Pending | Starting | Resuming | Snapshotting | Pausing | Stopping | Running | Paused | Hibernated
        | Stopped | Error => Cure::None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;
    use wrenn_core::CapsuleId;

    use super::*;

    const PHASES: [Phase; 6] =
        [Phase::Starting, Phase::Running, Phase::Pausing, Phase::Paused, Phase::Resuming, Phase::Stopping];

    fn row(status: CapsuleStatus, generation: i64, age: Duration) -> HostCapsule {
        HostCapsule { id: CapsuleId::random(), status, generation, age }
    }

    fn fresh(status: CapsuleStatus, sight: Sight) -> Cure {
        decide(&row(status, 5, Duration::ZERO), sight)
    }

    fn sights() -> impl Strategy<Value = Sight> {
        let times = select(vec![Duration::ZERO, GONE, STUCK, UNFINISHED]);
        prop_oneof![
            (select(&PHASES[..]), 4i64..7).prop_map(|(phase, generation)| Sight::Present(phase, generation)),
            select(vec![End::TimedOut, End::Other]).prop_map(Sight::Ended),
            times.prop_map(Sight::Absent),
        ]
    }

    /// `pending` is never produced; its row would go through `starting` in one step.
    fn legal(from: CapsuleStatus, to: CapsuleStatus) -> bool {
        from == CapsuleStatus::Pending || from.can_become(to)
    }

    proptest! {
        #[test]
        fn every_cure_is_a_legal_move_and_cures_come_to_an_end(
            status in select(&CapsuleStatus::ALL[..]),
            sight in sights(),
            age in select(vec![Duration::ZERO, TURNED, UNFINISHED]),
        ) {
            let mut row = row(status, 5, age);
            for _ in 0..4 {
                let (to, last) = match decide(&row, sight) {
                    Cure::None | Cure::Note | Cure::Destroy => return Ok(()),
                    Cure::Via(to) => (to, false),
                    Cure::Becomes(to) | Cure::GivenUp(to) => (to, true),
                };
                prop_assert!(legal(row.status, to), "{} to {to} on {sight:?}", row.status);
                if last {
                    return Ok(());
                }
                row.status = to;
                row.age = Duration::ZERO;
            }
            prop_assert!(false, "no end of {status} on {sight:?}");
        }

        #[test]
        fn what_is_older_than_the_row_changes_nothing_while_somebody_may_be_at_work(
            status in select(&CapsuleStatus::ALL[..]),
            phase in select(&PHASES[..]),
        ) {
            let cure = fresh(status, Sight::Present(phase, 4));
            prop_assert!(matches!(cure, Cure::None | Cure::Destroy), "{status} on {phase:?}: {cure:?}");
        }
    }

    #[test]
    fn a_missing_capsule_comes_back_as_what_its_host_says() {
        let missing = |sight| fresh(CapsuleStatus::Missing, sight);
        assert_eq!(missing(Sight::Present(Phase::Running, 5)), Cure::Becomes(CapsuleStatus::Running));
        assert_eq!(missing(Sight::Present(Phase::Paused, 5)), Cure::Becomes(CapsuleStatus::Paused));
        assert_eq!(missing(Sight::Absent(Duration::ZERO)), Cure::GivenUp(CapsuleStatus::Stopped));
    }

    #[test]
    fn a_host_that_pauses_by_itself_is_followed_even_where_a_report_was_lost() {
        let running = |phase| fresh(CapsuleStatus::Running, Sight::Present(phase, 6));
        assert_eq!(running(Phase::Pausing), Cure::Becomes(CapsuleStatus::Pausing));
        assert_eq!(running(Phase::Paused), Cure::Via(CapsuleStatus::Pausing));
        let pausing = |phase, generation| fresh(CapsuleStatus::Pausing, Sight::Present(phase, generation));
        assert_eq!(pausing(Phase::Paused, 6), Cure::Becomes(CapsuleStatus::Paused));
        // From before the pause was asked for, and after it has failed.
        assert_eq!(pausing(Phase::Running, 5), Cure::None);
        assert_eq!(pausing(Phase::Running, 7), Cure::Becomes(CapsuleStatus::Running));
    }

    #[test]
    fn what_a_dead_control_plane_left_under_way_becomes_what_the_host_says() {
        use CapsuleStatus::{Paused, Pausing, Resuming, Running, Snapshotting};
        let cases = [
            (Pausing, Phase::Running, TURNED, Running),
            (Resuming, Phase::Paused, TURNED, Paused),
            (Snapshotting, Phase::Running, UNFINISHED, Running),
            (Snapshotting, Phase::Paused, UNFINISHED, Paused),
        ];
        for (status, phase, age, cured) in cases {
            let sight = Sight::Present(phase, 5);
            assert_eq!(decide(&row(status, 5, age / 2), sight), Cure::None, "{status}");
            assert_eq!(decide(&row(status, 5, age), sight), Cure::Becomes(cured), "{status}");
        }
        assert_eq!(
            decide(&row(Resuming, 5, Duration::ZERO), Sight::Present(Phase::Running, 5)),
            Cure::Becomes(Running)
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
            assert_eq!(fresh(status, Sight::Absent(STUCK / 2)), Cure::None);
            assert_eq!(fresh(status, Sight::Absent(STUCK)), Cure::GivenUp(repaired));
        }
    }

    #[test]
    fn a_vm_that_is_lost_in_the_middle_is_an_error_and_one_removed_for_its_time_out_is_not() {
        let pausing = |end| fresh(CapsuleStatus::Pausing, Sight::Ended(end));
        assert_eq!(pausing(End::Other), Cure::Becomes(CapsuleStatus::Error));
        assert_eq!(pausing(End::TimedOut), Cure::Via(CapsuleStatus::Stopping));
        let running = fresh(CapsuleStatus::Running, Sight::Ended(End::Other));
        assert_eq!(running, Cure::Becomes(CapsuleStatus::Stopped));
    }

    #[test]
    fn what_should_be_gone_is_removed_again() {
        for status in [CapsuleStatus::Stopping, CapsuleStatus::Stopped, CapsuleStatus::Error] {
            for phase in [Phase::Running, Phase::Paused, Phase::Resuming] {
                assert_eq!(fresh(status, Sight::Present(phase, 1)), Cure::Destroy);
            }
        }
    }
}
