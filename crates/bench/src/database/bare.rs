//! A query with nothing around it: prepared, on one connection, the values of its rows read.

use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::value::RawValue;
use sqlx::postgres::{PgArguments, PgColumn, PgRow, Postgres};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Column, PgConnection, Row, TypeInfo};
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

/// What a column of a row holds.
#[derive(Debug)]
#[expect(dead_code, reason = "whoever asks a database wants values, whatever they then do with them")]
pub(super) enum Value {
    Id(Option<Uuid>),
    Text(Option<String>),
    Number(Option<i64>),
    Flag(Option<bool>),
    Time(Option<OffsetDateTime>),
    Json(Option<Json<Box<RawValue>>>),
}

fn value(row: &PgRow, column: &PgColumn) -> anyhow::Result<Value> {
    let at = column.ordinal();
    Ok(match column.type_info().name() {
        "UUID" => Value::Id(row.try_get(at)?),
        "TEXT" => Value::Text(row.try_get(at)?),
        "INT8" => Value::Number(row.try_get(at)?),
        "BOOL" => Value::Flag(row.try_get(at)?),
        "TIMESTAMPTZ" => Value::Time(row.try_get(at)?),
        "JSONB" => Value::Json(row.try_get(at)?),
        other => bail!("no bare query has read a column of the type {other} so far"),
    })
}

/// The connection, which clones share.
#[derive(Debug, Clone)]
pub(super) struct Bare(Arc<Mutex<PgConnection>>);

impl Bare {
    /// Queries on this connection.
    pub(super) fn new(connection: PgConnection) -> Self {
        Self(Arc::new(Mutex::new(connection)))
    }

    /// All rows.
    pub(super) async fn fetch(&self, query: &Query) -> anyhow::Result<Vec<PgRow>> {
        let mut connection = self.0.lock().await;
        Ok(query.with_binds(sqlx::query(query.sql)).fetch_all(&mut *connection).await?)
    }

    /// All values of several queries, one after the other.
    pub(super) async fn read_all(&self, queries: &[Query]) -> anyhow::Result<Vec<Value>> {
        let mut values = Vec::new();
        for query in queries {
            for row in self.fetch(query).await? {
                values.extend(
                    row.columns().iter().map(|of| value(&row, of)).collect::<anyhow::Result<Vec<_>>>()?,
                );
            }
        }
        Ok(values)
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
