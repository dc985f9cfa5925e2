//! List and search pages over the database of a large deployment, against the bare queries for the same rows.
//!
//! Everything is in this process and its children: a PostgreSQL server, a control plane, one kept connection to either.
//! The control plane has threads of its own, as it has in a process of its own, and a bare query runs on these, too: there
//! a handler runs that does nothing else. Whoever asks the API has one other thread.

mod bare;
mod cluster;
mod data;
mod indexes;
mod pages;
mod plans;
mod platform;

use std::time::Duration;

use anyhow::ensure;
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use uuid::Uuid;
use wrenn_control::Store;
use wrenn_control::audit::Scope;
use wrenn_control::store::AuditFilter;
use wrenn_core::TeamId;

use self::bare::{Bare, Query};
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
    #[arg(long, default_value_t = 1000, value_parser = crate::repetitions)]
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
    let version: String = sqlx::query_scalar("show server_version").fetch_one(&mut loading).await?;
    eprintln!("  PostgreSQL {version}");
    let team = team_of(&mut loading, admin.uuid()).await?;
    let own = Own { team, admin: admin.uuid(), member: member.uuid() };
    data::generate(&mut loading, sizes, own).await?;
    drop(loading);
    let sides = Sides::new(&cluster, own, sizes.reads).await?;
    let pages = pages::all(&sides.bare, own).await?;
    let mut lines = Vec::new();
    for page in &pages {
        lines.push(sides.measure(page).await?);
    }
    lines.extend(sides.shares(&cluster, own.team).await?);
    sides.platform.close().await?;
    if sizes.explain {
        plans::print(&cluster, &pages, own).await?;
    }
    Ok(lines)
}

/// The team that a person owns.
async fn team_of(connection: &mut PgConnection, owner: Uuid) -> anyhow::Result<Uuid> {
    let sql = "select team_id from team_members where user_id = $1 and role = 'owner'";
    Ok(sqlx::query_scalar(sql).bind(owner).fetch_one(connection).await?)
}

/// What is held against each other.
#[derive(Debug)]
struct Sides {
    platform: Platform,
    client: Client,
    bare: Bare,
    reads: usize,
}

impl Sides {
    async fn new(cluster: &Cluster, own: Own, reads: usize) -> anyhow::Result<Self> {
        let platform = Platform::start(cluster.url()).await?;
        let client = platform.client(own).await?;
        let url = cluster.url();
        let connecting = async move { Ok(Bare::new(PgConnection::connect(&url).await?)) };
        let bare = platform.on_its_threads(connecting).await?;
        Ok(Self { platform, client, bare, reads })
    }

    async fn ask(&self, who: Who, path: &str) -> anyhow::Result<Duration> {
        timed(self.client.get(who, path)).await
    }

    async fn query(&self, queries: &[Query]) -> anyhow::Result<Duration> {
        let (bare, queries) = (self.bare.clone(), queries.to_vec());
        self.platform.on_its_threads(async move { timed(bare.read_all(&queries)).await }).await
    }

    async fn measure(&self, page: &Page) -> anyhow::Result<Line> {
        let rows = check(&self.client, &self.bare, page).await?;
        let name = format!("{}, {rows} rows: API / query", page.name);
        let api = async || self.ask(page.who, &page.path).await;
        self.line(name, GOAL, api, async || self.query(&page.bare).await).await
    }

    /// Where the time of a short page goes: the first one again, without its HTTP, and an answer that asks no database.
    async fn shares(&self, cluster: &Cluster, team: Uuid) -> anyhow::Result<[Line; 2]> {
        let url = cluster.url();
        let connecting = async move { Ok(Store::connect(&url).await?) };
        let store = self.platform.on_its_threads(connecting).await?;
        let newest = [pages::newest_entries(team)];
        let alone = async || {
            let store = store.clone();
            self.platform.on_its_threads(async move { timed(read_log(&store, team)).await }).await
        };
        let name = "  audit log, newest: store / query".to_owned();
        let by_store = self.line(name, Goal::Shown, alone, async || self.query(&newest).await).await?;
        let health = async || self.ask(Who::Admin, "/health").await;
        let name = "  an answer without a query / audit log, newest".to_owned();
        let without = self.line(name, Goal::Shown, health, async || self.query(&newest).await).await?;
        store.close().await;
        Ok([by_store, without])
    }

    async fn line(
        &self,
        name: String,
        goal: Goal,
        this: impl AsyncFn() -> anyhow::Result<Duration>,
        bare: impl AsyncFn() -> anyhow::Result<Duration>,
    ) -> anyhow::Result<Line> {
        pairs::run(WARM_UP, &this, &bare).await?;
        let (these, bares) = pairs::run(self.reads, &this, &bare).await?;
        Ok(Line { name, unit: "ms", this: these.summary(), bare: bares.summary(), goal })
    }
}

/// The newest entries of a team's log, as a handler reads them.
async fn read_log(store: &Store, team: Uuid) -> anyhow::Result<()> {
    let filter = AuditFilter {
        team: TeamId::from_uuid(team),
        scope: Scope::Admin,
        resources: &[],
        actions: &[],
        before: None,
        limit: pages::ENTRIES,
    };
    store.audit_log(&filter).await?;
    Ok(())
}

async fn timed<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    work.await?;
    Ok(begun.elapsed())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_sides_of_every_page_read_the_same_rows_of_a_small_database() {
        let sizes = Sizes {
            capsules: 1000,
            users: 1000,
            teams: 100,
            audit_rows: 5000,
            api_keys: 100,
            reads: 1,
            explain: true,
        };
        let lines = run(&sizes).await.unwrap();
        assert!(lines.iter().all(|line| line.this.p50 > 0.0 && line.bare.p50 > 0.0));
        assert_eq!(lines.iter().filter(|line| matches!(line.goal, Goal::AtMost(_))).count(), 16);
    }
}
