//! The rows of a large deployment, generated in the database.
//!
//! Foreign keys are not checked meanwhile, and the large tables get their indexes back when they are full.

use std::time::Duration;

use anyhow::Context;
use sqlx::PgConnection;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use uuid::Uuid;

use super::Sizes;
use super::indexes::Removed;

/// What is generated, in steps.
const STEPS: &str = include_str!("data.sql");
/// For the loading only, which has a connection of its own.
const SETTINGS: &str =
    "set session_replication_role = replica; set maintenance_work_mem = '512MB'; select setseed(0.5)";

/// Accounts and the team of this run, which the platform itself has made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    /// A team, which gets a tenth of all capsules and audit entries.
    pub(super) team: Uuid,
    /// Its owner, who administers the platform.
    pub(super) admin: Uuid,
    /// Somebody who becomes a member of it.
    pub(super) member: Uuid,
}

/// Fills the database and tells what with, and how long each step took.
pub(super) async fn generate(connection: &mut PgConnection, sizes: &Sizes, own: Own) -> anyhow::Result<()> {
    sqlx::raw_sql(SETTINGS).execute(&mut *connection).await?;
    for (name, value) in settings(sizes, own) {
        sqlx::query("select set_config('bench.' || $1, $2, false)")
            .bind(name)
            .bind(value)
            .execute(&mut *connection)
            .await?;
    }
    let begun = Instant::now();
    let removed = Removed::from(connection).await?;
    let mut steps = STEPS.split("\n\n");
    let numbers = steps.next().context("data.sql is empty")?;
    sqlx::raw_sql(numbers).execute(&mut *connection).await?;
    for step in steps {
        let (what, sql) = step.split_once('\n').context("a step of data.sql has one line")?;
        let begun = Instant::now();
        let made = sqlx::raw_sql(sql).execute(&mut *connection).await?.rows_affected();
        tell(made, what.trim_start_matches("-- "), begun.elapsed());
    }
    let (indexes, restored) = (removed.len(), Instant::now());
    removed.restore(connection).await?;
    tell(
        indexes,
        "indexes of capsules and audit entries, removed for the loading and made again",
        restored.elapsed(),
    );
    let analyzed = Instant::now();
    sqlx::raw_sql("vacuum analyze").execute(&mut *connection).await?;
    sqlx::raw_sql("checkpoint").execute(&mut *connection).await?;
    // The server leaves its files to the page cache, which would be written while reads are measured.
    spawn_blocking(rustix::fs::sync).await?;
    eprintln!("  vacuum, analyze, checkpoint and sync ({:.1} s)", analyzed.elapsed().as_secs_f64());
    let size: String = sqlx::query_scalar("select pg_size_pretty(pg_database_size(current_database()))")
        .fetch_one(connection)
        .await?;
    eprintln!("  {size} in all ({:.0} s)", begun.elapsed().as_secs_f64());
    Ok(())
}

fn settings(sizes: &Sizes, own: Own) -> [(&'static str, String); 8] {
    [
        ("users", sizes.users.to_string()),
        ("teams", sizes.teams.to_string()),
        ("api_keys", sizes.api_keys.to_string()),
        ("capsules", sizes.capsules.to_string()),
        ("audit_rows", sizes.audit_rows.to_string()),
        ("team", own.team.to_string()),
        ("admin", own.admin.to_string()),
        ("member", own.member.to_string()),
    ]
}

fn tell(count: impl std::fmt::Display, what: &str, took: Duration) {
    eprintln!("  {count} {what} ({:.1} s)", took.as_secs_f64());
}
