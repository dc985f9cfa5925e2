//! Capsules as people see them.

use std::collections::BTreeMap;

use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_core::{CapsuleId, CapsuleStatus, HostId, Metadata, TeamId};

use super::{Store, StoreError};

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

pub(super) fn status(text: &str) -> Result<CapsuleStatus, StoreError> {
    text.parse().map_err(|_| StoreError::Corrupt("capsule status"))
}

impl Store {
    /// One capsule of a team.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn capsule(&self, team: TeamId, id: CapsuleId) -> Result<Option<CapsuleRow>, StoreError> {
        let mut reading = self.kept.take().await?;
        let row = sqlx::query_as!(
            CapsuleRecord,
            r#"select id, host_id, status, template_name, vcpus, memory_mb, disk_mb, timeout_sec,
                metadata as "metadata: Json<Metadata>", versions as "versions: Json<BTreeMap<String, String>>",
                reason, created_at, updated_at, started_at, last_active_at
            from capsules where id = $1 and team_id = $2"#,
            id.uuid(),
            team.uuid()
        )
        .fetch_optional(&mut *reading)
        .await?;
        reading.done();
        row.map(CapsuleRecord::read).transpose()
    }

    /// Those of `ids` that are a team's, in the order of `ids`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn capsules(&self, team: TeamId, ids: &[CapsuleId]) -> Result<Vec<CapsuleRow>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
        let rows = sqlx::query_as!(
            CapsuleRecord,
            r#"select id, host_id, status, template_name, vcpus, memory_mb, disk_mb, timeout_sec,
                metadata as "metadata: Json<Metadata>", versions as "versions: Json<BTreeMap<String, String>>",
                reason, created_at, updated_at, started_at, last_active_at
            from capsules where team_id = $1 and id = any($2) order by array_position($2, id)"#,
            team.uuid(),
            &ids
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(CapsuleRecord::read).collect()
    }

    /// A team's capsules that have not ended, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn live_capsules(&self, team: TeamId) -> Result<Vec<CapsuleRow>, StoreError> {
        let mut reading = self.kept.take().await?;
        let rows = sqlx::query_as!(
            CapsuleRecord,
            r#"select id, host_id, status, template_name, vcpus, memory_mb, disk_mb, timeout_sec,
                metadata as "metadata: Json<Metadata>", versions as "versions: Json<BTreeMap<String, String>>",
                reason, created_at, updated_at, started_at, last_active_at
            from capsules where team_id = $1 and status not in ('stopped', 'error') order by created_at desc, id"#,
            team.uuid()
        )
        .fetch_all(&mut *reading)
        .await?;
        reading.done();
        rows.into_iter().map(CapsuleRecord::read).collect()
    }

    /// On which hosts capsules are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hosts_of(&self, ids: &[CapsuleId]) -> Result<Vec<(CapsuleId, HostId)>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
        let rows = sqlx::query!("select id, host_id from capsules where id = any($1)", &ids)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| (CapsuleId::from_uuid(row.id), HostId::from_uuid(row.host_id)))
            .collect())
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
}
