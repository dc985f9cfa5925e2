//! Who is calling.
//!
//! A handler that needs a caller names [`Caller`] in its signature; there is no other way to be authenticated, and no
//! middleware to forget. Keys are looked up by their SHA-256. A found key is remembered for [`REMEMBER`], so a
//! revocation takes effect within that time; uses are collected and written in one statement per [`FLUSH_EVERY`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use time::OffsetDateTime;
use wrenn_core::{ApiKeyId, TeamId};

use crate::api::ApiError;
use crate::secret;
use crate::state::App;
use crate::store::{KeyOwner, Store, StoreError};

/// Carries an API key.
pub const KEY_HEADER: &str = "x-api-key";
/// What every API key begins with; 32 hex digits follow.
pub const KEY_PREFIX: &str = "wrn_";

const KEY_DIGITS: usize = 32;
const REMEMBER: Duration = Duration::from_secs(3);
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Keys remembered before stale ones are thrown out.
const SWEEP_AT: usize = 4096;

/// Who acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A program with a team's key.
    ApiKey {
        /// The key's row.
        id: ApiKeyId,
        /// The key's name.
        name: String,
    },
}

/// An authenticated caller and the team it acts for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whose resources the request is about.
    pub team: TeamId,
    /// Who makes the request.
    pub actor: Actor,
}

impl From<KeyOwner> for Caller {
    fn from(owner: KeyOwner) -> Self {
        Self { team: owner.team, actor: Actor::ApiKey { id: owner.key, name: owner.name } }
    }
}

/// Whether the text has the form of an API key.
pub fn is_key(text: &str) -> bool {
    text.strip_prefix(KEY_PREFIX).is_some_and(|digits| {
        digits.len() == KEY_DIGITS && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// Found keys, and uses not yet written.
#[derive(Debug, Default)]
pub(crate) struct KeyCache {
    found: Mutex<HashMap<String, (Instant, KeyOwner)>>,
    used: Mutex<HashMap<ApiKeyId, OffsetDateTime>>,
}

impl KeyCache {
    async fn owner(&self, store: &Store, key: &str) -> Result<Option<KeyOwner>, StoreError> {
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

    fn used(&self, key: ApiKeyId) {
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

/// The caller that the headers prove. A key decides even where there is a bearer token beside it.
pub(crate) async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let Some(key) = headers.get(KEY_HEADER) else {
        let missing = if headers.contains_key(AUTHORIZATION) {
            "bearer tokens are not accepted here; send an API key in X-API-Key"
        } else {
            "send an API key in X-API-Key"
        };
        return Err(ApiError::unauthorized(missing));
    };
    let unknown = || ApiError::unauthorized("the API key is unknown or revoked");
    let key = key.to_str().ok().filter(|key| is_key(key)).ok_or_else(unknown)?;
    let owner = app.keys.owner(&app.store, key).await?.ok_or_else(unknown)?;
    app.keys.used(owner.key);
    Ok(owner.into())
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        authenticate(app, &parts.headers).await
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
