//! API keys.
//!
//! Keys are looked up by their SHA-256. A found key is remembered for [`REMEMBER`], so a revocation on another replica takes
//! effect within that time; uses are collected and written in one statement per [`FLUSH_EVERY`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use wrenn_core::{ApiKeyId, TeamId, UserId};

use crate::audit::Actor;
use crate::secret;
use crate::state::App;
use crate::store::{KeyOwner, NewKey, Store, StoreError};

/// Carries an API key.
pub const KEY_HEADER: &str = "x-api-key";
/// What every API key begins with; 32 hex digits follow.
pub(crate) const KEY_PREFIX: &str = "wrn_";

const KEY_DIGITS: usize = 32;
/// Characters of a key that lists and logs show.
const SHOWN: usize = 10;
const REMEMBER: Duration = Duration::from_secs(3);
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Keys remembered before stale ones are thrown out.
const SWEEP_AT: usize = 4096;

/// Whether the text has the form of an API key.
pub fn is_key(text: &str) -> bool {
    text.strip_prefix(KEY_PREFIX).is_some_and(|digits| {
        digits.len() == KEY_DIGITS && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// As much of a presented key as may be shown.
pub(super) fn shown(key: &str) -> String {
    key.chars().take(SHOWN).collect()
}

/// A key just made: the only moment its secret is known.
pub(crate) struct MadeKey {
    pub(crate) id: ApiKeyId,
    pub(crate) key: String,
    pub(crate) prefix: String,
    pub(crate) created_at: OffsetDateTime,
}

/// Makes a key of a team; nothing where the team is gone.
pub(crate) async fn new_key(
    store: &Store,
    team: TeamId,
    name: &str,
    created_by: Option<UserId>,
    actor: &Actor,
) -> Result<Option<MadeKey>, StoreError> {
    let key = format!("{KEY_PREFIX}{}", secret::random_hex::<16>());
    let (id, hash, prefix) = (ApiKeyId::random(), secret::hash(&key), shown(&key));
    let new = NewKey { id, team, name, hash: &hash, prefix: &prefix, created_by };
    let made = store.insert_key(&new, actor).await?;
    Ok(made.map(|created_at| MadeKey { id, key, prefix, created_at }))
}

/// Found keys, and uses not yet written.
#[derive(Debug, Default)]
pub(crate) struct KeyCache {
    found: Mutex<HashMap<String, (Instant, KeyOwner)>>,
    used: Mutex<HashMap<ApiKeyId, OffsetDateTime>>,
}

impl KeyCache {
    pub(super) async fn owner(&self, store: &Store, key: &str) -> Result<Option<KeyOwner>, StoreError> {
        let hash = secret::hash(key);
        if let Some(owner) = self.remembered(&hash) {
            return Ok(Some(owner));
        }
        let asked = Instant::now();
        let owner = store.key_owner(&hash).await?;
        if let Some(owner) = &owner {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            if found.len() >= SWEEP_AT {
                found.retain(|_, (at, _)| at.elapsed() < REMEMBER);
            }
            found.insert(hash, (asked, owner.clone()));
        }
        Ok(owner)
    }

    fn remembered(&self, hash: &str) -> Option<KeyOwner> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(hash).filter(|(at, _)| at.elapsed() < REMEMBER).map(|(_, owner)| owner.clone())
    }

    /// Forgets what was found, for keys that have just been ended.
    pub(crate) fn forget(&self) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn used(&self, key: ApiKeyId) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(key, OffsetDateTime::now_utc());
    }

    /// Writes the collected uses; puts them back where the store fails.
    async fn flush(&self, store: &Store) -> Result<(), StoreError> {
        let used: Vec<_> = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner))
            .into_iter()
            .collect();
        if used.is_empty() {
            return Ok(());
        }
        let written = store.touch_keys(&used).await;
        if written.is_err() {
            let mut waiting = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, at) in used {
                waiting.entry(key).or_insert(at);
            }
        }
        written
    }
}

/// Writes the uses of keys until shutdown, and once more then.
pub(crate) async fn record_uses(app: App) {
    let mut ending = false;
    while !ending {
        tokio::select! {
            () = app.shutdown.cancelled() => ending = true,
            () = tokio::time::sleep(FLUSH_EVERY) => {}
        }
        if let Err(error) = app.keys.flush(&app.store).await {
            tracing::warn!(%error, "cannot record when keys were used");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_form_is_a_key() {
        assert!(is_key(&format!("wrn_{}", "0123456789abcdef".repeat(2))));
        for bad in ["", "wrn_", "wrn_0123", "0123456789abcdef0123456789abcdef"] {
            assert!(!is_key(bad), "{bad}");
        }
        assert!(!is_key(&format!("wrn_{}", "0123456789ABCDEF".repeat(2))));
        assert!(!is_key(&format!("wrn_{}", "g".repeat(32))));
    }
}
