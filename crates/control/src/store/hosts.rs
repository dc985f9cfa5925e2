//! Hosts and their tokens.

use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_core::id::{HostRefreshTokenId, HostTokenId};
use wrenn_core::{CapsuleStatus, HostId, TeamId};

use super::{Store, StoreError};

/// Who may use a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// Every team without hosts of its own.
    Regular,
    /// The team that brought it.
    Byoc,
}

impl HostKind {
    /// The name used on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Byoc => "byoc",
        }
    }
}

/// Where a host is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostStatus {
    /// Made, not registered.
    Pending,
    /// Reports and takes capsules.
    Online,
    /// Taken out of service.
    Offline,
    /// Keeps what it has and takes nothing new.
    Draining,
    /// Silent for too long.
    Unreachable,
}

impl HostStatus {
    const ALL: [Self; 5] = [Self::Pending, Self::Online, Self::Offline, Self::Draining, Self::Unreachable];

    /// The name used on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Draining => "draining",
            Self::Unreachable => "unreachable",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or(StoreError::Corrupt("host status"))
    }
}

/// A host.
#[derive(Debug, Clone)]
pub struct HostRow {
    /// Its id.
    pub id: HostId,
    /// Who may use it.
    pub kind: HostKind,
    /// The team that brought it.
    pub team: Option<TeamId>,
    /// What its owner calls the provider.
    pub provider: Option<String>,
    /// What its owner calls the zone.
    pub availability_zone: Option<String>,
    /// CPU architecture.
    pub arch: Option<String>,
    /// CPU cores.
    pub cpu_cores: i64,
    /// Memory in MiB.
    pub memory_mb: i64,
    /// Disk in GiB.
    pub disk_gb: i64,
    /// `ip:port` of its agent.
    pub address: Option<String>,
    /// Where it is in its life.
    pub status: HostStatus,
    /// When it was last heard.
    pub last_heartbeat_at: Option<OffsetDateTime>,
    /// Who made it.
    pub created_by: Option<Uuid>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When its row last changed.
    pub updated_at: OffsetDateTime,
}

/// An online host and what its capsules take of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLoad {
    /// The host.
    pub host: HostId,
    /// CPU cores.
    pub cpu_cores: i64,
    /// Memory in MiB.
    pub memory_mb: i64,
    /// Disk in GiB.
    pub disk_gb: i64,
    /// vCPUs of its live capsules.
    pub used_vcpus: i64,
    /// MiB of memory of its live capsules that are not paused.
    pub used_memory_mb: i64,
    /// MiB of disk of its live capsules that are not paused.
    pub used_disk_mb: i64,
    /// MiB of memory of its paused capsules.
    pub paused_memory_mb: i64,
    /// MiB of disk of its paused capsules.
    pub paused_disk_mb: i64,
}

/// What a machine says of itself when it registers.
#[derive(Debug, Clone)]
pub struct Registration<'a> {
    /// `ip:port` of its agent.
    pub address: &'a str,
    /// CPU architecture.
    pub arch: &'a str,
    /// CPU cores.
    pub cpu_cores: i64,
    /// Memory in MiB.
    pub memory_mb: i64,
    /// Disk in GiB.
    pub disk_gb: i64,
}

struct HostRecord {
    id: Uuid,
    kind: String,
    team_id: Option<Uuid>,
    provider: Option<String>,
    availability_zone: Option<String>,
    arch: Option<String>,
    cpu_cores: i64,
    memory_mb: i64,
    disk_gb: i64,
    address: Option<String>,
    status: String,
    last_heartbeat_at: Option<OffsetDateTime>,
    created_by: Option<Uuid>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl HostRecord {
    fn read(self) -> Result<HostRow, StoreError> {
        Ok(HostRow {
            id: HostId::from_uuid(self.id),
            kind: if self.kind == "byoc" { HostKind::Byoc } else { HostKind::Regular },
            team: self.team_id.map(TeamId::from_uuid),
            provider: self.provider,
            availability_zone: self.availability_zone,
            arch: self.arch,
            cpu_cores: self.cpu_cores,
            memory_mb: self.memory_mb,
            disk_gb: self.disk_gb,
            address: self.address,
            status: HostStatus::parse(&self.status)?,
            last_heartbeat_at: self.last_heartbeat_at,
            created_by: self.created_by,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

impl Store {
    /// One host.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn host(&self, host: HostId) -> Result<Option<HostRow>, StoreError> {
        let row = sqlx::query_as!(
            HostRecord,
            "select id, kind, team_id, provider, availability_zone, arch, cpu_cores, memory_mb, disk_gb, address, \
             status, last_heartbeat_at, created_by, created_at, updated_at from hosts where id = $1",
            host.uuid()
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(HostRecord::read).transpose()
    }

    /// Hosts whose agents are to be watched, with their addresses.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hosts_to_watch(&self) -> Result<Vec<(HostId, String)>, StoreError> {
        let rows = sqlx::query!(
            r#"select id, address as "address!" from hosts
            where address is not null and status in ('online', 'unreachable', 'draining')"#
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| (HostId::from_uuid(row.id), row.address)).collect())
    }

    /// The local machine's host, made `pending` where there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn local_host(&self) -> Result<HostId, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!("lock table hosts in share row exclusive mode").execute(&mut *tx).await?;
        let found =
            sqlx::query_scalar!("select id from hosts where provider = 'local' order by created_at limit 1")
                .fetch_optional(&mut *tx)
                .await?;
        if let Some(id) = found {
            sqlx::query!("update hosts set status = 'pending', updated_at = now() where id = $1", id)
                .execute(&mut *tx)
                .await?;
            sqlx::query!(
                "update host_refresh_tokens set revoked_at = now() where host_id = $1 and revoked_at is null",
                id
            )
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            return Ok(HostId::from_uuid(id));
        }
        let id = HostId::random();
        sqlx::query!(
            "insert into hosts (id, kind, provider, status) values ($1, 'regular', 'local', 'pending')",
            id.uuid()
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(id)
    }

    /// Stores a registration token of a host; earlier ones end.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_host_token(
        &self,
        host: HostId,
        hash: &str,
        expires_at: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!("delete from host_tokens where host_id = $1 and used_at is null", host.uuid())
            .execute(&mut *tx)
            .await?;
        sqlx::query!(
            "insert into host_tokens (id, host_id, token_hash, expires_at) values ($1, $2, $3, $4)",
            HostTokenId::random().uuid(),
            host.uuid(),
            hash,
            expires_at
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Uses up a registration token and puts its host online. `None` where the token is unknown, used or expired, or the
    /// host is not `pending`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn register_host(
        &self,
        token_hash: &str,
        refresh_hash: &str,
        refresh_expires_at: OffsetDateTime,
        of: &Registration<'_>,
    ) -> Result<Option<HostId>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let host = sqlx::query_scalar!(
            "update host_tokens set used_at = now() \
             where token_hash = $1 and used_at is null and expires_at > now() returning host_id",
            token_hash
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(host) = host else { return Ok(None) };
        let done = sqlx::query!(
            "update hosts set status = 'online', address = $2, arch = nullif($3, ''), cpu_cores = $4, memory_mb = $5, \
             disk_gb = $6, last_heartbeat_at = now(), updated_at = now() where id = $1 and status = 'pending'",
            host,
            of.address,
            of.arch,
            of.cpu_cores,
            of.memory_mb,
            of.disk_gb
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(None);
        }
        insert_refresh(&mut tx, host, None, refresh_hash, refresh_expires_at).await?;
        tx.commit().await?;
        Ok(Some(HostId::from_uuid(host)))
    }

    /// Buys a new refresh token with one that the host has. `None` where that is unknown, revoked or expired.
    ///
    /// Its use proves that the host received it, so every other token of the host ends, and so does it, unless it is
    /// `repeatable`. Then it stays, and those that it has bought itself, because one of them may have arrived: which one
    /// is known when that is used in its turn. Until then a host that never got the answer can ask again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rotate_refresh(
        &self,
        old_hash: &str,
        repeatable: bool,
        new_hash: &str,
        expires_at: OffsetDateTime,
    ) -> Result<Option<HostId>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let host = sqlx::query_scalar!(
            "select id from hosts where id = (select host_id from host_refresh_tokens where token_hash = $1) \
             for update",
            old_hash
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(host) = host else { return Ok(None) };
        // Only now, behind the host's lock: another use may just have revoked it.
        let used = sqlx::query_scalar!(
            "select id from host_refresh_tokens \
             where token_hash = $1 and revoked_at is null and expires_at > now()",
            old_hash
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(used) = used else { return Ok(None) };
        sqlx::query!(
            "update host_refresh_tokens set revoked_at = now() where host_id = $1 and revoked_at is null \
             and not ($3 and (id = $2 or parent_id is not distinct from $2))",
            host,
            used,
            repeatable
        )
        .execute(&mut *tx)
        .await?;
        insert_refresh(&mut tx, host, Some(used), new_hash, expires_at).await?;
        tx.commit().await?;
        Ok(Some(HostId::from_uuid(host)))
    }

    /// Records that a host was heard; true where it had been unreachable until now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn host_heard(&self, host: HostId) -> Result<bool, StoreError> {
        let before = sqlx::query_scalar!(
            "update hosts set last_heartbeat_at = now(), \
                status = case when hosts.status = 'unreachable' then 'online' else hosts.status end \
             from (select id, status from hosts where id = $1 for update) as old \
             where hosts.id = old.id returning old.status",
            host.uuid()
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(before.as_deref() == Some(HostStatus::Unreachable.as_str()))
    }

    /// Marks hosts that were silent for `silence` seconds unreachable, and their capsules missing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sweep_silent_hosts(&self, silence: f64) -> Result<Vec<HostId>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let hosts = sqlx::query_scalar!(
            "update hosts set status = 'unreachable', updated_at = now() where status = 'online' \
             and coalesce(last_heartbeat_at, created_at) < now() - make_interval(secs => $1) returning id",
            silence
        )
        .fetch_all(&mut *tx)
        .await?;
        if !hosts.is_empty() {
            sqlx::query!(
                "update capsules set status = $2, updated_at = now() \
                 where host_id = any($1) and status in ('pending', 'starting', 'running')",
                &hosts,
                CapsuleStatus::Missing.as_str()
            )
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(hosts.into_iter().map(HostId::from_uuid).collect())
    }
}

async fn insert_refresh(
    tx: &mut sqlx::PgTransaction<'_>,
    host: Uuid,
    parent: Option<Uuid>,
    hash: &str,
    expires_at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into host_refresh_tokens (id, host_id, parent_id, token_hash, expires_at) \
         values ($1, $2, $3, $4, $5)",
        HostRefreshTokenId::random().uuid(),
        host,
        parent,
        hash,
        expires_at
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
