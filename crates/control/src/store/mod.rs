//! Everything that speaks SQL.
//!
//! What is stored: people, teams, keys (hashed), hosts, templates, capsules, the audit log and letters on their way. What is
//! not: anything a host can tell again, such as live figures. A capsule's status changes only through [`Store::advance`] and its kin, which compare and set:
//! the answer says whether the row was in one of the states the caller expected.
//!
//! A lost database is a designed state: a query then fails with [`StoreError::Unavailable`], requests answer 503, and
//! the pool connects again by itself.

mod accounts;
mod admin;
mod audit;
mod capsules;
mod hosts;
mod identities;
mod kept;
mod keys;
mod mails;
mod members;
mod moves;
mod outcomes;
mod passwords;
mod people;
mod placing;
mod snapshots;
mod teams;
mod templates;

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgPool};

use self::kept::Kept;

pub use accounts::{Activation, Login, NewToken, NewUser, SignUp};
pub use admin::{TeamFigures, UserChange, UserFigures};
pub use audit::{AuditFilter, AuditRow};
pub use capsules::CapsuleRow;
pub use hosts::{HostKind, HostLoad, HostRow, HostStatus, Registration};
pub use identities::{FirstSignIn, Link, Unlink};
pub use keys::{KeyOwner, KeyRow, NewKey};
pub(crate) use mails::mail_place;
pub use mails::{DueMail, NewMail};
pub use members::{Joining, MemberChange, MemberRow};
pub use moves::{Advance, HostCapsule, TakeOver};
pub use people::{FoundUser, Profile, Role, Session, UserStatus};
pub use placing::{NewCapsule, NewForks};
pub use snapshots::{Begun, Made, NewSnapshot, UNFINISHED};
pub use teams::{NewTeam, TeamDeletion, TeamRow};
pub use templates::{TemplateInfo, TemplateRow};

/// Longest wait for a connection, and so the longest a request hangs on a lost database.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest a statement may take, in the form that PostgreSQL reads. One that waits for a lock for longer has failed.
const STATEMENT_TIMEOUT: &str = "10s";
/// Longest wait for the answer to a query that every request makes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);
/// A pooled connection that was idle for longer is checked before use: the server may have gone meanwhile.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
const MAX_CONNECTIONS: u32 = 16;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached or takes no queries.
    #[error("the database cannot be reached; check that PostgreSQL runs and that DATABASE_URL is right")]
    Unavailable(#[source] sqlx::Error),
    /// The database has not answered in time.
    #[error("the database does not answer; check that PostgreSQL runs and what it waits for")]
    Silent,
    /// `DATABASE_URL` cannot be read.
    #[error("DATABASE_URL is not a PostgreSQL URL")]
    Url(#[source] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A row holds what the schema should have kept out.
    #[error("the database holds an unreadable {0}")]
    Corrupt(&'static str),
    /// The database refused a query.
    #[error("the database refused a query")]
    Query(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if is_outage(&error) { Self::Unavailable(error) } else { Self::Query(error) }
    }
}

/// Whether the failure says that the server is away rather than that the query is wrong.
fn is_outage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        // Classes: 08 connection, 28 credentials, 53 resources, 57 shutdown, start-up and statements that took too long;
        // 25006 read-only, 3D000 database gone, 55000 one that takes no connections, 55P03 a lock not to be had, 40001 and
        // 40P01 transactions in each other's way.
        sqlx::Error::Database(refused) => refused.code().is_some_and(|code| {
            ["08", "28", "53", "57"].iter().any(|class| code.starts_with(class))
                || ["25006", "3D000", "55000", "55P03", "40001", "40P01"].contains(&&*code)
        }),
        _ => false,
    }
}

/// A handle on the database; clones share one pool.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    kept: Kept,
}

impl Store {
    /// Connects, so that a wrong URL is noticed at once.
    ///
    /// # Errors
    /// [`StoreError::Url`] or [`StoreError::Unavailable`].
    pub async fn connect(database_url: &str) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(database_url)
            .map_err(StoreError::Url)?
            .application_name("wrenn")
            .options([("statement_timeout", STATEMENT_TIMEOUT)]);
        let pool = PgPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for > TRUSTED_IDLE {
                        return Ok(connection.ping().await.is_ok());
                    }
                    Ok(true)
                })
            })
            .connect_with(options)
            .await?;
        Ok(Self { kept: Kept::new(pool.clone()), pool })
    }

    /// Brings the schema up to date; replicas that start together take turns.
    ///
    /// # Errors
    /// [`StoreError::Migrate`].
    pub async fn migrate(&self) -> Result<(), StoreError> {
        // A change of a large table takes its time. The connection is not put back, so that no request inherits that.
        let mut connection = self.pool.acquire().await?.detach();
        sqlx::query("set statement_timeout = 0").execute(&mut connection).await?;
        Ok(MIGRATIONS.run_direct(None, &mut connection, false).await?)
    }

    /// What a query answers, unless the database keeps silent for longer than a request should hang.
    pub(crate) async fn within<T>(
        &self,
        query: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        tokio::time::timeout(ANSWER_TIMEOUT, query).await.unwrap_or(Err(StoreError::Silent))
    }

    /// Closes all connections, waiting for running queries.
    pub async fn close(&self) {
        let closing = self.pool.close();
        self.kept.clear();
        closing.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_server_is_told_from_a_wrong_query() {
        assert!(is_outage(&sqlx::Error::PoolTimedOut));
        assert!(is_outage(&sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into())));
        assert!(!is_outage(&sqlx::Error::RowNotFound));
    }
}
