//! What the command line does directly on the store.

use std::fmt;

use time::OffsetDateTime;
use wrenn_core::{ApiKeyId, HostId, TeamId, UserId};

use crate::accounts::{self, TeamSeed};
use crate::audit::Actor;
use crate::auth::{Passwords, new_key};
use crate::error::{Error, Result};
use crate::secret;
use crate::store::{HostStatus, KeyRow, NewUser, Store, UserStatus};
use crate::vault::{SecretKeys, Vault};

const LOCAL_TEAM: &str = "default";

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

async fn local_team(store: &Store) -> Result<(TeamId, bool)> {
    Ok(store.ensure_local_team(&TeamSeed::named(LOCAL_TEAM).as_new()).await?)
}

/// Makes the machine's own team with a first key where there is no such team yet.
///
/// # Errors
/// [`Error::Store`].
pub async fn ensure_default_team_and_key(store: &Store) -> Result<Option<NewApiKey>> {
    let (team, made) = local_team(store).await?;
    if !made && !store.keys(team).await?.is_empty() {
        return Ok(None);
    }
    insert(store, team, "default").await.map(Some)
}

/// Makes a key of the machine's own team.
///
/// # Errors
/// [`Error::Store`].
pub async fn create_key(store: &Store, name: &str) -> Result<NewApiKey> {
    let (team, _) = local_team(store).await?;
    insert(store, team, name).await
}

/// The keys of the machine's own team, newest first.
///
/// # Errors
/// [`Error::Store`].
pub async fn list_keys(store: &Store) -> Result<Vec<KeyRow>> {
    let (team, _) = local_team(store).await?;
    Ok(store.keys(team).await?)
}

/// Ends a key of the machine's own team; servers notice within seconds.
///
/// # Errors
/// [`Error::NotFound`] where there is no such key, else [`Error::Store`].
pub async fn revoke_key(store: &Store, key: ApiKeyId) -> Result<()> {
    let (team, _) = local_team(store).await?;
    let removed = store.delete_key(team, key, &Actor::System).await?;
    if removed { Ok(()) } else { Err(Error::NotFound(format!("key {key}"))) }
}

/// Makes a team without members, for deployments that know no people and for tests of the separation of teams.
///
/// # Errors
/// [`Error::Store`], and [`Error::Invalid`] for a name that a team cannot have.
pub async fn create_team_with_key(store: &Store, name: &str) -> Result<NewApiKey> {
    let name = accounts::team_name(Some(name.to_owned())).map_err(|error| Error::Invalid(error.message))?;
    let seed = TeamSeed::named(name);
    store.insert_unowned_team(&seed.as_new()).await?;
    insert(store, seed.as_new().id, "default").await
}

async fn insert(store: &Store, team: TeamId, name: &str) -> Result<NewApiKey> {
    let name = match name.trim() {
        "" => "Unnamed API Key",
        name => name,
    };
    let made = new_key(store, team, name, None, &Actor::System).await?;
    let made = made.ok_or_else(|| Error::NotFound(format!("team {team}")))?;
    Ok(NewApiKey { id: made.id, team, name: name.to_owned(), key: made.key })
}

/// An account to make on the machine itself.
#[derive(Clone)]
pub struct LocalUser {
    /// The address.
    pub email: String,
    /// What they are called.
    pub name: String,
    /// At least 8 characters.
    pub password: String,
    /// Whether they administer the platform; the first account does in any case.
    pub admin: bool,
}

impl fmt::Debug for LocalUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalUser")
            .field("email", &self.email)
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

/// Makes an active account without any mail. An administrator becomes the owner of the machine's own team, where that has
/// none yet; everybody else gets a team of their own. `None` where the address has an account.
///
/// # Errors
/// [`Error::Invalid`] for what no account can have, [`Error::Password`], [`Error::Store`].
pub async fn create_user(store: &Store, user: LocalUser) -> Result<Option<UserId>> {
    let invalid = |error: crate::api::ApiError| Error::Invalid(error.message);
    let email = accounts::email(Some(user.email)).map_err(invalid)?;
    let name = accounts::person_name(Some(user.name)).map_err(invalid)?;
    let password = accounts::password_field(Some(user.password), "password").map_err(invalid)?;
    let hash = Passwords::hash_once(&password).map_err(|_| Error::Password)?;
    local_team(store).await?;
    let id = UserId::random();
    let new = NewUser { id, email: &email, name: &name, password_hash: Some(&hash) };
    let made = store.insert_active_user(&new, user.admin, &TeamSeed::of(&name).as_new()).await?;
    Ok(made.then_some(id))
}

/// Whether there is an account with this address, apart from one that waits for its activation and makes room.
///
/// # Errors
/// [`Error::Store`], and [`Error::Invalid`] for what is no address.
pub async fn user_exists(store: &Store, email: &str) -> Result<bool> {
    let email = accounts::email(Some(email.to_owned())).map_err(|error| Error::Invalid(error.message))?;
    Ok(store.login(&email).await?.is_some_and(|login| login.status != UserStatus::Inactive))
}

/// Replaces the password of an active account, for people whom no mail reaches; every sign-in until now ends.
///
/// # Errors
/// [`Error::NotFound`] where there is no such account, [`Error::Invalid`] for what is no address or password,
/// [`Error::Password`], [`Error::Store`].
pub async fn set_password(store: &Store, email: &str, password: &str) -> Result<()> {
    let invalid = |error: crate::api::ApiError| Error::Invalid(error.message);
    let email = accounts::email(Some(email.to_owned())).map_err(invalid)?;
    let password = accounts::password_field(Some(password.to_owned()), "password").map_err(invalid)?;
    let hash = Passwords::hash_once(&password).map_err(|_| Error::Password)?;
    let unknown = || Error::NotFound(format!("active account with the address {email}"));
    let user = store.login(&email).await?.ok_or_else(unknown)?.id;
    if store.replace_password(user, &hash).await? { Ok(()) } else { Err(unknown()) }
}

/// Seals all stored secrets with the current key; how many were sealed with an older one.
///
/// # Errors
/// [`Error::Vault`] where a secret can be opened with none of the keys, [`Error::Store`]; nothing has changed then.
pub async fn reseal(store: &Store, keys: &SecretKeys) -> Result<u64> {
    let vault = Vault::new(keys);
    store.reseal(|place, sealed| vault.reseal(place, sealed).map_err(Error::from)).await
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
