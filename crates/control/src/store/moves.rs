//! Moves from state to state. Each compares and sets: it says whether the row was as expected. What a move completes is
//! recorded with it, in the name of whoever asked for it.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::types::Json;
use uuid::Uuid;
use wrenn_core::{CapsuleId, CapsuleStatus, HostId};

use super::capsules::status;
use super::outcomes::Moved;
use super::{Store, StoreError};
use crate::audit::{Actor, StoredActor};

/// A capsule's row as far as its host's reports are compared with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCapsule {
    /// Its id.
    pub id: CapsuleId,
    /// Its state.
    pub status: CapsuleStatus,
    /// The newest of the host's counts of changes that the row has taken over.
    pub generation: i64,
    /// How long it has been in its state.
    pub age: Duration,
}

struct HostCapsuleRecord {
    id: Uuid,
    status: String,
    generation: i64,
    age: f64,
}

impl HostCapsuleRecord {
    fn read(self) -> Result<HostCapsule, StoreError> {
        Ok(HostCapsule {
            id: CapsuleId::from_uuid(self.id),
            status: status(&self.status)?,
            generation: self.generation,
            age: Duration::try_from_secs_f64(self.age).unwrap_or_default(),
        })
    }
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
    /// Who asks for what this move begins; the platform where nobody does.
    pub actor: &'a Actor,
}

impl<'a> Advance<'a> {
    /// A move without reason or report.
    pub fn new(from: &'a [CapsuleStatus], to: CapsuleStatus) -> Self {
        Self { from, to, reason: None, generation: None, actor: &Actor::System }
    }

    /// A move that somebody asks for.
    pub fn asked(from: &'a [CapsuleStatus], to: CapsuleStatus, actor: &'a Actor) -> Self {
        Self { actor, ..Self::new(from, to) }
    }

    fn names(&self) -> Vec<String> {
        self.from.iter().map(ToString::to_string).collect()
    }
}

/// A move that a host's report asks for.
#[derive(Debug, Clone, Copy)]
pub struct TakeOver<'a> {
    /// The new state.
    pub to: CapsuleStatus,
    /// The host's count of changes, where the report says no more than this move does.
    pub generation: Option<i64>,
    /// Why, for operators.
    pub reason: Option<&'a str>,
    /// Versions of what it runs on, by system label; none where the report has none.
    pub versions: &'a BTreeMap<String, String>,
}

impl Store {
    /// Makes the move where the capsule is in one of its `from` states; false where it is not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn advance(&self, id: CapsuleId, step: Advance<'_>) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let moved = sqlx::query_as!(
            Moved,
            r#"update capsules set status = $2, updated_at = now(), actor = $6,
                reason = case when $6::jsonb is null then coalesce($4, reason) else $4 end,
                generation = greatest(generation, coalesce($5, generation))
            from (select id, status, actor, started_at as ran_at from capsules where id = $1 for update) as old
            where capsules.id = old.id and old.status = any($3) and coalesce($5, generation) >= generation
            returning team_id, template_name, reason, old.status as was,
                old.ran_at is null as "never_ran!", old.actor as "actor: Json<StoredActor>""#,
            id.uuid(),
            step.to.as_str(),
            &step.names(),
            step.reason,
            step.generation,
            step.actor.stored().map(Json) as _
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(moved) = moved else { return Ok(false) };
        moved.record(&mut tx, id, step.to, false).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Makes a starting, resuming or missing capsule `running`; false where it is in another state by now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn capsule_runs(
        &self,
        id: CapsuleId,
        generation: i64,
        versions: &BTreeMap<String, String>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let moved = sqlx::query_as!(
            Moved,
            r#"update capsules set status = 'running', generation = $2, versions = $3, reason = null, actor = null,
                updated_at = now(), started_at = coalesce(started_at, now()),
                last_active_at = coalesce(last_active_at, now())
            from (select id, status, actor, started_at as ran_at from capsules where id = $1 for update) as old
            where capsules.id = old.id and old.status in ('pending', 'starting', 'resuming', 'missing')
                and generation <= $2
            returning team_id, template_name, reason, old.status as was,
                old.ran_at is null as "never_ran!", old.actor as "actor: Json<StoredActor>""#,
            id.uuid(),
            generation,
            Json(versions) as _
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(moved) = moved else { return Ok(false) };
        moved.record(&mut tx, id, CapsuleStatus::Running, false).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Makes the move where the row still is as it was `seen`; false where it has changed since.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_over(&self, seen: &HostCapsule, step: TakeOver<'_>) -> Result<bool, StoreError> {
        let versions = (!step.versions.is_empty()).then_some(Json(step.versions));
        let mut tx = self.pool.begin().await?;
        let moved = sqlx::query_as!(
            Moved,
            r#"update capsules set status = $4, generation = coalesce($5, generation), actor = null,
                reason = coalesce($6, case when $4 <> 'running' then reason end),
                versions = coalesce($7, versions), updated_at = now(),
                started_at = coalesce(started_at, case when $4 = 'running' then now() end),
                last_active_at = coalesce(last_active_at, case when $4 = 'running' then now() end)
            from (select id, status, actor, started_at as ran_at from capsules where id = $1 for update) as old
            where capsules.id = old.id and old.status = $2 and generation = $3
            returning team_id, template_name, reason, old.status as was,
                old.ran_at is null as "never_ran!", old.actor as "actor: Json<StoredActor>""#,
            seen.id.uuid(),
            seen.status.as_str(),
            seen.generation,
            step.to.as_str(),
            step.generation,
            step.reason,
            versions as _
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(moved) = moved else { return Ok(false) };
        moved.record(&mut tx, seen.id, step.to, true).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Takes over nothing but the host's count of changes, where the row still is as it was `seen`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_generation(&self, seen: &HostCapsule, generation: i64) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "update capsules set generation = $4 where id = $1 and status = $2 and generation = $3",
            seen.id.uuid(),
            seen.status.as_str(),
            seen.generation,
            generation
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// A host's capsules that have not ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn host_capsules(&self, host: HostId) -> Result<Vec<HostCapsule>, StoreError> {
        let rows = sqlx::query_as!(
            HostCapsuleRecord,
            r#"select id, status, generation, extract(epoch from now() - updated_at)::float8 as "age!"
            from capsules where host_id = $1 and status not in ('stopped', 'error')"#,
            host.uuid()
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(HostCapsuleRecord::read).collect()
    }

    /// One of a host's capsules, whether it has ended or not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn host_capsule(&self, host: HostId, id: CapsuleId) -> Result<Option<HostCapsule>, StoreError> {
        let row = sqlx::query_as!(
            HostCapsuleRecord,
            r#"select id, status, generation, extract(epoch from now() - updated_at)::float8 as "age!"
            from capsules where host_id = $1 and id = $2"#,
            host.uuid(),
            id.uuid()
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(HostCapsuleRecord::read).transpose()
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
