//! Teams and their end.

use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_core::{CapsuleId, CapsuleStatus, TeamId, UserId};

use super::accounts::hold_active;
use super::audit::record;
use super::outcomes::Moved;
use super::{Role, Store, StoreError};
use crate::audit::{Actor, Deed, Entry, StoredActor};

/// A team.
#[derive(Debug, Clone)]
pub struct TeamRow {
    /// Its id.
    pub id: TeamId,
    /// Its name.
    pub name: String,
    /// Its immutable short name.
    pub slug: String,
    /// Whether it brings its own hosts.
    pub is_byoc: bool,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

/// A team about to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewTeam<'a> {
    /// Its id.
    pub id: TeamId,
    /// Its name, valid.
    pub name: &'a str,
    /// Its slug, random.
    pub slug: &'a str,
}

/// How a deletion went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TeamDeletion {
    /// The team is gone; these capsules are `stopping`, and their hosts have to remove them.
    Done(Vec<CapsuleId>),
    /// There is no such team (any more).
    Unknown,
}

/// Keeps a team from being deleted until the end of the transaction; false where it is gone.
///
/// Rows are locked in one order by all who lock several: people, their tokens, teams, keys, capsules.
pub(super) async fn hold_team(connection: &mut PgConnection, team: TeamId) -> Result<bool, StoreError> {
    let found =
        sqlx::query!("select id from teams where id = $1 and deleted_at is null for share", team.uuid())
            .fetch_optional(connection)
            .await?;
    Ok(found.is_some())
}

pub(super) async fn insert_team(
    connection: &mut PgConnection,
    team: &NewTeam<'_>,
    owner: UserId,
    default: bool,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into teams (id, name, slug) values ($1, $2, $3)",
        team.id.uuid(),
        team.name,
        team.slug
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "insert into team_members (team_id, user_id, role, is_default) values ($1, $2, 'owner', $3)",
        team.id.uuid(),
        owner.uuid(),
        default
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes everything of a team go: its keys and templates at once, its capsules become `stopping`. The row stays, for its
/// slug; so do its members, who can do nothing with it.
pub(super) async fn delete_team(
    connection: &mut PgConnection,
    team: Uuid,
    actor: &Actor,
) -> Result<TeamDeletion, StoreError> {
    let done = sqlx::query!(
        "update teams set deleted_at = now() where id = $1 and deleted_at is null \
         and id <> '00000000-0000-0000-0000-000000000000'",
        team
    )
    .execute(&mut *connection)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(TeamDeletion::Unknown);
    }
    sqlx::query!("update team_members set is_default = false where team_id = $1 and is_default", team)
        .execute(&mut *connection)
        .await?;
    sqlx::query!("delete from api_keys where team_id = $1", team).execute(&mut *connection).await?;
    sqlx::query!(
        "with gone as (delete from templates where team_id = $1 returning host_id, team_id, id) \
         insert into template_deletions (host_id, team_id, template_id) \
         select host_id, team_id, id from gone where host_id is not null on conflict do nothing",
        team
    )
    .execute(&mut *connection)
    .await?;
    let capsules = stop_capsules(connection, &[team], actor, "its team was deleted").await?;
    let id = TeamId::from_uuid(team);
    record(connection, &Entry::of_platform(actor, Deed::TeamDelete { team: id })).await?;
    Ok(TeamDeletion::Done(capsules))
}

/// Makes all live capsules of some teams `stopping`; their ids.
pub(super) async fn stop_capsules(
    connection: &mut PgConnection,
    teams: &[Uuid],
    actor: &Actor,
    reason: &str,
) -> Result<Vec<CapsuleId>, StoreError> {
    let stopped = sqlx::query!(
        r#"update capsules set status = 'stopping', reason = $3, actor = $2, updated_at = now()
        from (select id, status, actor, started_at as ran_at from capsules
            where team_id = any($1) and status not in ('stopping', 'stopped', 'error') order by id for update) as old
        where capsules.id = old.id
        returning capsules.id, team_id, template_name, reason, old.status as was,
            old.ran_at is null as "never_ran!", old.actor as "actor: Json<StoredActor>""#,
        teams,
        actor.stored().map(Json) as _,
        reason
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut ids = Vec::with_capacity(stopped.len());
    for row in stopped {
        let id = CapsuleId::from_uuid(row.id);
        let moved = Moved {
            team_id: row.team_id,
            template_name: row.template_name,
            reason: row.reason,
            was: row.was,
            never_ran: row.never_ran,
            actor: row.actor,
        };
        moved.record(connection, id, CapsuleStatus::Stopping, false).await?;
        ids.push(id);
    }
    Ok(ids)
}

impl Store {
    /// Makes a team with its owner; nothing where their account is not active (any more).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create_team(
        &self,
        team: &NewTeam<'_>,
        owner: UserId,
    ) -> Result<Option<TeamRow>, StoreError> {
        let mut tx = self.pool.begin().await?;
        if !hold_active(&mut tx, owner).await? {
            return Ok(None);
        }
        insert_team(&mut tx, team, owner, false).await?;
        tx.commit().await?;
        self.team(team.id).await
    }

    /// A team that is not deleted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn team(&self, team: TeamId) -> Result<Option<TeamRow>, StoreError> {
        let row = sqlx::query!(
            "select id, name, slug, is_byoc, created_at from teams where id = $1 and deleted_at is null",
            team.uuid()
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| TeamRow {
            id: TeamId::from_uuid(row.id),
            name: row.name,
            slug: row.slug,
            is_byoc: row.is_byoc,
            created_at: row.created_at,
        }))
    }

    /// The live teams that a person is in, in the order of joining.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn teams_of(&self, user: UserId) -> Result<Vec<(TeamRow, Role)>, StoreError> {
        let mut reading = self.kept.take().await?;
        let rows = sqlx::query!(
            "select teams.id, name, slug, is_byoc, created_at, role from team_members members \
             join teams on teams.id = members.team_id \
             where members.user_id = $1 and teams.deleted_at is null order by members.joined_at, teams.id",
            user.uuid()
        )
        .fetch_all(&mut *reading)
        .await?;
        reading.done();
        rows.into_iter()
            .map(|row| {
                let team = TeamRow {
                    id: TeamId::from_uuid(row.id),
                    name: row.name,
                    slug: row.slug,
                    is_byoc: row.is_byoc,
                    created_at: row.created_at,
                };
                Ok((team, Role::parse(&row.role)?))
            })
            .collect()
    }

    /// Renames a team; false where there is none (any more).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rename_team(&self, team: TeamId, name: &str, actor: &Actor) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let old = sqlx::query_scalar!(
            "update teams set name = $2 from (select id, name from teams where id = $1 for update) as old \
             where teams.id = old.id and teams.deleted_at is null returning old.name",
            team.uuid(),
            name
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(old) = old else { return Ok(false) };
        if old != name {
            let deed = Deed::TeamRename { team, old: &old, new: name };
            record(&mut tx, &Entry::new(team, actor, deed)).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Deletes a team with all that it has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_team(&self, team: TeamId, actor: &Actor) -> Result<TeamDeletion, StoreError> {
        let mut tx = self.pool.begin().await?;
        let done = delete_team(&mut tx, team.uuid(), actor).await?;
        tx.commit().await?;
        Ok(done)
    }

    /// The team of the machine's own key, made where there is none; true where it was made.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ensure_local_team(&self, new: &NewTeam<'_>) -> Result<(TeamId, bool), StoreError> {
        let mut tx = self.pool.begin().await?;
        let found = sqlx::query_scalar!(
            r#"select teams.id as "id?" from deployment
            left join teams on teams.id = local_team and teams.deleted_at is null for update of deployment"#
        )
        .fetch_one(&mut *tx)
        .await?;
        if let Some(team) = found {
            return Ok((TeamId::from_uuid(team), false));
        }
        sqlx::query!(
            "insert into teams (id, name, slug) values ($1, $2, $3)",
            new.id.uuid(),
            new.name,
            new.slug
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query!("update deployment set local_team = $1", new.id.uuid()).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok((new.id, true))
    }

    /// Makes a team without members, whose keys are made on the machine.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_unowned_team(&self, new: &NewTeam<'_>) -> Result<(), StoreError> {
        sqlx::query!(
            "insert into teams (id, name, slug) values ($1, $2, $3)",
            new.id.uuid(),
            new.name,
            new.slug
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
