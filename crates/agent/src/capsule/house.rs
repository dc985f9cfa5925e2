//! What is seen to every few seconds while a capsule runs: its time-out, the size of its console's log, its record, and a
//! host's disk that has become full.
//!
//! A VMM that finds the disk full stops the guest in place of telling it of a failed write, which would cost it its file
//! system. So the guest is let go on again and again, until there is room and the write is done.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};
use wrenn_vmm::{Machine, RunState};

use super::actor::{Actor, Step};
use super::unix_now;
use crate::console;
use crate::error::CapsuleError;
use crate::record::Phase;

/// Pause before an idle capsule is written out anew where the host could not do so.
const PAUSE_AGAIN: Duration = Duration::from_secs(15);
/// Attempts to pause an idle capsule before it is removed.
const ATTEMPTS: u32 = 4;
/// Pause between two looks at a guest that is waited for.
const LOOK: Duration = Duration::from_millis(250);

/// What is remembered from one time to the next.
#[derive(Debug, Default)]
pub(super) struct House {
    /// When the pause of an idle capsule may be tried again.
    pause_at: Option<Instant>,
    /// Attempts that failed in a row.
    failures: u32,
    /// The last activity before the last of them.
    failed_at: i64,
    /// The guest waits for room on the host's disk.
    waits: bool,
}

impl Actor {
    pub(super) async fn keep_house(&mut self, machine: &dyn Machine) -> Option<Step> {
        self.mind_disk(machine).await;
        if self.is_idle() {
            return self.pause_idle().await;
        }
        if let Err(failure) = console::trim(&self.dir) {
            warn!(capsule = %self.capsule.id(), "cannot trim the console log: {failure}");
        }
        if self.capsule.last_active() != self.house.failed_at {
            (self.house.pause_at, self.house.failures) = (None, 0);
        }
        if self.capsule.last_active() != self.record.last_active {
            self.save();
        }
        None
    }

    fn is_idle(&self) -> bool {
        let limit = i64::from(self.record.spec.timeout_sec);
        limit > 0
            && unix_now() - self.capsule.last_active() >= limit
            && self.house.pause_at.is_none_or(|at| at <= Instant::now())
    }

    async fn pause_idle(&mut self) -> Option<Step> {
        let failure = match self.pause("ttl_expired").await {
            Ok(()) => {
                (self.house.pause_at, self.house.failures) = (None, 0);
                return Some(Step::Rest);
            }
            Err(failure) => failure,
        };
        self.house.failures += 1;
        self.house.failed_at = self.capsule.last_active();
        // A guest that does not answer would run for ever otherwise, and so would one on a host that stays full.
        if self.house.failures >= ATTEMPTS {
            return Some(Step::End(format!("ttl_expired: {}", failure.chain()), None));
        }
        // What cannot be done at the moment must not cost the guest what it has.
        self.house.pause_at = Some(Instant::now() + PAUSE_AGAIN);
        None
    }

    async fn mind_disk(&mut self, machine: &dyn Machine) {
        // A VMM that does not answer has ended, or is asked again.
        let Ok(state) = machine.status().await else { return };
        let waits = state == RunState::DiskFull;
        // Nobody stops a guest from here but whoever lets it go on; one that stands still all the same was forgotten.
        let stands = waits || state == RunState::Paused;
        if stands && let Err(error) = machine.cont().await {
            warn!(capsule = %self.capsule.id(), %error, "the guest does not go on");
        }
        if waits == self.house.waits {
            return;
        }
        self.house.waits = waits;
        if waits {
            warn!(capsule = %self.capsule.id(), "the guest waits: the host's disk is full");
            self.enter(Phase::Running, format!("disk_full: {}", CapsuleError::DiskFull), None);
        } else {
            info!(capsule = %self.capsule.id(), "the guest goes on: there is room on the host's disk");
            self.enter(Phase::Running, String::new(), None);
        }
    }
}

/// Resolves when the machine has stopped because the host's disk is full.
pub(super) async fn finds_disk_full(machine: &dyn Machine) {
    loop {
        tokio::time::sleep(LOOK).await;
        if matches!(machine.status().await, Ok(RunState::DiskFull)) {
            return;
        }
    }
}
