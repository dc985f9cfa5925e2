//! People as requests meet them: who a token stands for, and who can be found.

use time::OffsetDateTime;
use wrenn_core::{TeamId, UserId};

use super::{Store, StoreError};

/// Where an account is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserStatus {
    /// Signed up, the address not yet confirmed.
    Inactive,
    /// In use.
    Active,
    /// Locked by an administrator.
    Disabled,
    /// Ended by its person; purged after a while.
    Deleted,
}

impl UserStatus {
    /// The name in the database and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Deleted => "deleted",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        [Self::Inactive, Self::Active, Self::Disabled, Self::Deleted]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or(StoreError::Corrupt("user status"))
    }
}

/// What a person may do in a team. Each may do what the ones before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Uses what the team has.
    Member,
    /// Also manages members and the team's name.
    Admin,
    /// Also deletes the team. There is one, and nobody can change that.
    Owner,
}

impl Role {
    /// The name in the database and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        [Self::Member, Self::Admin, Self::Owner]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(StoreError::Corrupt("role"))
    }
}

/// What the database says of the person and the team that a token names.
#[derive(Debug, Clone)]
pub struct Session {
    /// Where the account is in its life.
    pub status: UserStatus,
    /// Their address.
    pub email: String,
    /// Their name.
    pub name: String,
    /// Whether they administer the platform.
    pub is_admin: bool,
    /// Tokens signed before this time are refused.
    pub sessions_from: OffsetDateTime,
    /// Their role in the team, where it is live and they are in it.
    pub role: Option<Role>,
    /// Whether the team was deleted.
    pub team_deleted: bool,
}

/// A person whom others may find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundUser {
    /// Their account.
    pub id: UserId,
    /// Their address.
    pub email: String,
}

/// An account as its person sees it.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Whether they can sign in with a password.
    pub has_password: bool,
    /// The providers with which they can sign in.
    pub providers: Vec<String>,
}

impl Store {
    /// What there is behind a token of this person for this team; `None` where there is no such account (any more).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn session(&self, user: UserId, team: TeamId) -> Result<Option<Session>, StoreError> {
        let mut reading = self.kept.take().await?;
        let row = sqlx::query!(
            r#"select users.status, users.email, users.name, users.is_admin, users.sessions_from,
                members.role as "role?", teams.deleted_at is not null as "team_deleted!"
            from users
            left join teams on teams.id = $2
            left join team_members members
                on members.team_id = teams.id and members.user_id = users.id and teams.deleted_at is null
            where users.id = $1"#,
            user.uuid(),
            team.uuid()
        )
        .fetch_optional(&mut *reading)
        .await?;
        reading.done();
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Session {
            status: UserStatus::parse(&row.status)?,
            email: row.email,
            name: row.name,
            is_admin: row.is_admin,
            sessions_from: row.sessions_from,
            role: row.role.as_deref().map(Role::parse).transpose()?,
            team_deleted: row.team_deleted,
        }))
    }

    /// How a person can sign in.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn profile(&self, user: UserId) -> Result<Option<Profile>, StoreError> {
        let row = sqlx::query!(
            r#"select password_hash is not null as "has_password!",
                array(select provider from identities where user_id = users.id order by provider) as "providers!"
            from users where id = $1"#,
            user.uuid()
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Profile { has_password: row.has_password, providers: row.providers }))
    }

    /// Active people whose address begins with `prefix`, in the order of their addresses, `limit` at most. Every
    /// character of the prefix stands for itself.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn search_users(&self, prefix: &str, limit: i64) -> Result<Vec<FoundUser>, StoreError> {
        // A range instead of a pattern: nothing to escape, and any plan uses the index.
        let mut reading = self.kept.take().await?;
        let rows = sqlx::query!(
            r#"select id, email from users
            where status = 'active' and email collate "C" >= $1 and email collate "C" < $1 || U&'\+10FFFF'
            order by email collate "C" limit $2"#,
            prefix,
            limit
        )
        .fetch_all(&mut *reading)
        .await?;
        reading.done();
        Ok(rows
            .into_iter()
            .map(|row| FoundUser { id: UserId::from_uuid(row.id), email: row.email })
            .collect())
    }

    /// Renames a person.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rename_user(&self, user: UserId, name: &str) -> Result<(), StoreError> {
        sqlx::query!("update users set name = $2, updated_at = now() where id = $1", user.uuid(), name)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
