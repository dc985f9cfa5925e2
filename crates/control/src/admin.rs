//! What the command line does directly on the store.

use std::fmt;

use time::OffsetDateTime;
use wrenn_core::{ApiKeyId, HostId, TeamId};

use crate::auth::KEY_PREFIX;
use crate::error::{Error, Result};
use crate::secret;
use crate::store::{HostStatus, KeyRow, NewKey, Store};

/// Slug of the team that `wrenn up` makes.
pub const DEFAULT_TEAM: &str = "default";
/// Characters of a key that lists show.
const SHOWN: usize = 10;

/// A key just made: the only moment its secret is known.
#[derive(Clone)]
pub struct NewApiKey {
    /// The key's row.
    pub id: ApiKeyId,
    /// The team it acts for.
    pub team: TeamId,
    /// What people call it.
    pub name: String,
    /// The secret.
    pub key: String,
}

impl fmt::Debug for NewApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewApiKey").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Makes the default team with a first key where there is no such team yet.
///
/// # Errors
/// [`Error::Store`].
pub async fn ensure_default_team_and_key(store: &Store) -> Result<Option<NewApiKey>> {
    let (team, made) = store.ensure_team(DEFAULT_TEAM, DEFAULT_TEAM).await?;
    if !made && !store.keys(team).await?.is_empty() {
        return Ok(None);
    }
    insert(store, team, "default").await.map(Some)
}

/// Makes a key of the default team.
///
/// # Errors
/// [`Error::Store`].
pub async fn create_key(store: &Store, name: &str) -> Result<NewApiKey> {
    let (team, _) = store.ensure_team(DEFAULT_TEAM, DEFAULT_TEAM).await?;
    insert(store, team, name).await
}

/// The keys of the default team, newest first.
///
/// # Errors
/// [`Error::Store`].
pub async fn list_keys(store: &Store) -> Result<Vec<KeyRow>> {
    match store.team_by_slug(DEFAULT_TEAM).await? {
        Some(team) => Ok(store.keys(team).await?),
        None => Ok(Vec::new()),
    }
}

/// Ends a key of the default team; servers notice within seconds.
///
/// # Errors
/// [`Error::NotFound`] where there is no such key, else [`Error::Store`].
pub async fn revoke_key(store: &Store, key: ApiKeyId) -> Result<()> {
    let team = store.team_by_slug(DEFAULT_TEAM).await?;
    let removed = match team {
        Some(team) => store.delete_key(team, key).await?,
        None => false,
    };
    if removed { Ok(()) } else { Err(Error::NotFound(format!("key {key}"))) }
}

/// Makes a team, for deployments with several and for tests of their separation.
///
/// # Errors
/// [`Error::Store`].
pub async fn create_team_with_key(store: &Store, slug: &str) -> Result<NewApiKey> {
    let (team, _) = store.ensure_team(slug, slug).await?;
    insert(store, team, "default").await
}

async fn insert(store: &Store, team: TeamId, name: &str) -> Result<NewApiKey> {
    let name = match name.trim() {
        "" => "Unnamed API Key",
        name => name,
    };
    let key = format!("{KEY_PREFIX}{}", secret::random_hex::<16>());
    let id = ApiKeyId::random();
    let hash = secret::hash(&key);
    store.insert_key(&NewKey { id, team, name, hash: &hash, prefix: &key[..SHOWN] }).await?;
    Ok(NewApiKey { id, team, name: name.to_owned(), key })
}

/// Whether a key is one that is in force.
///
/// # Errors
/// [`Error::Store`].
pub async fn key_works(store: &Store, key: &str) -> Result<bool> {
    Ok(store.key_owner(&secret::hash(key)).await?.is_some())
}

/// What the database knows of a host's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostState {
    /// Where it is in its life.
    pub status: HostStatus,
    /// When its agent was last heard, by the database's clock.
    pub last_heard: Option<OffsetDateTime>,
}

/// The state of a host; `None` where the database does not know it.
///
/// # Errors
/// [`Error::Store`].
pub async fn host_state(store: &Store, host: HostId) -> Result<Option<HostState>> {
    let row = store.host(host).await?;
    Ok(row.map(|row| HostState { status: row.status, last_heard: row.last_heartbeat_at }))
}
