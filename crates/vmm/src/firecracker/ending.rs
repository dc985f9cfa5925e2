//! Ends a machine that cannot go on, and knows why afterwards.

use std::sync::{Arc, OnceLock};

use crate::ExitReason;
use crate::remains::Remains;

/// The end of one machine, shared by all who may find that it cannot go on.
#[derive(Debug)]
pub(super) struct Ending {
    remains: Arc<Remains>,
    why: OnceLock<ExitReason>,
}

impl Ending {
    pub(super) fn new(remains: &Arc<Remains>) -> Self {
        Self { remains: Arc::clone(remains), why: OnceLock::new() }
    }

    /// Ends the machine. The first reason is the one that counts.
    pub(super) fn end(&self, why: ExitReason) {
        if self.why.set(why).is_ok() {
            tracing::error!(id = self.remains.record.id, "a machine cannot go on: {why}");
        }
        self.remains.process.signal_kill();
    }

    /// Waits until the machine has ended, in whatever way.
    pub(super) async fn exited(&self) -> ExitReason {
        let seen = self.remains.process.exited().await;
        self.why.get().copied().unwrap_or(seen)
    }
}
