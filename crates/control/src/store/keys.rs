//! API keys.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_core::{ApiKeyId, TeamId, UserId};

use super::accounts::hold_active;
use super::audit::record;
use super::teams::hold_team;
use super::{Store, StoreError};
use crate::audit::{Actor, Deed, Entry};

/// Whom a presented key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyOwner {
    /// The key's row.
    pub key: ApiKeyId,
    /// The key's name.
    pub name: String,
    /// The team it acts for.
    pub team: TeamId,
}

/// A key about to be stored.
#[derive(Debug)]
pub struct NewKey<'a> {
    /// The key's row.
    pub id: ApiKeyId,
    /// The team it acts for.
    pub team: TeamId,
    /// What people call it.
    pub name: &'a str,
    /// Hex SHA-256 of the secret.
    pub hash: &'a str,
    /// The secret's first characters, for lists.
    pub prefix: &'a str,
    /// Who makes it; `None` on the machine itself.
    pub created_by: Option<UserId>,
}

/// A stored key, without its secret.
#[derive(Debug, Clone)]
pub struct KeyRow {
    /// The key's row.
    pub id: ApiKeyId,
    /// The team it acts for.
    pub team: TeamId,
    /// What people call it.
    pub name: String,
    /// The secret's first characters.
    pub prefix: String,
    /// Who made it; `None` on the machine itself.
    pub created_by: Option<UserId>,
    /// Their address.
    pub creator_email: Option<String>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it was last used, to within a few seconds.
    pub last_used: Option<OffsetDateTime>,
}

impl Store {
    /// Whom the key with this hash stands for.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn key_owner(&self, hash: &str) -> Result<Option<KeyOwner>, StoreError> {
        let mut reading = self.kept.take().await?;
        let row = sqlx::query!("select id, name, team_id from api_keys where key_hash = $1", hash)
            .fetch_optional(&mut *reading)
            .await?;
        reading.done();
        Ok(row.map(|row| KeyOwner {
            key: ApiKeyId::from_uuid(row.id),
            name: row.name,
            team: TeamId::from_uuid(row.team_id),
        }))
    }

    /// Whether a team has a key of this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_key_in_force(&self, team: TeamId, key: ApiKeyId) -> Result<bool, StoreError> {
        let mut reading = self.kept.take().await?;
        let found = sqlx::query_scalar!(
            r#"select exists (select from api_keys where id = $1 and team_id = $2) as "found!""#,
            key.uuid(),
            team.uuid()
        )
        .fetch_one(&mut *reading)
        .await?;
        reading.done();
        Ok(found)
    }

    /// Records the use of several keys at once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn touch_keys(&self, used: &[(ApiKeyId, OffsetDateTime)]) -> Result<(), StoreError> {
        // In one order, so that replicas wait for each other instead of blocking each other.
        let mut used = used.to_vec();
        used.sort_unstable_by_key(|(id, _)| *id);
        let ids: Vec<Uuid> = used.iter().map(|(id, _)| id.uuid()).collect();
        let times: Vec<OffsetDateTime> = used.iter().map(|(_, time)| *time).collect();
        sqlx::query!(
            "update api_keys set last_used = greatest(last_used, used.at) \
             from unnest($1::uuid[], $2::timestamptz[]) as used (id, at) where api_keys.id = used.id",
            &ids,
            &times
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Stores a key of a live team; when it was made, or nothing where the team is gone or its maker's account is not active
    /// (any more).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_key(
        &self,
        key: &NewKey<'_>,
        actor: &Actor,
    ) -> Result<Option<OffsetDateTime>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let maker = match key.created_by {
            Some(user) => hold_active(&mut tx, user).await?,
            None => true,
        };
        if !maker || !hold_team(&mut tx, key.team).await? {
            return Ok(None);
        }
        let made = sqlx::query_scalar!(
            "insert into api_keys (id, team_id, name, key_hash, key_prefix, created_by) \
             values ($1, $2, $3, $4, $5, $6) returning created_at",
            key.id.uuid(),
            key.team.uuid(),
            key.name,
            key.hash,
            key.prefix,
            key.created_by.map(UserId::uuid)
        )
        .fetch_one(&mut *tx)
        .await?;
        let deed = Deed::KeyCreate { id: key.id, name: key.name };
        record(&mut tx, &Entry::new(key.team, actor, deed)).await?;
        tx.commit().await?;
        Ok(Some(made))
    }

    /// A team's keys, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keys(&self, team: TeamId) -> Result<Vec<KeyRow>, StoreError> {
        let mut reading = self.kept.take().await?;
        let rows = sqlx::query!(
            r#"select keys.id, team_id, keys.name, key_prefix, created_by, keys.created_at, last_used,
                users.email as "email?"
            from api_keys keys left join users on users.id = created_by
            where team_id = $1 order by keys.created_at desc, keys.id"#,
            team.uuid()
        )
        .fetch_all(&mut *reading)
        .await?;
        reading.done();
        Ok(rows
            .into_iter()
            .map(|row| KeyRow {
                id: ApiKeyId::from_uuid(row.id),
                team: TeamId::from_uuid(row.team_id),
                name: row.name,
                prefix: row.key_prefix,
                created_by: row.created_by.map(UserId::from_uuid),
                creator_email: row.email,
                created_at: row.created_at,
                last_used: row.last_used,
            })
            .collect())
    }

    /// Ends a key; false where the team has none of this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_key(&self, team: TeamId, key: ApiKeyId, actor: &Actor) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let name = sqlx::query_scalar!(
            "delete from api_keys where id = $1 and team_id = $2 returning name",
            key.uuid(),
            team.uuid()
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(name) = name else { return Ok(false) };
        record(&mut tx, &Entry::new(team, actor, Deed::KeyRevoke { id: key, name: &name })).await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// Ends all keys that a person made, in whatever team.
pub(super) async fn delete_keys_of(
    connection: &mut PgConnection,
    user: UserId,
    actor: &Actor,
) -> Result<(), StoreError> {
    let gone =
        sqlx::query!("delete from api_keys where created_by = $1 returning id, team_id, name", user.uuid())
            .fetch_all(&mut *connection)
            .await?;
    for key in gone {
        let deed = Deed::KeyRevoke { id: ApiKeyId::from_uuid(key.id), name: &key.name };
        record(connection, &Entry::new(TeamId::from_uuid(key.team_id), actor, deed)).await?;
    }
    Ok(())
}
