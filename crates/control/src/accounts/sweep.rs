//! What ends by itself: tokens, and accounts some time after their people have left.

use std::time::Duration;

use crate::state::App;
use crate::store::StoreError;

/// Days after which nobody will activate an account any more.
const FORGOTTEN_DAYS: i32 = 30;
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
    app.store.sweep_inactive(FORGOTTEN_DAYS).await?;
    let undelivered = app.store.sweep_mails().await?;
    if undelivered > 0 {
        tracing::error!("{undelivered} mails could not be delivered in time and are given up");
    }
    while let Some(user) = app.store.purge_user(GRACE).await? {
        tracing::info!(user.id = %user, "purged account {user}, which was deleted 15 days ago");
    }
    Ok(())
}
