//! List and search pages over the database of a large deployment, against the bare queries for the same rows.
//!
//! Everything is in this process and its children: a PostgreSQL server, a control plane, one kept connection to either.

mod bare;
mod cluster;
mod data;
mod indexes;
mod pages;
mod plans;
mod platform;

use std::time::Duration;

use anyhow::ensure;
use sqlx::PgConnection;
use tokio::time::Instant;
use uuid::Uuid;
use wrenn_control::Store;
use wrenn_control::audit::Scope;
use wrenn_control::store::AuditFilter;
use wrenn_core::TeamId;

use self::bare::Bare;
use self::cluster::Cluster;
use self::data::Own;
use self::pages::Page;
use self::platform::{Client, Platform, Who, ids};
use crate::pairs;
use crate::report::{Goal, Line};

/// Reads of each page that are not counted: PostgreSQL settles in them for the plan of a prepared statement.
const WARM_UP: usize = 20;
const GOAL: Goal = Goal::AtMost(3.0);

/// How large the database is, and how often it is read.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Sizes {
    /// Capsules in the database, a fiftieth of them live
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(i32).range(1000..))]
    pub(crate) capsules: i32,
    /// People in the database
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(i32).range(1000..))]
    pub(crate) users: i32,
    /// Teams in the database, at most as many as people
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(i32).range(100..))]
    pub(crate) teams: i32,
    /// Audit entries in the database
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(i32).range(1000..))]
    pub(crate) audit_rows: i32,
    /// API keys in the database
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(i32).range(100..))]
    pub(crate) api_keys: i32,
    /// Reads of each page
    #[arg(long, default_value_t = 300, value_parser = crate::repetitions)]
    pub(crate) reads: usize,
    /// Print how PostgreSQL finds the rows of each page
    #[arg(long)]
    pub(crate) explain: bool,
}

/// Makes the database and measures the pages.
pub(crate) async fn run(sizes: &Sizes) -> anyhow::Result<Vec<Line>> {
    ensure!(sizes.users >= sizes.teams, "there must be as many --users as --teams: each team has an owner");
    let cluster = Cluster::start().await?;
    let store = Store::connect(&cluster.url()).await?;
    store.migrate().await?;
    let (admin, member) = platform::people(&store).await?;
    store.close().await;
    let mut loading = cluster.connect().await?;
    let team = team_of(&mut loading, admin.uuid()).await?;
    let own = Own { team, admin: admin.uuid(), member: member.uuid() };
    data::generate(&mut loading, sizes, own).await?;
    drop(loading);
    let platform = Platform::start(cluster.url()).await?;
    let client = platform.client(own).await?;
    let bare = Bare::new(cluster.connect().await?);
    let pages = pages::all(&bare, own).await?;
    let mut lines = Vec::new();
    for page in &pages {
        lines.push(measure(&client, &bare, page, sizes.reads).await?);
    }
    lines.extend(shares(&cluster, &client, &bare, own, sizes.reads).await?);
    platform.close().await?;
    if sizes.explain {
        plans::print(&cluster, &bare, &pages, own).await?;
    }
    Ok(lines)
}

/// The team that a person owns.
async fn team_of(connection: &mut PgConnection, owner: Uuid) -> anyhow::Result<Uuid> {
    let sql = "select team_id from team_members where user_id = $1 and role = 'owner'";
    Ok(sqlx::query_scalar(sql).bind(owner).fetch_one(connection).await?)
}

async fn measure(client: &Client, bare: &Bare, page: &Page, reads: usize) -> anyhow::Result<Line> {
    let rows = check(client, bare, page).await?;
    let api = async || timed(client.get(page.who, &page.path)).await;
    let query = async || timed(bare.fetch_all(&page.bare)).await;
    let name = format!("{}, {rows} rows: API / query", page.name);
    line(name, GOAL, reads, api, query).await
}

/// Where the time of a short page goes: the first one again, without its HTTP, and an answer that asks no database.
async fn shares(
    cluster: &Cluster,
    client: &Client,
    bare: &Bare,
    own: Own,
    reads: usize,
) -> anyhow::Result<[Line; 2]> {
    let store = Store::connect(&cluster.url()).await?;
    let team = TeamId::from_uuid(own.team);
    let (resources, actions) = (&[], &[]);
    let filter =
        AuditFilter { team, scope: Scope::Admin, resources, actions, before: None, limit: pages::ENTRIES };
    let newest = [pages::newest_entries(own.team)];
    let alone = async || timed(async { Ok(store.audit_log(&filter).await?) }).await;
    let health = async || timed(client.get(Who::Admin, "/health")).await;
    let query = async || timed(bare.fetch_all(&newest)).await;
    let by_store =
        line("  audit log, newest: store / query".to_owned(), Goal::Shown, reads, alone, query).await?;
    let name = "  an answer without a query / audit log, newest".to_owned();
    let without = line(name, Goal::Shown, reads, health, query).await?;
    store.close().await;
    Ok([by_store, without])
}

async fn timed<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    work.await?;
    Ok(begun.elapsed())
}

async fn line(
    name: String,
    goal: Goal,
    reads: usize,
    this: impl AsyncFn() -> anyhow::Result<Duration>,
    bare: impl AsyncFn() -> anyhow::Result<Duration>,
) -> anyhow::Result<Line> {
    pairs::run(WARM_UP, &this, &bare).await?;
    let (these, bares) = pairs::run(reads, &this, &bare).await?;
    Ok(Line { name, unit: "ms", this: these.summary(), bare: bares.summary(), goal })
}

/// Both sides must read the same rows; how many these are.
async fn check(client: &Client, bare: &Bare, page: &Page) -> anyhow::Result<usize> {
    let answer = client.get(page.who, &page.path).await?;
    let mut told = ids(&answer, page.list, page.id)?;
    let mut read = bare.ids(&page.bare[0]).await?;
    told.sort_unstable();
    read.sort_unstable();
    ensure!(told == read, "{}: the page and the query have other rows", page.name);
    Ok(told.len())
}
