//! Where the time of a pause or a restore goes, for whoever has the agent log at level `debug`.

use tokio::time::Instant;
use tracing::debug;
use wrenn_core::CapsuleId;

/// Tells how long each step took.
pub(super) struct Steps {
    id: CapsuleId,
    last: Instant,
}

impl Steps {
    /// Begins the first step now.
    pub(super) fn begin(id: CapsuleId) -> Self {
        Self { id, last: Instant::now() }
    }

    /// Ends a step and begins the next.
    pub(super) fn done(&mut self, step: &'static str) {
        debug!(capsule = %self.id, step, us = self.last.elapsed().as_micros(), "step done");
        self.last = Instant::now();
    }
}
