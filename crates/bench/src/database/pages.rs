//! The pages, and the bare queries for the same rows.
//!
//! A bare query is what one would write knowing the index: it names the rows and their order, and nothing else. Where the
//! page tells how many rows there are in all, the bare side counts them, too. It does not read the figures that the page
//! has beside each row, and it reads the last page of a list from the list's other end, without what is before it.

use anyhow::Context;
use sqlx::Row;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;
use wrenn_core::{AuditId, TeamId};

use super::bare::{Bare, Bind, Query};
use super::data::Own;
use super::platform::Who;

/// Rows of a page of an audit log.
pub(super) const ENTRIES: i64 = 50;
/// Rows of a page of the administrators' lists.
const LISTED: i64 = 100;
/// Most people that a search finds.
const FOUND: i64 = 10;
/// How the addresses of a fiftieth of all people begin.
const PREFIX: &str = "anna@";

/// A page, and what it is held against.
#[derive(Debug)]
pub(super) struct Page {
    /// What it is.
    pub(super) name: String,
    /// Who asks for it.
    pub(super) who: Who,
    /// Where it is.
    pub(super) path: String,
    /// The field of the answer that holds the rows; the answer itself where there is none.
    pub(super) list: Option<&'static str>,
    /// The field of a row that holds its id.
    pub(super) id: &'static str,
    /// The queries for the same, the first of which gives the rows.
    pub(super) bare: Vec<Query>,
}

/// All pages.
pub(super) async fn all(bare: &Bare, own: Own) -> anyhow::Result<Vec<Page>> {
    let mut pages = audit(bare, own).await?;
    pages.push(people_by_address());
    for list in &LISTS {
        pages.extend(listed(bare, list).await?);
    }
    pages.extend(of_team(own));
    Ok(pages)
}

fn page(name: impl Into<String>, who: Who, path: impl Into<String>, bare: impl Into<Vec<Query>>) -> Page {
    Page { name: name.into(), who, path: path.into(), list: None, id: "id", bare: bare.into() }
}

/// The text of a query for entries of an audit log, with these conditions.
macro_rules! entries {
    ($conditions:literal) => {
        concat!(
            "select id, actor_type, actor_id, actor_name, resource_type, resource_id, action, scope, status, metadata, \
             created_at from audit_logs where team_id = $1",
            $conditions,
            " order by created_at desc, id desc limit $2"
        )
    };
}

async fn audit(bare: &Bare, own: Own) -> anyhow::Result<Vec<Page>> {
    let (time, id) = middle(bare, own.team).await?;
    let deep = format!("?before={}&before_id={}", time.format(&Rfc3339)?, AuditId::from_uuid(id));
    let log = |name: &str, who, query: &str, sql, more: Vec<Bind>| {
        let path = format!("/v1/audit-logs{query}");
        let binds = [vec![Bind::Id(own.team), Bind::Count(ENTRIES)], more].concat();
        page(format!("audit log, {name}"), who, path, [Query::new(sql, binds)])
    };
    let create = "?resource_type=sandbox&action=create";
    let rename = "?resource_type=team&action=rename";
    let cursor = vec![Bind::Time(time), Bind::Id(id)];
    let mut pages = vec![
        log("newest", Who::Admin, "", entries!(""), vec![]),
        log("from the middle", Who::Admin, &deep, entries!(" and (created_at, id) < ($3, $4)"), cursor),
        log(
            "one kind",
            Who::Admin,
            create,
            entries!(" and resource_type = 'sandbox' and action = 'create'"),
            vec![],
        ),
        log(
            "a rare kind",
            Who::Admin,
            rename,
            entries!(" and resource_type = 'team' and action = 'rename'"),
            vec![],
        ),
        log(
            "one resource, six kinds",
            Who::Admin,
            "?resource_type=sandbox",
            entries!(" and resource_type = 'sandbox'"),
            vec![],
        ),
        log("as a member", Who::Member, "", entries!(" and scope = 'team'"), vec![]),
    ];
    let of_platform = newest_entries(Uuid::nil());
    pages.push(page("audit log of the platform", Who::Admin, "/v1/admin/audit-logs", [of_platform]));
    for page in &mut pages {
        page.list = Some("items");
    }
    Ok(pages)
}

/// The newest entries of a team's log.
pub(super) fn newest_entries(team: Uuid) -> Query {
    Query::new(entries!(""), [Bind::Id(team), Bind::Count(ENTRIES)])
}

/// The place of the entry in the middle of a team's log.
async fn middle(bare: &Bare, team: Uuid) -> anyhow::Result<(OffsetDateTime, Uuid)> {
    let sql = "select id, created_at from audit_logs where team_id = $1 order by created_at desc, id desc \
        offset (select count(*) / 2 from audit_logs where team_id = $1) limit 1";
    let rows = bare.fetch(&Query::new(sql, [Bind::Id(team)])).await?;
    let row = rows.first().context("the team has no log")?;
    Ok((row.try_get(1)?, row.try_get(0)?))
}

fn people_by_address() -> Page {
    let search = Query::new(
        r#"select id, email from users where status = 'active' and email collate "C" >= $1 and email collate "C" < $2
        order by email collate "C" limit $3"#,
        [Bind::Text(PREFIX.to_owned()), Bind::Text(format!("{PREFIX}\u{10ffff}")), Bind::Count(FOUND)],
    );
    let path = format!("/v1/users/search?email={PREFIX}");
    let mut page = page("people by address", Who::Admin, path, [search]);
    page.id = "user_id";
    page
}

/// A list of the administrators.
struct List {
    name: &'static str,
    /// Its place, and the field of the answer that holds the rows.
    field: &'static str,
    /// Rows from its beginning.
    newest: &'static str,
    /// Rows from its end.
    oldest: &'static str,
    count: &'static str,
}

const LISTS: [List; 2] = [
    List {
        name: "all accounts",
        field: "users",
        newest: "select id, email, name, is_admin, status, created_at from users where status <> 'deleted' \
            order by created_at desc, id limit $1",
        oldest: "select id, email, name, is_admin, status, created_at from users where status <> 'deleted' \
            order by created_at, id desc limit $1",
        count: "select count(*) from users where status <> 'deleted'",
    },
    List {
        name: "all teams",
        field: "teams",
        newest: "select id, name, slug, is_byoc, created_at, deleted_at from teams \
            where id <> '00000000-0000-0000-0000-000000000000' \
            order by (deleted_at is not null), created_at desc, id limit $1",
        oldest: "select id, name, slug, is_byoc, created_at, deleted_at from teams \
            where id <> '00000000-0000-0000-0000-000000000000' \
            order by (deleted_at is not null) desc, created_at, id desc limit $1",
        count: "select count(*) from teams where id <> '00000000-0000-0000-0000-000000000000'",
    },
];

/// The first page of a list and the last one.
async fn listed(bare: &Bare, list: &List) -> anyhow::Result<[Page; 2]> {
    let count = Query::new(list.count, []);
    let rows = bare.fetch(&count).await?;
    let total: i64 = rows.first().context("nothing was counted")?.try_get(0)?;
    let last = (total + LISTED - 1) / LISTED;
    let on_last = total - (last - 1) * LISTED;
    let pages = [("first", list.newest, 1, LISTED), ("last", list.oldest, last, on_last)];
    Ok(pages.map(|(which, sql, number, rows)| {
        let path = format!("/v1/admin/{}?page={number}", list.field);
        let queries = [Query::new(sql, [Bind::Count(rows)]), count.clone()];
        let mut page = page(format!("{}, {which} page", list.name), Who::Admin, path, queries);
        page.list = Some(list.field);
        page
    }))
}

/// What is listed whole.
fn of_team(own: Own) -> Vec<Page> {
    let team = TeamId::from_uuid(own.team);
    let list =
        |name: &str, path: String, sql, id| page(name, Who::Admin, path, [Query::new(sql, [Bind::Id(id)])]);
    let mut members = list(
        "members of a team",
        format!("/v1/teams/{team}/members"),
        "select users.id, name, email, role, joined_at from team_members join users on users.id = user_id \
         where team_id = $1 order by joined_at, user_id",
        own.team,
    );
    members.id = "user_id";
    vec![
        list(
            "live capsules of a team",
            "/v1/capsules".to_owned(),
            "select id, status, template_name, vcpus, memory_mb, disk_mb, timeout_sec, metadata, versions, created_at, \
             updated_at, started_at, last_active_at from capsules \
             where team_id = $1 and status not in ('stopped', 'error') order by created_at desc, id",
            own.team,
        ),
        list(
            "keys of a team",
            "/v1/api-keys".to_owned(),
            "select api_keys.id, team_id, api_keys.name, key_prefix, created_by, api_keys.created_at, last_used, email \
             from api_keys left join users on users.id = created_by \
             where team_id = $1 order by api_keys.created_at desc, api_keys.id",
            own.team,
        ),
        list(
            "teams of a person",
            "/v1/teams".to_owned(),
            "select teams.id, name, slug, is_byoc, created_at, role from team_members \
             join teams on teams.id = team_id where user_id = $1 and deleted_at is null order by joined_at, team_id",
            own.admin,
        ),
        members,
    ]
}
