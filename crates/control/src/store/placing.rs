//! Giving capsules room on hosts: one lock for every change that takes memory, so that two requests do not both take the
//! last of it.

use std::collections::BTreeMap;

use sqlx::types::Json;
use uuid::Uuid;
use wrenn_core::{CapsuleId, CapsuleStatus, HostId, Metadata, Shape, TeamId};

use super::teams::hold_team;
use super::{HostLoad, HostStatus, Store, StoreError};
use crate::audit::Actor;

/// Key of the lock under which room is taken.
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
    /// Linux user of its processes.
    pub default_user: &'a str,
    /// Variables of its processes.
    pub default_env: &'a BTreeMap<String, String>,
    /// Who asks for it.
    pub actor: &'a Actor,
}

/// Copies about to be made of a running capsule.
#[derive(Debug)]
pub struct NewForks<'a> {
    /// The team of all of them.
    pub team: TeamId,
    /// The capsule that is copied.
    pub source: CapsuleId,
    /// Ids of the copies.
    pub ids: &'a [CapsuleId],
    /// Labels of the copies; `None` for those of the source.
    pub metadata: Option<&'a Metadata>,
    /// Who asks for them.
    pub actor: &'a Actor,
}

impl Store {
    /// Chooses a host among the online ones that the team may use and stores the capsule there as `starting`. The inner
    /// error, and nothing stored, where `choose` takes no host.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn place_capsule<E>(
        &self,
        new: &NewCapsule<'_>,
        choose: impl FnOnce(&[HostLoad]) -> Result<HostId, E> + Send,
    ) -> Result<Result<HostId, E>, StoreError> {
        let mut tx = self.locked().await?;
        // Shared with nobody who deletes the team: what is stored now is found by whoever does so later.
        hold_team(&mut tx, new.team).await?;
        let loads = host_loads(&mut tx, new.team, None).await?;
        let online: Vec<HostLoad> = loads.into_iter().map(|(_, load)| load).collect();
        let host = match choose(&online) {
            Ok(host) => host,
            Err(refused) => return Ok(Err(refused)),
        };
        insert(&mut tx, new, host).await?;
        tx.commit().await?;
        Ok(Ok(host))
    }

    /// Stores copies of a running capsule as `starting` on its host. False, and nothing stored, where the source does not
    /// run (any more); the inner error where `admit` refuses.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn place_forks<E>(
        &self,
        new: &NewForks<'_>,
        admit: impl FnOnce(HostStatus, &HostLoad) -> Result<(), E> + Send,
    ) -> Result<Result<bool, E>, StoreError> {
        let mut tx = self.locked().await?;
        if !hold_team(&mut tx, new.team).await? {
            return Ok(Ok(false));
        }
        let host = sqlx::query_scalar!(
            "select host_id from capsules where id = $1 and status = 'running' for share",
            new.source.uuid()
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(host) = host else { return Ok(Ok(false)) };
        if let Err(refused) = check(&mut tx, new.team, HostId::from_uuid(host), admit).await? {
            return Ok(Err(refused));
        }
        let ids: Vec<Uuid> = new.ids.iter().map(|id| id.uuid()).collect();
        sqlx::query!(
            "insert into capsules (id, team_id, host_id, template_team_id, template_id, template_name, status, vcpus, \
                memory_mb, disk_mb, timeout_sec, metadata, default_user, default_env, actor) \
             select copy.id, team_id, host_id, template_team_id, template_id, template_name, 'starting', vcpus, \
                memory_mb, disk_mb, timeout_sec, coalesce($3, metadata), default_user, default_env, $4 \
             from capsules, unnest($2::uuid[]) as copy (id) where capsules.id = $1",
            new.source.uuid(),
            &ids,
            new.metadata.map(Json) as _,
            new.actor.stored().map(Json) as _
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Ok(true))
    }

    /// Makes a paused capsule `resuming`. False where it is in another state (by now); the inner error where `admit`
    /// refuses.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin_resume<E>(
        &self,
        team: TeamId,
        id: CapsuleId,
        host: HostId,
        actor: &Actor,
        admit: impl FnOnce(HostStatus, &HostLoad) -> Result<(), E> + Send,
    ) -> Result<Result<bool, E>, StoreError> {
        let mut tx = self.locked().await?;
        let done = sqlx::query!(
            "update capsules set status = $2, updated_at = now(), actor = $4 where id = $1 and status = $3",
            id.uuid(),
            CapsuleStatus::Resuming.as_str(),
            CapsuleStatus::Paused.as_str(),
            actor.stored().map(Json) as _
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(Ok(false));
        }
        // The capsule counts in full by now.
        if let Err(refused) = check(&mut tx, team, host, admit).await? {
            return Ok(Err(refused));
        }
        tx.commit().await?;
        Ok(Ok(true))
    }

    async fn locked(&self) -> Result<sqlx::PgTransaction<'static>, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!("select pg_advisory_xact_lock($1)", PLACEMENT_LOCK).fetch_one(&mut *tx).await?;
        Ok(tx)
    }
}

/// Asks `admit` about one host.
async fn check<E>(
    tx: &mut sqlx::PgTransaction<'_>,
    team: TeamId,
    host: HostId,
    admit: impl FnOnce(HostStatus, &HostLoad) -> Result<(), E> + Send,
) -> Result<Result<(), E>, StoreError> {
    let loads = host_loads(tx, team, Some(host)).await?;
    let (status, load) = loads.first().ok_or(StoreError::Corrupt("host of a capsule"))?;
    Ok(admit(*status, load))
}

/// What is taken of one host, or of all online hosts that the team may use.
async fn host_loads(
    tx: &mut sqlx::PgTransaction<'_>,
    team: TeamId,
    one: Option<HostId>,
) -> Result<Vec<(HostStatus, HostLoad)>, StoreError> {
    let rows = sqlx::query!(
        r#"select hosts.id, hosts.status, hosts.cpu_cores, hosts.memory_mb, hosts.disk_gb,
            coalesce(sum(c.vcpus) filter (where c.status <> 'paused'), 0)::bigint as "used_vcpus!",
            coalesce(sum(c.memory_mb) filter (where c.status <> 'paused'), 0)::bigint as "used_memory_mb!",
            coalesce(sum(c.disk_mb) filter (where c.status <> 'paused'), 0)::bigint as "used_disk_mb!",
            coalesce(sum(c.memory_mb) filter (where c.status = 'paused'), 0)::bigint as "paused_memory_mb!",
            coalesce(sum(c.disk_mb) filter (where c.status = 'paused'), 0)::bigint as "paused_disk_mb!"
        from hosts
        join teams on teams.id = $1 and teams.deleted_at is null
        left join capsules c on c.host_id = hosts.id and c.status not in ('stopped', 'error')
        where case
            when $2::uuid is not null then hosts.id = $2
            when hosts.status <> 'online' then false
            when teams.is_byoc then hosts.team_id = teams.id
            else hosts.kind = 'regular'
        end
        group by hosts.id order by hosts.id"#,
        team.uuid(),
        one.map(HostId::uuid)
    )
    .fetch_all(&mut **tx)
    .await?;
    rows.into_iter()
        .map(|row| {
            let load = HostLoad {
                host: HostId::from_uuid(row.id),
                cpu_cores: row.cpu_cores,
                memory_mb: row.memory_mb,
                disk_gb: row.disk_gb,
                used_vcpus: row.used_vcpus,
                used_memory_mb: row.used_memory_mb,
                used_disk_mb: row.used_disk_mb,
                paused_memory_mb: row.paused_memory_mb,
                paused_disk_mb: row.paused_disk_mb,
            };
            Ok((HostStatus::parse(&row.status)?, load))
        })
        .collect()
}

async fn insert(
    tx: &mut sqlx::PgTransaction<'_>,
    new: &NewCapsule<'_>,
    host: HostId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into capsules (id, team_id, host_id, template_team_id, template_id, template_name, status, vcpus, \
            memory_mb, disk_mb, timeout_sec, metadata, default_user, default_env, actor) \
         values ($1, $2, $3, $4, $5, $6, 'starting', $7, $8, $9, $10, $11, $12, $13, $14)",
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
        Json(new.metadata) as _,
        new.default_user,
        Json(new.default_env) as _,
        new.actor.stored().map(Json) as _
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
