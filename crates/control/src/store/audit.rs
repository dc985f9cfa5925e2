//! The audit log.

use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_core::{AuditId, TeamId};

use super::{Store, StoreError};
use crate::audit::{Entry, KINDS, Scope};

/// An entry as it is read.
#[derive(Debug, Clone)]
pub struct AuditRow {
    /// The entry.
    pub id: AuditId,
    /// `user`, `api_key` or `system`.
    pub actor_type: String,
    /// The account or the key.
    pub actor_id: Option<Uuid>,
    /// Its name at the time.
    pub actor_name: Option<String>,
    /// What was acted on.
    pub resource_type: String,
    /// Its id or name.
    pub resource_id: Option<String>,
    /// What was done.
    pub action: String,
    /// `team` or `admin`.
    pub scope: String,
    /// `success`, `info`, `warning` or `error`.
    pub status: String,
    /// What else is worth knowing: an object, as it is stored.
    pub metadata: Box<RawValue>,
    /// When, to the microsecond.
    pub created_at: OffsetDateTime,
}

struct AuditRecord {
    id: Uuid,
    actor_type: String,
    actor_id: Option<Uuid>,
    actor_name: Option<String>,
    resource_type: String,
    resource_id: Option<String>,
    action: String,
    scope: String,
    status: String,
    metadata: Json<Box<RawValue>>,
    created_at: OffsetDateTime,
}

impl From<AuditRecord> for AuditRow {
    fn from(row: AuditRecord) -> Self {
        Self {
            id: AuditId::from_uuid(row.id),
            actor_type: row.actor_type,
            actor_id: row.actor_id,
            actor_name: row.actor_name,
            resource_type: row.resource_type,
            resource_id: row.resource_id,
            action: row.action,
            scope: row.scope,
            status: row.status,
            metadata: row.metadata.0,
            created_at: row.created_at,
        }
    }
}

/// As many kinds as one query merges, which are all of one resource.
const FEW: usize = 6;

/// Which entries to read.
#[derive(Debug, Clone, Copy)]
pub struct AuditFilter<'a> {
    /// Whose log.
    pub team: TeamId,
    /// The widest scope that the reader may see: `Team` leaves out what only administrators may.
    pub scope: Scope,
    /// Kinds of resources; all where empty.
    pub resources: &'a [String],
    /// Actions; all where empty.
    pub actions: &'a [String],
    /// Read what is older than this time and, where an id is given, what is of this time with a smaller id.
    pub before: Option<(OffsetDateTime, Option<AuditId>)>,
    /// Most entries to read.
    pub limit: i64,
}

impl AuditFilter<'_> {
    /// The kinds of entries that pass, as pairs of resource and action.
    fn kinds(&self) -> (Vec<String>, Vec<String>) {
        let among = |wanted: &[String], name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
        KINDS
            .iter()
            .filter(|kind| self.scope == Scope::Admin || kind.scope == Scope::Team)
            .filter(|kind| among(self.resources, kind.resource) && among(self.actions, kind.action))
            .map(|kind| (kind.resource.to_owned(), kind.action.to_owned()))
            .unzip()
    }

    /// The place of the cursor: entries whose time and id are smaller pass.
    fn place(&self) -> (Option<OffsetDateTime>, Uuid) {
        match self.before {
            Some((time, id)) => (Some(time), id.map_or(Uuid::nil(), AuditId::uuid)),
            None => (None, Uuid::nil()),
        }
    }
}

/// Writes an entry as a part of what it records.
pub(super) async fn record(connection: &mut PgConnection, entry: &Entry<'_>) -> Result<(), StoreError> {
    let kind = entry.deed.kind();
    sqlx::query!(
        "insert into audit_logs (id, team_id, actor_type, actor_id, actor_name, resource_type, resource_id, action, \
            scope, status, metadata) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        AuditId::random().uuid(),
        entry.team.uuid(),
        entry.actor.kind(),
        entry.actor.uuid(),
        entry.actor.name(),
        kind.resource,
        entry.deed.resource_id(),
        kind.action,
        kind.scope.as_str(),
        entry.status().as_str(),
        Json(entry.metadata()) as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

impl Store {
    /// Entries of a log, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit_log(&self, filter: &AuditFilter<'_>) -> Result<Vec<AuditRow>, StoreError> {
        let mut reading = self.kept.take().await?;
        let rows = if filter.resources.is_empty() && filter.actions.is_empty() {
            of_all_kinds(&mut reading, filter).await?
        } else {
            let kinds = filter.kinds();
            match kinds.0.len() {
                2..=FEW => of_few_kinds(&mut reading, filter, &kinds).await?,
                _ => of_one_or_many_kinds(&mut reading, filter, &kinds).await?,
            }
        };
        reading.done();
        Ok(rows.into_iter().map(AuditRow::from).collect())
    }
}

async fn of_all_kinds(
    connection: &mut PgConnection,
    filter: &AuditFilter<'_>,
) -> Result<Vec<AuditRecord>, StoreError> {
    let (before, before_id) = filter.place();
    // Two texts, because one with a condition on a parameter uses neither index.
    let rows = if filter.scope == Scope::Admin {
        sqlx::query_as!(
            AuditRecord,
            r#"select id, actor_type, actor_id, actor_name, resource_type, resource_id, action, scope, status,
                metadata as "metadata: Json<Box<RawValue>>", created_at
            from audit_logs where team_id = $1 and (created_at, id) < (coalesce($2::timestamptz, 'infinity'), $3)
            order by created_at desc, id desc limit $4"#,
            filter.team.uuid(),
            before,
            before_id,
            filter.limit
        )
        .fetch_all(connection)
        .await?
    } else {
        sqlx::query_as!(
            AuditRecord,
            r#"select id, actor_type, actor_id, actor_name, resource_type, resource_id, action, scope, status,
                metadata as "metadata: Json<Box<RawValue>>", created_at
            from audit_logs
            where team_id = $1 and scope = 'team' and (created_at, id) < (coalesce($2::timestamptz, 'infinity'), $3)
            order by created_at desc, id desc limit $4"#,
            filter.team.uuid(),
            before,
            before_id,
            filter.limit
        )
        .fetch_all(connection)
        .await?
    };
    Ok(rows)
}

/// One walk down the index for each kind, merged as they go: together they read no more than the page has.
async fn of_few_kinds(
    connection: &mut PgConnection,
    filter: &AuditFilter<'_>,
    (resources, actions): &(Vec<String>, Vec<String>),
) -> Result<Vec<AuditRecord>, StoreError> {
    let (before, before_id) = filter.place();
    // Each walk stands in the text by itself, because PostgreSQL merges only those: what it walks for rows of another
    // query, it sorts. Beyond the end of an array there is no kind, and nothing to walk.
    Ok(sqlx::query_as!(
        AuditRecord,
        r#"select id as "id!", actor_type as "actor_type!", actor_id, actor_name, resource_type as "resource_type!",
            resource_id, action as "action!", scope as "scope!", status as "status!",
            metadata as "metadata!: Json<Box<RawValue>>", created_at as "created_at!"
        from (
        (select * from audit_logs where team_id = $1 and resource_type = ($2::text[])[1] and action = ($3::text[])[1]
            and (created_at, id) < (coalesce($4::timestamptz, 'infinity'), $5) order by created_at desc, id desc)
        union all
        (select * from audit_logs where team_id = $1 and resource_type = ($2::text[])[2] and action = ($3::text[])[2]
            and (created_at, id) < (coalesce($4::timestamptz, 'infinity'), $5) order by created_at desc, id desc)
        union all
        (select * from audit_logs where team_id = $1 and resource_type = ($2::text[])[3] and action = ($3::text[])[3]
            and (created_at, id) < (coalesce($4::timestamptz, 'infinity'), $5) order by created_at desc, id desc)
        union all
        (select * from audit_logs where team_id = $1 and resource_type = ($2::text[])[4] and action = ($3::text[])[4]
            and (created_at, id) < (coalesce($4::timestamptz, 'infinity'), $5) order by created_at desc, id desc)
        union all
        (select * from audit_logs where team_id = $1 and resource_type = ($2::text[])[5] and action = ($3::text[])[5]
            and (created_at, id) < (coalesce($4::timestamptz, 'infinity'), $5) order by created_at desc, id desc)
        union all
        (select * from audit_logs where team_id = $1 and resource_type = ($2::text[])[6] and action = ($3::text[])[6]
            and (created_at, id) < (coalesce($4::timestamptz, 'infinity'), $5) order by created_at desc, id desc)
        ) as found order by created_at desc, id desc limit $6"#,
        filter.team.uuid(),
        resources,
        actions,
        before,
        before_id,
        filter.limit
    )
    .fetch_all(connection)
    .await?)
}

/// A page of each kind, sorted.
async fn of_one_or_many_kinds(
    connection: &mut PgConnection,
    filter: &AuditFilter<'_>,
    (resources, actions): &(Vec<String>, Vec<String>),
) -> Result<Vec<AuditRecord>, StoreError> {
    let (before, before_id) = filter.place();
    Ok(sqlx::query_as!(
        AuditRecord,
        r#"select found.id, found.actor_type, found.actor_id, found.actor_name, found.resource_type,
            found.resource_id, found.action, found.scope, found.status,
            found.metadata as "metadata: Json<Box<RawValue>>", found.created_at
        from unnest($2::text[], $3::text[]) as kind (resource, action)
        cross join lateral (
            select * from audit_logs where team_id = $1
                and resource_type = kind.resource and action = kind.action
                and (created_at, id) < (coalesce($4::timestamptz, 'infinity'), $5)
            order by created_at desc, id desc limit $6
        ) as found
        order by found.created_at desc, found.id desc limit $6"#,
        filter.team.uuid(),
        resources,
        actions,
        before,
        before_id,
        filter.limit
    )
    .fetch_all(connection)
    .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(scope: Scope, resources: &[&str], actions: &[&str]) -> Vec<String> {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let (resources, actions) = (own(resources), own(actions));
        let team = TeamId::random();
        let filter =
            AuditFilter { team, scope, resources: &resources, actions: &actions, before: None, limit: 1 };
        let (resources, actions) = filter.kinds();
        resources.iter().zip(actions).map(|(resource, action)| format!("{resource}.{action}")).collect()
    }

    #[test]
    fn filters_are_or_within_and_and_between_and_nobody_reads_beyond_their_scope() {
        assert_eq!(kinds(Scope::Admin, &["member"], &["add", "leave"]), ["member.add", "member.leave"]);
        assert_eq!(
            kinds(Scope::Admin, &["api_key", "snapshot"], &["create"]),
            ["snapshot.create", "api_key.create"]
        );
        assert_eq!(kinds(Scope::Admin, &["nothing"], &[]), [""; 0]);
        assert_eq!(kinds(Scope::Team, &["member"], &[]), [""; 0]);
    }
}
