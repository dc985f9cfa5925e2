//! Pauses between attempts to remove what would not go.

use std::time::Duration;

use tracing::error;
use wrenn_core::CapsuleId;

const FIRST: Duration = Duration::from_millis(100);
const CEILING: Duration = Duration::from_secs(30);

/// Waits longer after each failure.
#[derive(Debug)]
pub(crate) struct Retry(Duration);

impl Retry {
    pub(crate) fn new() -> Self {
        Self(FIRST)
    }

    /// Says what failed, and waits.
    pub(crate) async fn wait(&mut self, id: CapsuleId, failure: &anyhow::Error) {
        error!(capsule = %id, "cannot remove all of the capsule, trying again: {failure:#}");
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(CEILING);
    }
}
