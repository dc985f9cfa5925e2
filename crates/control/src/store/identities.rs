//! The ways in which people sign in beside a password.

use sqlx::PgConnection;
use time::OffsetDateTime;
use wrenn_core::UserId;

use super::accounts::{NewUser, insert_user, make_active, replace_inactive};
use super::teams::{NewTeam, insert_team};
use super::{Store, StoreError, UserStatus};

/// How signing up with a provider went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstSignIn {
    /// The account is made, active and linked.
    Done,
    /// The address is another account's.
    EmailTaken,
    /// The identity has been linked meanwhile.
    Known,
}

/// How linking went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Linked, now or before.
    Done,
    /// The identity is another account's, or the account has another identity of the provider.
    Taken,
}

/// How unlinking went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlink {
    /// Unlinked.
    Done,
    /// It was not linked.
    Unknown,
    /// The person could not sign in any more.
    LastWay,
}

async fn identity(
    connection: &mut PgConnection,
    provider: &str,
    subject: &str,
) -> Result<Option<(UserId, UserStatus)>, StoreError> {
    let row = sqlx::query!(
        "select users.id, users.status from identities join users on users.id = identities.user_id \
         where provider = $1 and subject = $2",
        provider,
        subject
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok((UserId::from_uuid(row.id), UserStatus::parse(&row.status)?))).transpose()
}

impl Store {
    /// Whose identity this is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn identity(
        &self,
        provider: &str,
        subject: &str,
    ) -> Result<Option<(UserId, UserStatus)>, StoreError> {
        identity(&mut *self.pool.acquire().await?, provider, subject).await
    }

    /// Makes an account, its team and its identity, all or none. One of the same address that waits for its activation
    /// makes room.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn first_sign_in(
        &self,
        new: &NewUser<'_>,
        provider: &str,
        subject: &str,
        team: &NewTeam<'_>,
    ) -> Result<FirstSignIn, StoreError> {
        let mut tx = self.pool.begin().await?;
        replace_inactive(&mut tx, new.email).await?;
        if !insert_user(&mut tx, new, UserStatus::Inactive).await? {
            // The faster of two first sign-ins has both the address and the identity.
            let known = identity(&mut tx, provider, subject).await?.is_some();
            return Ok(if known { FirstSignIn::Known } else { FirstSignIn::EmailTaken });
        }
        let linked = sqlx::query!(
            "insert into identities (provider, subject, user_id) values ($1, $2, $3) on conflict do nothing",
            provider,
            subject,
            new.id.uuid()
        )
        .execute(&mut *tx)
        .await?;
        if linked.rows_affected() == 0 {
            return Ok(FirstSignIn::Known);
        }
        make_active(&mut tx, new.id.uuid()).await?;
        insert_team(&mut tx, team, new.id, true).await?;
        tx.commit().await?;
        Ok(FirstSignIn::Done)
    }

    /// Lets an active person sign in with an identity, where they have `begun` that with a sign-in that is still good.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn link(
        &self,
        user: UserId,
        provider: &str,
        subject: &str,
        begun: OffsetDateTime,
    ) -> Result<Link, StoreError> {
        sqlx::query!(
            "insert into identities (provider, subject, user_id) \
             select $1, $2, id from users where id = $3 and status = 'active' and sessions_from <= $4 \
             on conflict do nothing",
            provider,
            subject,
            user.uuid(),
            begun
        )
        .execute(&self.pool)
        .await?;
        let owner = self.identity(provider, subject).await?;
        Ok(if owner.is_some_and(|(owner, _)| owner == user) { Link::Done } else { Link::Taken })
    }

    /// Ends a way to sign in, unless it is the last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unlink(&self, user: UserId, provider: &str) -> Result<Unlink, StoreError> {
        let mut tx = self.pool.begin().await?;
        let has_password = sqlx::query_scalar!(
            r#"select password_hash is not null as "has!" from users where id = $1 for update"#,
            user.uuid()
        )
        .fetch_optional(&mut *tx)
        .await?;
        let all = sqlx::query_scalar!("select provider from identities where user_id = $1", user.uuid())
            .fetch_all(&mut *tx)
            .await?;
        if !all.iter().any(|known| known == provider) {
            return Ok(Unlink::Unknown);
        }
        if has_password != Some(true) && all.len() < 2 {
            return Ok(Unlink::LastWay);
        }
        sqlx::query!("delete from identities where user_id = $1 and provider = $2", user.uuid(), provider)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Unlink::Done)
    }
}
