//! What a capsule's move from one state to another completes, for the audit log.

use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;
use wrenn_core::{CapsuleId, CapsuleStatus, TeamId};

use super::StoreError;
use super::audit::record;
use super::capsules::status;
use crate::audit::{Actor, CapsuleAct, Deed, Entry, StoredActor};

/// A capsule that has just been moved, as it was before.
pub(super) struct Moved {
    pub(super) team_id: Uuid,
    pub(super) template_name: String,
    pub(super) reason: Option<String>,
    pub(super) was: String,
    pub(super) never_ran: bool,
    pub(super) actor: Option<Json<StoredActor>>,
}

impl Moved {
    /// Records what the move completes. `repaired` where it follows from what a host reports, not from work on the
    /// capsule.
    pub(super) async fn record(
        self,
        connection: &mut PgConnection,
        id: CapsuleId,
        to: CapsuleStatus,
        repaired: bool,
    ) -> Result<(), StoreError> {
        let from = match status(&self.was)? {
            // Its host fell silent before it was known to run.
            CapsuleStatus::Missing if self.never_ran => CapsuleStatus::Starting,
            from => from,
        };
        let Some(Outcome { act, worked }) = outcome(from, to, repaired) else { return Ok(()) };
        let lost = matches!(act, CapsuleAct::Error | CapsuleAct::Snapshot);
        let actor = match self.actor {
            Some(Json(stored)) if !lost => Actor::from(Some(stored)),
            _ => Actor::System,
        };
        let reason = self.reason.as_deref();
        let failure = (!worked).then(|| match to {
            CapsuleStatus::Stopping => "it was destroyed meanwhile",
            _ => reason.unwrap_or("the capsule was lost"),
        });
        let deed = Deed::Capsule {
            id,
            act,
            template: &self.template_name,
            phase: lost.then(|| from.as_str()),
            reason: reason.filter(|_| worked && to != CapsuleStatus::Running),
        };
        let entry = Entry { failure, ..Entry::new(TeamId::from_uuid(self.team_id), &actor, deed) };
        record(connection, &entry).await
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    act: CapsuleAct,
    worked: bool,
}

/// What has been completed by a move; nothing where it only begins something.
fn outcome(from: CapsuleStatus, to: CapsuleStatus, repaired: bool) -> Option<Outcome> {
    use CapsuleStatus::{
        Error, Missing, Paused, Pausing, Pending, Resuming, Running, Snapshotting, Starting, Stopped,
        Stopping,
    };
    let (act, worked) = match (from, to) {
        (Snapshotting, Error) => (CapsuleAct::Snapshot, false),
        (Snapshotting, Running | Paused) if repaired => (CapsuleAct::Snapshot, true),
        (_, Error) if repaired => (CapsuleAct::Error, false),
        (Pending | Starting, Running) => (CapsuleAct::Create, true),
        (Pending | Starting, Error | Stopping) => (CapsuleAct::Create, false),
        (Pausing, Paused) => (CapsuleAct::Pause, true),
        (Pausing, Running | Error | Stopping) => (CapsuleAct::Pause, false),
        (Resuming, Running) => (CapsuleAct::Resume, true),
        (Resuming, Paused | Error | Stopping) => (CapsuleAct::Resume, false),
        (Stopping, Stopped) => (CapsuleAct::Destroy, true),
        (Running | Missing, Stopped) => (CapsuleAct::Error, false),
        _ => return None,
    };
    Some(Outcome { act, worked })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_move_that_ends_something_is_recorded() {
        use CapsuleStatus::{
            Error, Missing, Paused, Pausing, Running, Snapshotting, Starting, Stopped, Stopping,
        };
        let cases = [
            (Starting, Running, false, Some((CapsuleAct::Create, true))),
            (Starting, Error, false, Some((CapsuleAct::Create, false))),
            (Starting, Error, true, Some((CapsuleAct::Error, false))),
            (Running, Pausing, false, None),
            (Pausing, Paused, true, Some((CapsuleAct::Pause, true))),
            (Pausing, Running, true, Some((CapsuleAct::Pause, false))),
            (Running, Stopping, false, None),
            (Stopping, Stopped, false, Some((CapsuleAct::Destroy, true))),
            (Running, Stopped, true, Some((CapsuleAct::Error, false))),
            (Running, Missing, true, None),
            (Snapshotting, Running, false, None),
            (Snapshotting, Paused, true, Some((CapsuleAct::Snapshot, true))),
        ];
        for (from, to, repaired, expected) in cases {
            let found = outcome(from, to, repaired).map(|found| (found.act, found.worked));
            assert_eq!(found, expected, "{from} to {to}");
        }
    }
}
