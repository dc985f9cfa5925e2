//! Capsules: placing them, and moving them from state to state by compare-and-set.

use std::collections::BTreeMap;

use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_core::{CapsuleId, CapsuleStatus, HostId, Metadata, Shape, TeamId};

use super::{HostLoad, Store, StoreError};

/// Key of the lock under which capsules are placed, so that two requests do not both take the last free memory.
const PLACEMENT_LOCK: i64 = 0x7772_656e_6e01;

/// A capsule about to be made.
#[derive(Debug)]
pub struct NewCapsule<'a> {
    /// Its id.
    pub id: CapsuleId,
    /// Its team.
    pub team: TeamId,
    /// Team of its template.
    pub template_team: TeamId,
    /// Its template.
    pub template: Uuid,
    /// The template as the request named it.
    pub template_name: &'a str,
    /// Its size.
    pub shape: Shape,
    /// Inactivity time-out in seconds, 0 for none.
    pub timeout_sec: u32,
    /// Its labels.
    pub metadata: &'a Metadata,
}

/// A capsule.
#[derive(Debug, Clone)]
pub struct CapsuleRow {
    /// Its id.
    pub id: CapsuleId,
    /// Its host.
    pub host: HostId,
    /// Its state.
    pub status: CapsuleStatus,
    /// The template as the request named it.
    pub template_name: String,
    /// vCPUs.
    pub vcpus: i64,
    /// Memory in MiB.
    pub memory_mb: i64,
    /// Disk capacity in MiB.
    pub disk_mb: i64,
    /// Inactivity time-out in seconds, 0 for none.
    pub timeout_sec: i64,
    /// Its labels.
    pub metadata: Metadata,
    /// Versions of what it runs on, by system label.
    pub versions: BTreeMap<String, String>,
    /// Why it ended.
    pub reason: Option<String>,
    /// When it was asked for.
    pub created_at: OffsetDateTime,
    /// When its state last changed.
    pub updated_at: OffsetDateTime,
    /// When it first ran.
    pub started_at: Option<OffsetDateTime>,
    /// When it was last used.
    pub last_active_at: Option<OffsetDateTime>,
}

/// A live capsule as reconciliation sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCapsule {
    /// Its id.
    pub id: CapsuleId,
    /// Its state.
    pub status: CapsuleStatus,
}

/// A move from one of several states to another.
#[derive(Debug, Clone, Copy)]
pub struct Advance<'a> {
    /// States in which the move is made; in others nothing happens.
    pub from: &'a [CapsuleStatus],
    /// The new state.
    pub to: CapsuleStatus,
    /// Why, for operators.
    pub reason: Option<&'a str>,
    /// The host's count of changes that this move takes over; one that is older than what the row has is refused.
    pub generation: Option<i64>,
}

impl<'a> Advance<'a> {
    /// A move without reason or report.
    pub fn new(from: &'a [CapsuleStatus], to: CapsuleStatus) -> Self {
        Self { from, to, reason: None, generation: None }
    }

    fn names(&self) -> Vec<String> {
        self.from.iter().map(ToString::to_string).collect()
    }
}

struct CapsuleRecord {
    id: Uuid,
    host_id: Uuid,
    status: String,
    template_name: String,
    vcpus: i64,
    memory_mb: i64,
    disk_mb: i64,
    timeout_sec: i64,
    metadata: Json<Metadata>,
    versions: Json<BTreeMap<String, String>>,
    reason: Option<String>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    started_at: Option<OffsetDateTime>,
    last_active_at: Option<OffsetDateTime>,
}

impl CapsuleRecord {
    fn read(self) -> Result<CapsuleRow, StoreError> {
        Ok(CapsuleRow {
            id: CapsuleId::from_uuid(self.id),
            host: HostId::from_uuid(self.host_id),
            status: status(&self.status)?,
            template_name: self.template_name,
            vcpus: self.vcpus,
            memory_mb: self.memory_mb,
            disk_mb: self.disk_mb,
            timeout_sec: self.timeout_sec,
            metadata: self.metadata.0,
            versions: self.versions.0,
            reason: self.reason,
            created_at: self.created_at,
            updated_at: self.updated_at,
            started_at: self.started_at,
            last_active_at: self.last_active_at,
        })
    }
}

fn status(text: &str) -> Result<CapsuleStatus, StoreError> {
    text.parse().map_err(|_| StoreError::Corrupt("capsule status"))
}

impl Store {
    /// Chooses a host among those the team may use and stores the capsule there as `starting`. `None`, and nothing
    /// stored, where `choose` takes no host.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn place_capsule(
        &self,
        new: &NewCapsule<'_>,
        choose: impl FnOnce(&[HostLoad]) -> Option<HostId> + Send,
    ) -> Result<Option<HostId>, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!("select pg_advisory_xact_lock($1)", PLACEMENT_LOCK).fetch_one(&mut *tx).await?;
        let loads = host_loads(&mut tx, new.team).await?;
        let Some(host) = choose(&loads) else { return Ok(None) };
        insert(&mut tx, new, host).await?;
        tx.commit().await?;
        Ok(Some(host))
    }

    /// One capsule of a team.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn capsule(&self, team: TeamId, id: CapsuleId) -> Result<Option<CapsuleRow>, StoreError> {
        let row = sqlx::query_as!(
            CapsuleRecord,
            r#"select id, host_id, status, template_name, vcpus, memory_mb, disk_mb, timeout_sec,
                metadata as "metadata: Json<Metadata>", versions as "versions: Json<BTreeMap<String, String>>",
                reason, created_at, updated_at, started_at, last_active_at
            from capsules where id = $1 and team_id = $2"#,
            id.uuid(),
            team.uuid()
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(CapsuleRecord::read).transpose()
    }

    /// A team's capsules that have not ended, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn live_capsules(&self, team: TeamId) -> Result<Vec<CapsuleRow>, StoreError> {
        let rows = sqlx::query_as!(
            CapsuleRecord,
            r#"select id, host_id, status, template_name, vcpus, memory_mb, disk_mb, timeout_sec,
                metadata as "metadata: Json<Metadata>", versions as "versions: Json<BTreeMap<String, String>>",
                reason, created_at, updated_at, started_at, last_active_at
            from capsules where team_id = $1 and status not in ('stopped', 'error') order by created_at desc, id"#,
            team.uuid()
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(CapsuleRecord::read).collect()
    }

    /// Makes the move where the capsule is in one of its `from` states; false where it is not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn advance(&self, id: CapsuleId, step: Advance<'_>) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "update capsules set status = $2, reason = coalesce($4, reason), \
                generation = greatest(generation, coalesce($5, generation)), updated_at = now() \
             where id = $1 and status = any($3) and coalesce($5, generation) >= generation",
            id.uuid(),
            step.to.as_str(),
            &step.names(),
            step.reason,
            step.generation
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Makes a starting or missing capsule `running`; false where it is in another state by now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn capsule_runs(
        &self,
        id: CapsuleId,
        generation: i64,
        versions: &BTreeMap<String, String>,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "update capsules set status = 'running', generation = $2, versions = $3, updated_at = now(), \
                started_at = coalesce(started_at, now()), last_active_at = coalesce(last_active_at, now()) \
             where id = $1 and status in ('pending', 'starting', 'resuming', 'missing') and generation <= $2",
            id.uuid(),
            generation,
            Json(versions) as _
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Moves the time of the last use forward.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn capsules_active(&self, used: &[(CapsuleId, OffsetDateTime)]) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = used.iter().map(|(id, _)| id.uuid()).collect();
        let times: Vec<OffsetDateTime> = used.iter().map(|(_, time)| *time).collect();
        sqlx::query!(
            "update capsules set last_active_at = greatest(last_active_at, used.at) \
             from unnest($1::uuid[], $2::timestamptz[]) as used (id, at) where capsules.id = used.id \
             and (last_active_at is null or last_active_at < used.at)",
            &ids,
            &times
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A host's capsules that have not ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn host_capsules(&self, host: HostId) -> Result<Vec<HostCapsule>, StoreError> {
        let rows = sqlx::query!(
            "select id, status from capsules where host_id = $1 and status not in ('stopped', 'error')",
            host.uuid()
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| Ok(HostCapsule { id: CapsuleId::from_uuid(row.id), status: status(&row.status)? }))
            .collect()
    }

    /// Whether the capsule is being destroyed or has ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ended_or_ending(&self, id: CapsuleId) -> Result<bool, StoreError> {
        let found = sqlx::query_scalar!(
            r#"select exists (select from capsules where id = $1 and status in ('stopping', 'stopped', 'error'))
                as "found!""#,
            id.uuid()
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(found)
    }

    /// Those of `ids` that have ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ended_among(&self, ids: &[CapsuleId]) -> Result<Vec<CapsuleId>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
        let ended = sqlx::query_scalar!(
            "select id from capsules where id = any($1) and status in ('stopped', 'error')",
            &ids
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(ended.into_iter().map(CapsuleId::from_uuid).collect())
    }
}

async fn host_loads(tx: &mut sqlx::PgTransaction<'_>, team: TeamId) -> Result<Vec<HostLoad>, StoreError> {
    let rows = sqlx::query!(
        r#"select hosts.id, hosts.cpu_cores, hosts.memory_mb, hosts.disk_gb,
            coalesce(sum(c.vcpus) filter (where c.status <> 'paused'), 0)::bigint as "used_vcpus!",
            coalesce(sum(c.memory_mb) filter (where c.status <> 'paused'), 0)::bigint as "used_memory_mb!",
            coalesce(sum(c.disk_mb) filter (where c.status <> 'paused'), 0)::bigint as "used_disk_mb!",
            coalesce(sum(c.memory_mb) filter (where c.status = 'paused'), 0)::bigint as "paused_memory_mb!",
            coalesce(sum(c.disk_mb) filter (where c.status = 'paused'), 0)::bigint as "paused_disk_mb!"
        from hosts
        join teams on teams.id = $1
        left join capsules c on c.host_id = hosts.id and c.status not in ('stopped', 'error')
        where hosts.status = 'online'
            and case when teams.is_byoc then hosts.team_id = teams.id else hosts.kind = 'regular' end
        group by hosts.id order by hosts.id"#,
        team.uuid()
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| HostLoad {
            host: HostId::from_uuid(row.id),
            cpu_cores: row.cpu_cores,
            memory_mb: row.memory_mb,
            disk_gb: row.disk_gb,
            used_vcpus: row.used_vcpus,
            used_memory_mb: row.used_memory_mb,
            used_disk_mb: row.used_disk_mb,
            paused_memory_mb: row.paused_memory_mb,
            paused_disk_mb: row.paused_disk_mb,
        })
        .collect())
}

async fn insert(
    tx: &mut sqlx::PgTransaction<'_>,
    new: &NewCapsule<'_>,
    host: HostId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into capsules (id, team_id, host_id, template_team_id, template_id, template_name, status, vcpus, \
            memory_mb, disk_mb, timeout_sec, metadata) \
         values ($1, $2, $3, $4, $5, $6, 'starting', $7, $8, $9, $10, $11)",
        new.id.uuid(),
        new.team.uuid(),
        host.uuid(),
        new.template_team.uuid(),
        new.template,
        new.template_name,
        i64::from(new.shape.vcpus),
        i64::from(new.shape.memory_mb),
        i64::from(new.shape.disk_mb),
        i64::from(new.timeout_sec),
        Json(new.metadata) as _
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
