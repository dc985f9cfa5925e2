//! Accounts: signing up, activation, signing in.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_core::{TeamId, UserId};

use super::mails::{NewMail, post};
use super::teams::{NewTeam, insert_team};
use super::{Store, StoreError, UserStatus};

/// Key of the lock under which accounts become active, so that one of them is the first.
const FIRST_USER_LOCK: i64 = 0x7772_656e_6e02;

/// An account about to be made.
#[derive(Debug)]
pub struct NewUser<'a> {
    /// Its id.
    pub id: UserId,
    /// Normalised.
    pub email: &'a str,
    /// Trimmed.
    pub name: &'a str,
    /// A PHC string; `None` for those who sign in with a provider.
    pub password_hash: Option<&'a str>,
}

/// A token about to be mailed.
#[derive(Debug, Clone, Copy)]
pub struct NewToken<'a> {
    /// Hex SHA-256 of the token.
    pub hash: &'a str,
    /// When it ends.
    pub expires_at: OffsetDateTime,
}

/// How signing up went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignUp {
    /// The account waits for its activation.
    Done,
    /// The address has an account.
    Taken,
    /// The address was signed up a moment ago.
    Cooldown,
}

/// How an activation went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The account is active.
    Done(UserId),
    /// The token is unknown, used or expired.
    Unknown,
    /// The account was activated in another way, or is locked.
    NotInactive,
}

/// What is needed to check a password.
#[derive(Debug, Clone)]
pub struct Login {
    /// The account.
    pub id: UserId,
    /// What its person is called.
    pub name: String,
    /// Where it is in its life.
    pub status: UserStatus,
    /// A PHC string.
    pub password_hash: Option<String>,
}

/// Stores an account; false where the address is another's.
pub(super) async fn insert_user(
    connection: &mut PgConnection,
    new: &NewUser<'_>,
    status: UserStatus,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "insert into users (id, email, name, password_hash, status) values ($1, $2, $3, $4, $5) on conflict do nothing",
        new.id.uuid(),
        new.email,
        new.name,
        new.password_hash,
        status.as_str()
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Waits until nobody else makes an account active, until the end of the transaction.
pub(super) async fn first_user_turn(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("select pg_advisory_xact_lock($1)", FIRST_USER_LOCK).fetch_one(connection).await?;
    Ok(())
}

/// Makes an account active. The first one of a deployment administers it.
pub(super) async fn make_active(connection: &mut PgConnection, user: Uuid) -> Result<(), StoreError> {
    first_user_turn(connection).await?;
    sqlx::query!(
        "update users set status = 'active', updated_at = now(), is_admin = is_admin or not exists ( \
            select from users other where other.id <> $1 and (other.is_admin or other.status = 'active')) \
         where id = $1",
        user
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("delete from user_tokens where user_id = $1 and purpose = 'activation'", user)
        .execute(connection)
        .await?;
    Ok(())
}

/// Keeps an account as it is until the end of the transaction; false where it is not active.
pub(super) async fn hold_active(connection: &mut PgConnection, user: UserId) -> Result<bool, StoreError> {
    let found =
        sqlx::query!("select id from users where id = $1 and status = 'active' for share", user.uuid())
            .fetch_optional(connection)
            .await?;
    Ok(found.is_some())
}

/// The person whose token this is, whom nobody else changes until the end of the transaction, and the token used up.
pub(super) async fn use_token(
    connection: &mut PgConnection,
    hash: &str,
    purpose: &str,
) -> Result<Option<(Uuid, UserStatus)>, StoreError> {
    // First the person, then the token: the order of all who lock both.
    let row = sqlx::query!(
        "select id, status from users where id = (select user_id from user_tokens where token_hash = $1) for update",
        hash
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let used = sqlx::query!(
        "delete from user_tokens where token_hash = $1 and purpose = $2 and expires_at > now() and user_id = $3",
        hash,
        purpose,
        row.id
    )
    .execute(connection)
    .await?;
    if used.rows_affected() == 0 { Ok(None) } else { Ok(Some((row.id, UserStatus::parse(&row.status)?))) }
}

pub(super) async fn insert_token(
    connection: &mut PgConnection,
    user: UserId,
    purpose: &str,
    token: NewToken<'_>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into user_tokens (token_hash, user_id, purpose, expires_at) values ($1, $2, $3, $4)",
        token.hash,
        user.uuid(),
        purpose,
        token.expires_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes an account that was never activated; true where there was one.
pub(super) async fn replace_inactive(connection: &mut PgConnection, email: &str) -> Result<bool, StoreError> {
    let done = sqlx::query!("delete from users where email = $1 and status = 'inactive'", email)
        .execute(connection)
        .await?;
    Ok(done.rows_affected() > 0)
}

impl Store {
    /// Stores an account that waits for its activation, with its token and the mail that carries it. An older one of the
    /// same address that was not activated within `cooldown` seconds makes room.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sign_up(
        &self,
        new: &NewUser<'_>,
        token: NewToken<'_>,
        mail: Option<&NewMail<'_>>,
        cooldown: f64,
    ) -> Result<SignUp, StoreError> {
        let mut tx = self.pool.begin().await?;
        let old = sqlx::query!(
            r#"select status, created_at > now() - make_interval(secs => $2) as "fresh!" from users
            where email = $1 and status <> 'deleted' for update"#,
            new.email,
            cooldown
        )
        .fetch_optional(&mut *tx)
        .await?;
        match old {
            Some(old) if UserStatus::parse(&old.status)? != UserStatus::Inactive => return Ok(SignUp::Taken),
            Some(old) if old.fresh => return Ok(SignUp::Cooldown),
            Some(_) => _ = replace_inactive(&mut tx, new.email).await?,
            None => {}
        }
        if !insert_user(&mut tx, new, UserStatus::Inactive).await? {
            // Somebody was faster by a moment.
            return Ok(SignUp::Cooldown);
        }
        insert_token(&mut tx, new.id, "activation", token).await?;
        if let Some(mail) = mail {
            post(&mut tx, mail).await?;
        }
        tx.commit().await?;
        Ok(SignUp::Done)
    }

    /// Uses an activation token up.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn activate(&self, token_hash: &str) -> Result<Activation, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Some((user, status)) = use_token(&mut tx, token_hash, "activation").await? else {
            return Ok(Activation::Unknown);
        };
        if status != UserStatus::Inactive {
            return Ok(Activation::NotInactive);
        }
        make_active(&mut tx, user).await?;
        tx.commit().await?;
        Ok(Activation::Done(UserId::from_uuid(user)))
    }

    /// Makes an active account with a team at once, as the machine's operator may. `local_team` gets an owner where it has
    /// none. False where the address is taken.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_active_user(
        &self,
        new: &NewUser<'_>,
        admin: bool,
        team: &NewTeam<'_>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        replace_inactive(&mut tx, new.email).await?;
        if !insert_user(&mut tx, new, UserStatus::Inactive).await? {
            return Ok(false);
        }
        make_active(&mut tx, new.id.uuid()).await?;
        if admin {
            sqlx::query!("update users set is_admin = true where id = $1", new.id.uuid())
                .execute(&mut *tx)
                .await?;
        }
        let adopted = sqlx::query!(
            "insert into team_members (team_id, user_id, role, is_default) \
             select local_team, $1, 'owner', true from deployment join teams on teams.id = local_team \
             where $2 and deleted_at is null and not exists (select from team_members where team_id = local_team)",
            new.id.uuid(),
            admin
        )
        .execute(&mut *tx)
        .await?;
        if adopted.rows_affected() == 0 {
            insert_team(&mut tx, team, new.id, true).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// What is needed to check the password of this address; nothing where it has no account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn login(&self, email: &str) -> Result<Option<Login>, StoreError> {
        let row = sqlx::query!(
            "select id, name, status, password_hash from users where email = $1 and status <> 'deleted'",
            email
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(Login {
                id: UserId::from_uuid(row.id),
                name: row.name,
                status: UserStatus::parse(&row.status)?,
                password_hash: row.password_hash,
            })
        })
        .transpose()
    }

    /// The team in which a sign-in begins: the default one, else the one joined first, else `fallback`, which is made.
    /// Nothing where the account is not active (any more).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn home_team(
        &self,
        user: UserId,
        fallback: &NewTeam<'_>,
    ) -> Result<Option<TeamId>, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Two sign-ins at once must not make two teams, and who has left in between needs none.
        let person =
            sqlx::query!("select id from users where id = $1 and status = 'active' for update", user.uuid())
                .fetch_optional(&mut *tx)
                .await?;
        if person.is_none() {
            return Ok(None);
        }
        let found = sqlx::query_scalar!(
            "select members.team_id from team_members members join teams on teams.id = members.team_id \
             where members.user_id = $1 and teams.deleted_at is null \
             order by members.is_default desc, members.joined_at, members.team_id limit 1",
            user.uuid()
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(team) = found {
            return Ok(Some(TeamId::from_uuid(team)));
        }
        insert_team(&mut tx, fallback, user, true).await?;
        tx.commit().await?;
        Ok(Some(fallback.id))
    }

    /// Forgets accounts that were signed up long ago and never activated; how many there were.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sweep_inactive(&self, days: i32) -> Result<u64, StoreError> {
        let done = sqlx::query!(
            "delete from users where status = 'inactive' and created_at < now() - make_interval(days => $1)",
            days
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    /// Forgets tokens that have ended; how many there were.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sweep_tokens(&self) -> Result<u64, StoreError> {
        let done =
            sqlx::query!("delete from user_tokens where expires_at < now()").execute(&self.pool).await?;
        Ok(done.rows_affected())
    }
}
