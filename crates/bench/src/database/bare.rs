//! A query with nothing around it: prepared, on one connection, its rows fetched.

use anyhow::Context;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use time::OffsetDateTime;
use tokio::sync::Mutex;
use uuid::Uuid;

/// A parameter.
#[derive(Debug, Clone)]
pub(super) enum Bind {
    /// An id.
    Id(Uuid),
    /// A word.
    Text(String),
    /// A number of rows.
    Count(i64),
    /// A time.
    Time(OffsetDateTime),
}

/// A text and its parameters.
#[derive(Debug, Clone)]
pub(super) struct Query {
    sql: &'static str,
    binds: Vec<Bind>,
}

impl Query {
    /// The query of this text with these parameters.
    pub(super) fn new(sql: &'static str, binds: impl Into<Vec<Bind>>) -> Self {
        Self { sql, binds: binds.into() }
    }

    fn with_binds<'q>(
        &'q self,
        mut query: sqlx::query::Query<'q, Postgres, PgArguments>,
    ) -> sqlx::query::Query<'q, Postgres, PgArguments> {
        for bind in &self.binds {
            query = match bind {
                Bind::Id(id) => query.bind(id),
                Bind::Text(text) => query.bind(text),
                Bind::Count(count) => query.bind(count),
                Bind::Time(time) => query.bind(time),
            };
        }
        query
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Bare(Mutex<PgConnection>);

impl Bare {
    /// Queries on this connection.
    pub(super) fn new(connection: PgConnection) -> Self {
        Self(Mutex::new(connection))
    }

    /// All rows.
    pub(super) async fn fetch(&self, query: &Query) -> anyhow::Result<Vec<PgRow>> {
        let mut connection = self.0.lock().await;
        Ok(query.with_binds(sqlx::query(query.sql)).fetch_all(&mut *connection).await?)
    }

    /// All rows of several queries, one after the other.
    pub(super) async fn fetch_all(&self, queries: &[Query]) -> anyhow::Result<()> {
        for query in queries {
            self.fetch(query).await?;
        }
        Ok(())
    }

    /// The ids of all rows, which are in the first column.
    pub(super) async fn ids(&self, query: &Query) -> anyhow::Result<Vec<Uuid>> {
        let rows = self.fetch(query).await?;
        rows.iter()
            .map(|row| row.try_get(0).context("a query begins with something else than an id"))
            .collect()
    }

    /// How it is done, with times and buffers.
    pub(super) async fn explain(&self, query: &Query) -> anyhow::Result<String> {
        let mut connection = self.0.lock().await;
        let explain = sqlx::query(AssertSqlSafe(format!("explain (analyze, buffers) {}", query.sql)));
        let rows = query.with_binds(explain).fetch_all(&mut *connection).await?;
        let lines: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
        Ok(lines?.join("\n"))
    }
}
