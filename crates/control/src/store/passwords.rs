//! Passwords, and the tokens with which forgotten ones are replaced.

use sqlx::PgConnection;
use uuid::Uuid;
use wrenn_core::UserId;

use super::accounts::{NewToken, insert_token, use_token};
use super::mails::{NewMail, post};
use super::{Store, StoreError};

impl Store {
    /// The stored hash of a person's password.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn password_hash(&self, user: UserId) -> Result<Option<String>, StoreError> {
        let row = sqlx::query_scalar!("select password_hash from users where id = $1", user.uuid())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.flatten())
    }

    /// Replaces a person's password where the old one is still in force; reset tokens end with it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_password(
        &self,
        user: UserId,
        old: Option<&str>,
        new: &str,
        mail: Option<&NewMail<'_>>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let done = sqlx::query!(
            "update users set password_hash = $3, updated_at = now() \
             where id = $1 and status = 'active' and password_hash is not distinct from $2",
            user.uuid(),
            old,
            new
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        end_resets(&mut tx, user.uuid()).await?;
        if let Some(mail) = mail {
            post(&mut tx, mail).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Stores a reset token of an active person, with the mail that carries it. At most `most` of a person are in force;
    /// false, and nothing stored, where there are as many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_reset(
        &self,
        user: UserId,
        token: NewToken<'_>,
        mail: Option<&NewMail<'_>>,
        most: i64,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let person =
            sqlx::query!("select id from users where id = $1 and status = 'active' for update", user.uuid())
                .fetch_optional(&mut *tx)
                .await?;
        if person.is_none() {
            return Ok(false);
        }
        let waiting = sqlx::query_scalar!(
            r#"select count(*) as "count!" from user_tokens
            where user_id = $1 and purpose = 'reset' and expires_at > now()"#,
            user.uuid()
        )
        .fetch_one(&mut *tx)
        .await?;
        if waiting >= most {
            return Ok(false);
        }
        insert_token(&mut tx, user, "reset", token).await?;
        if let Some(mail) = mail {
            post(&mut tx, mail).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Whose reset token this is, with their address and name; nothing where it is unknown, used or expired, or where the
    /// account is not active.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reset_owner(
        &self,
        token_hash: &str,
    ) -> Result<Option<(UserId, String, String)>, StoreError> {
        let row = sqlx::query!(
            "select users.id, users.email, users.name from user_tokens join users on users.id = user_tokens.user_id \
             where token_hash = $1 and purpose = 'reset' and expires_at > now() and users.status = 'active'",
            token_hash
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| (UserId::from_uuid(row.id), row.email, row.name)))
    }

    /// Uses a reset token up: the password is replaced, and every token signed until now is refused. False where the token
    /// is not in force.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reset_password(
        &self,
        token_hash: &str,
        password_hash: &str,
        mail: Option<&NewMail<'_>>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Some((user, _)) = use_token(&mut tx, token_hash, "reset").await? else { return Ok(false) };
        if !replace_password(&mut tx, user, password_hash).await? {
            return Ok(false);
        }
        if let Some(mail) = mail {
            post(&mut tx, mail).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Replaces the password of an active account; every token signed until now is refused. False where it is not active.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn replace_password(&self, user: UserId, password_hash: &str) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let done = replace_password(&mut tx, user.uuid(), password_hash).await?;
        tx.commit().await?;
        Ok(done)
    }
}

async fn replace_password(
    connection: &mut PgConnection,
    user: Uuid,
    password_hash: &str,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "update users set password_hash = $2, updated_at = now(), sessions_from = date_trunc('second', now()) \
         where id = $1 and status = 'active'",
        user,
        password_hash
    )
    .execute(&mut *connection)
    .await?;
    end_resets(connection, user).await?;
    Ok(done.rows_affected() > 0)
}

async fn end_resets(connection: &mut PgConnection, user: Uuid) -> Result<(), StoreError> {
    sqlx::query!("delete from user_tokens where user_id = $1 and purpose = 'reset'", user)
        .execute(connection)
        .await?;
    Ok(())
}
