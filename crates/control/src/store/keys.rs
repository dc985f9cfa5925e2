//! Teams and their API keys.

use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_core::{ApiKeyId, TeamId};

use super::{Store, StoreError};

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
        let row = sqlx::query!("select id, name, team_id from api_keys where key_hash = $1", hash)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|row| KeyOwner {
            key: ApiKeyId::from_uuid(row.id),
            name: row.name,
            team: TeamId::from_uuid(row.team_id),
        }))
    }

    /// Records the use of several keys at once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn touch_keys(&self, used: &[(ApiKeyId, OffsetDateTime)]) -> Result<(), StoreError> {
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

    /// Stores a key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_key(&self, key: &NewKey<'_>) -> Result<(), StoreError> {
        sqlx::query!(
            "insert into api_keys (id, team_id, name, key_hash, key_prefix) values ($1, $2, $3, $4, $5)",
            key.id.uuid(),
            key.team.uuid(),
            key.name,
            key.hash,
            key.prefix
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A team's keys, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keys(&self, team: TeamId) -> Result<Vec<KeyRow>, StoreError> {
        let rows = sqlx::query!(
            "select id, team_id, name, key_prefix, created_at, last_used from api_keys \
             where team_id = $1 order by created_at desc, id",
            team.uuid()
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| KeyRow {
                id: ApiKeyId::from_uuid(row.id),
                team: TeamId::from_uuid(row.team_id),
                name: row.name,
                prefix: row.key_prefix,
                created_at: row.created_at,
                last_used: row.last_used,
            })
            .collect())
    }

    /// Removes a key; false where there is none of this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_key(&self, team: TeamId, key: ApiKeyId) -> Result<bool, StoreError> {
        let done =
            sqlx::query!("delete from api_keys where id = $1 and team_id = $2", key.uuid(), team.uuid())
                .execute(&self.pool)
                .await?;
        Ok(done.rows_affected() > 0)
    }

    /// The team of this slug.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn team_by_slug(&self, slug: &str) -> Result<Option<TeamId>, StoreError> {
        let id = sqlx::query_scalar!("select id from teams where slug = $1", slug)
            .fetch_optional(&self.pool)
            .await?;
        Ok(id.map(TeamId::from_uuid))
    }

    /// The team of this slug, made with this name where there is none; true where it was made.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ensure_team(&self, slug: &str, name: &str) -> Result<(TeamId, bool), StoreError> {
        let made = sqlx::query_scalar!(
            "insert into teams (id, name, slug) values ($1, $2, $3) on conflict (slug) do nothing returning id",
            TeamId::random().uuid(),
            name,
            slug
        )
        .fetch_optional(&self.pool)
        .await?;
        if let Some(id) = made {
            return Ok((TeamId::from_uuid(id), true));
        }
        let id = self.team_by_slug(slug).await?.ok_or(StoreError::Corrupt("team slug"))?;
        Ok((id, false))
    }
}
