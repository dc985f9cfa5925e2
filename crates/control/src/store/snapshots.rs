//! Templates in the making and on their way out.
//!
//! ```text
//!  begin ──► creating ──► finish ──► active ──► begin_delete ──► deleting ──► end_delete
//!               │                     ▲ │                          │  │
//!               └► abandon            │ └► replaced by another     │  │
//!                                     └──────── undo_delete ◄──────┘  └► expire
//! ```
//!
//! Whatever leaves without its host having said that the files are gone is remembered in `template_deletions`, and the
//! link to the host has them removed.

use std::time::Duration;

use sqlx::types::Json;
use uuid::Uuid;
use wrenn_core::{CapsuleId, CapsuleStatus, HostId, TeamId};

use super::audit::record;
use super::capsules::status;
use super::teams::hold_team;
use super::{Store, StoreError};
use crate::audit::{Actor, Deed, Entry, StoredActor};

/// Age at which a template that is neither finished nor gone is given up: nobody works on it any more.
pub const UNFINISHED: Duration = Duration::from_secs(900);
/// Pause between two requests to a host to remove the same files.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// A template about to be made from a capsule.
#[derive(Debug, Clone, Copy)]
pub struct NewSnapshot<'a> {
    /// The owning team, which is the capsule's.
    pub team: TeamId,
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: &'a str,
    /// The capsule it is made from.
    pub capsule: CapsuleId,
    /// Whether it may take the place of a template of the same name.
    pub overwrite: bool,
    /// Who asks for it.
    pub actor: &'a Actor,
}

/// How a snapshot began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// The name is reserved and the capsule is `snapshotting`.
    Yes {
        /// What the capsule was before.
        was: CapsuleStatus,
    },
    /// The team has a template of that name.
    NameTaken,
    /// A template of that name is being made.
    InTheMaking,
    /// The capsule is neither running nor paused, or its team is gone.
    WrongState,
}

/// What a host says of a template that it has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Bytes on the host's disk.
    pub size_bytes: i64,
    /// vCPUs of every capsule made from it.
    pub vcpus: i64,
    /// Memory in MiB of every capsule made from it.
    pub memory_mb: i64,
    /// Least disk in MiB of every capsule made from it.
    pub disk_mb: i64,
}

/// A template that somebody is making or deleting.
struct Handled {
    name: String,
    actor: Option<Json<StoredActor>>,
}

fn actor_of(stored: Option<Json<StoredActor>>) -> Actor {
    Actor::from(stored.map(|Json(stored)| stored))
}

/// The end of a template, as a deed.
fn deletion(team: TeamId, name: &str) -> Deed<'_> {
    if team == TeamId::PLATFORM { Deed::TemplateDelete { name } } else { Deed::SnapshotDelete { name } }
}

impl Store {
    /// Reserves a name and makes the capsule `snapshotting`, both or neither.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin_snapshot(&self, new: &NewSnapshot<'_>) -> Result<Begun, StoreError> {
        let mut tx = self.pool.begin().await?;
        if !hold_team(&mut tx, new.team).await? {
            return Ok(Begun::WrongState);
        }
        expire(&mut tx, None, Some((new.team, new.name))).await?;
        let was = sqlx::query_scalar!(
            "update capsules set status = $2, updated_at = now() \
             from (select id, status from capsules where id = $1 and status in ('running', 'paused') for update) was \
             where capsules.id = was.id returning was.status",
            new.capsule.uuid(),
            CapsuleStatus::Snapshotting.as_str()
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(was) = was else { return Ok(Begun::WrongState) };
        // Sizes are filled in when it is finished.
        let reserved = sqlx::query!(
            "insert into templates (team_id, id, name, kind, state, host_id, disk_mb, metadata, default_user, \
                default_env, actor) \
             select $1, $2, $3, 'snapshot', 'creating', host_id, 0, versions, default_user, default_env, $5 \
             from capsules where id = $4 on conflict do nothing",
            new.team.uuid(),
            new.id,
            new.name,
            new.capsule.uuid(),
            new.actor.stored().map(Json) as _
        )
        .execute(&mut *tx)
        .await?;
        if reserved.rows_affected() == 0 {
            return Ok(Begun::InTheMaking);
        }
        // Only now: with the name reserved, no other template of that name can be finished.
        if !new.overwrite && is_taken(&mut tx, new).await? {
            return Ok(Begun::NameTaken);
        }
        tx.commit().await?;
        Ok(Begun::Yes { was: status(&was)? })
    }

    /// Makes a template usable, in place of an older one of the same name. False where it was given up meanwhile.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn finish_snapshot(&self, team: TeamId, id: Uuid, made: Made) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let made_by = sqlx::query_as!(
            Handled,
            r#"select name, actor as "actor: Json<StoredActor>" from templates
            where team_id = $1 and id = $2 and state = 'creating' for update"#,
            team.uuid(),
            id
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(Handled { name, actor }) = made_by else { return Ok(false) };
        sqlx::query!(
            "with old as (delete from templates where team_id = $1 and name = $2 and state <> 'creating' \
                returning host_id, team_id, id) \
             insert into template_deletions (host_id, team_id, template_id) \
             select host_id, team_id, id from old where host_id is not null on conflict do nothing",
            team.uuid(),
            name
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query!(
            "update templates set state = 'active', state_since = now(), created_at = now(), actor = null, \
                size_bytes = $3, vcpus = $4, memory_mb = $5, disk_mb = $6 where team_id = $1 and id = $2",
            team.uuid(),
            id,
            made.size_bytes,
            made.vcpus,
            made.memory_mb,
            made.disk_mb
        )
        .execute(&mut *tx)
        .await?;
        let actor = actor_of(actor);
        record(&mut tx, &Entry::new(team, &actor, Deed::SnapshotCreate { name: &name })).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Gives up a template in the making, for this reason. Its files are to be removed after `wait`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn abandon_snapshot(
        &self,
        team: TeamId,
        id: Uuid,
        wait: Duration,
        cause: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let gone = sqlx::query_as!(
            Handled,
            r#"with gone as (delete from templates where team_id = $1 and id = $2 and state = 'creating'
                returning host_id, team_id, id, name, actor),
            left_over as (insert into template_deletions (host_id, team_id, template_id, due_at)
                select host_id, team_id, id, now() + make_interval(secs => $3) from gone where host_id is not null
                on conflict do nothing)
            select name, actor as "actor: Json<StoredActor>" from gone"#,
            team.uuid(),
            id,
            wait.as_secs_f64()
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(Handled { name, actor }) = gone {
            let actor = actor_of(actor);
            let entry = Entry::new(team, &actor, Deed::SnapshotCreate { name: &name });
            record(&mut tx, &Entry { failure: Some(cause), ..entry }).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Takes a team's template out of use, so that its files can be removed; its id and its host. `None` where the team
    /// has no such template.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin_delete(
        &self,
        team: TeamId,
        name: &str,
        actor: &Actor,
    ) -> Result<Option<(Uuid, Option<HostId>)>, StoreError> {
        let row = sqlx::query!(
            "update templates set state = 'deleting', state_since = now(), actor = $3 \
             where team_id = $1 and name = $2 and state = 'active' and not protected returning id, host_id",
            team.uuid(),
            name,
            actor.stored().map(Json) as _
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| (row.id, row.host_id.map(HostId::from_uuid))))
    }

    /// Forgets a template that was taken out of use. Where its files may be `left`, its host is to be asked until it says
    /// that they are gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_delete(&self, team: TeamId, id: Uuid, left: bool) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let gone = sqlx::query_as!(
            Handled,
            r#"with gone as (delete from templates where team_id = $1 and id = $2 and state = 'deleting'
                returning host_id, team_id, id, name, actor),
            left_over as (insert into template_deletions (host_id, team_id, template_id)
                select host_id, team_id, id from gone where $3 and host_id is not null on conflict do nothing)
            select name, actor as "actor: Json<StoredActor>" from gone"#,
            team.uuid(),
            id,
            left
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(Handled { name, actor }) = gone {
            record(&mut tx, &Entry::new(team, &actor_of(actor), deletion(team, &name))).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Puts a template back into use whose files could not be removed, for this reason.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn undo_delete(&self, team: TeamId, id: Uuid, cause: &str) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let kept = sqlx::query_as!(
            Handled,
            r#"update templates set state = 'active', state_since = now(), actor = null
            from (select id, actor from templates where team_id = $1 and id = $2 for update) as old
            where templates.team_id = $1 and templates.id = old.id and state = 'deleting'
            returning name, old.actor as "actor: Json<StoredActor>""#,
            team.uuid(),
            id
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(Handled { name, actor }) = kept {
            let actor = actor_of(actor);
            let entry = Entry { failure: Some(cause), ..Entry::new(team, &actor, deletion(team, &name)) };
            record(&mut tx, &entry).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Remembers files that a host is to remove.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remember_deletion(&self, host: HostId, team: TeamId, id: Uuid) -> Result<(), StoreError> {
        sqlx::query!(
            "insert into template_deletions (host_id, team_id, template_id) values ($1, $2, $3) \
             on conflict do nothing",
            host.uuid(),
            team.uuid(),
            id
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The templates whose files a host is to be asked to remove now. They fall due again after a while, unless
    /// [`Store::deletion_done`] or [`Store::release_deletion`] comes first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim_deletions(&self, host: HostId) -> Result<Vec<(TeamId, Uuid)>, StoreError> {
        let mut tx = self.pool.begin().await?;
        expire(&mut tx, Some(host), None).await?;
        let rows = sqlx::query!(
            "update template_deletions set due_at = now() + make_interval(secs => $2) \
             where host_id = $1 and due_at <= now() returning team_id, template_id",
            host.uuid(),
            ASK_AGAIN.as_secs_f64()
        )
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(rows.into_iter().map(|row| (TeamId::from_uuid(row.team_id), row.template_id)).collect())
    }

    /// Makes files due at once that a host could not be asked about.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn release_deletion(&self, host: HostId, team: TeamId, id: Uuid) -> Result<(), StoreError> {
        sqlx::query!(
            "update template_deletions set due_at = now() \
             where host_id = $1 and team_id = $2 and template_id = $3",
            host.uuid(),
            team.uuid(),
            id
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Forgets files that are gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn deletion_done(&self, host: HostId, team: TeamId, id: Uuid) -> Result<(), StoreError> {
        sqlx::query!(
            "delete from template_deletions where host_id = $1 and team_id = $2 and template_id = $3",
            host.uuid(),
            team.uuid(),
            id
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

async fn is_taken(tx: &mut sqlx::PgTransaction<'_>, new: &NewSnapshot<'_>) -> Result<bool, StoreError> {
    let taken = sqlx::query_scalar!(
        r#"select exists (select from templates where team_id = $1 and name = $2 and state <> 'creating')
            as "taken!""#,
        new.team.uuid(),
        new.name
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(taken)
}

/// Gives up what has been unfinished for too long, on one host or under one name.
async fn expire(
    tx: &mut sqlx::PgTransaction<'_>,
    host: Option<HostId>,
    name: Option<(TeamId, &str)>,
) -> Result<(), StoreError> {
    let gone = sqlx::query!(
        r#"with gone as (delete from templates where state <> 'active'
            and state_since < now() - make_interval(secs => $4)
            and ($1::uuid is null or host_id = $1)
            and ($2::uuid is null or (team_id = $2 and name = $3)) returning host_id, team_id, id, name, state, actor),
        left_over as (insert into template_deletions (host_id, team_id, template_id)
            select host_id, team_id, id from gone where host_id is not null on conflict do nothing)
        select team_id, name, state, actor as "actor: Json<StoredActor>" from gone"#,
        host.map(HostId::uuid),
        name.map(|(team, _)| team.uuid()),
        name.map(|(_, name)| name),
        UNFINISHED.as_secs_f64()
    )
    .fetch_all(&mut **tx)
    .await?;
    for template in gone {
        let (team, actor) = (TeamId::from_uuid(template.team_id), actor_of(template.actor));
        let entry = if template.state == "creating" {
            let made = Entry::new(team, &actor, Deed::SnapshotCreate { name: &template.name });
            Entry { failure: Some("it took too long and was given up"), ..made }
        } else {
            Entry::new(team, &actor, deletion(team, &template.name))
        };
        record(tx, &entry).await?;
    }
    Ok(())
}
