//! What ends by itself: tokens, and accounts some time after their people have left.

use std::time::Duration;

use crate::state::App;
use crate::store::StoreError;

const EVERY: Duration = Duration::from_secs(600);
/// Seconds for which an account that was deleted is kept.
const GRACE: f64 = 15.0 * 24.0 * 3600.0;

/// Sweeps until shutdown, at once and then every ten minutes.
pub(crate) async fn sweep(app: App) {
    loop {
        if let Err(error) = once(&app).await {
            tracing::warn!(%error, "cannot sweep out what has ended");
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn once(app: &App) -> Result<(), StoreError> {
    app.limits.sweep();
    app.store.sweep_tokens().await?;
    let purged = app.store.purge_users(GRACE).await?;
    if purged > 0 {
        tracing::info!("purged {purged} accounts that were deleted 15 days ago");
    }
    Ok(())
}
