//! Who is in a team, and as what.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_core::{TeamId, UserId};

use super::accounts::hold_active;
use super::audit::record;
use super::mails::{NewMail, post};
use super::teams::hold_team;
use super::{Role, Store, StoreError};
use crate::audit::{Actor, Deed, Entry};

/// A member of a team.
#[derive(Debug, Clone)]
pub struct MemberRow {
    /// Their account.
    pub user: UserId,
    /// Their name.
    pub name: String,
    /// Their address.
    pub email: String,
    /// What they may do.
    pub role: Role,
    /// When they joined.
    pub joined_at: OffsetDateTime,
}

/// How a change of the membership went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberChange {
    /// Done, now or before.
    Done,
    /// They are not in the team.
    Unknown,
    /// They own the team.
    IsOwner,
}

/// How joining a team went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    /// They are in it since then.
    Done(OffsetDateTime),
    /// They were in it already.
    Member,
    /// The team is gone, or the account is not active (any more).
    Gone,
}

struct Membership {
    email: String,
    role: Role,
}

/// A membership that nobody else changes until the end of the transaction.
async fn locked(
    connection: &mut PgConnection,
    team: TeamId,
    user: UserId,
) -> Result<Option<Membership>, StoreError> {
    let row = sqlx::query!(
        "select users.email, members.role from team_members members join users on users.id = members.user_id \
         where members.team_id = $1 and members.user_id = $2 for update of members",
        team.uuid(),
        user.uuid()
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok(Membership { email: row.email, role: Role::parse(&row.role)? })).transpose()
}

async fn remove(connection: &mut PgConnection, team: TeamId, user: UserId) -> Result<(), StoreError> {
    sqlx::query!("delete from team_members where team_id = $1 and user_id = $2", team.uuid(), user.uuid())
        .execute(connection)
        .await?;
    Ok(())
}

/// Ends all memberships of a person, for whom it is not the owner's, and says so in the logs of the teams.
pub(super) async fn leave_all(
    connection: &mut PgConnection,
    user: UserId,
    email: &str,
    actor: &Actor,
) -> Result<(), StoreError> {
    let left: Vec<Uuid> = sqlx::query_scalar!(
        "delete from team_members using teams where team_members.team_id = teams.id and user_id = $1 \
         and role <> 'owner' and teams.deleted_at is null returning team_members.team_id",
        user.uuid()
    )
    .fetch_all(&mut *connection)
    .await?;
    for team in left {
        let entry = Entry::new(TeamId::from_uuid(team), actor, Deed::MemberLeave { user, email });
        record(connection, &entry).await?;
    }
    Ok(())
}

impl Store {
    /// The members of a team, in the order of joining.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn members(&self, team: TeamId) -> Result<Vec<MemberRow>, StoreError> {
        let mut reading = self.kept.take().await?;
        let rows = sqlx::query!(
            "select users.id, name, email, role, joined_at from team_members members \
             join users on users.id = members.user_id where members.team_id = $1 \
             order by members.joined_at, members.user_id",
            team.uuid()
        )
        .fetch_all(&mut *reading)
        .await?;
        reading.done();
        rows.into_iter()
            .map(|row| {
                Ok(MemberRow {
                    user: UserId::from_uuid(row.id),
                    name: row.name,
                    email: row.email,
                    role: Role::parse(&row.role)?,
                    joined_at: row.joined_at,
                })
            })
            .collect()
    }

    /// Takes an active person into a live team as a member.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_member(
        &self,
        team: TeamId,
        user: UserId,
        email: &str,
        actor: &Actor,
        mail: Option<&NewMail<'_>>,
    ) -> Result<Joining, StoreError> {
        let mut tx = self.pool.begin().await?;
        if !hold_active(&mut tx, user).await? || !hold_team(&mut tx, team).await? {
            return Ok(Joining::Gone);
        }
        let joined = sqlx::query_scalar!(
            "insert into team_members (team_id, user_id, role) values ($1, $2, 'member') \
             on conflict (team_id, user_id) do nothing returning joined_at",
            team.uuid(),
            user.uuid()
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(joined) = joined else { return Ok(Joining::Member) };
        let deed = Deed::MemberAdd { user, email, role: Role::Member.as_str() };
        record(&mut tx, &Entry::new(team, actor, deed)).await?;
        if let Some(mail) = mail {
            post(&mut tx, mail).await?;
        }
        tx.commit().await?;
        Ok(Joining::Done(joined))
    }

    /// Gives a member another role.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_role(
        &self,
        team: TeamId,
        user: UserId,
        role: Role,
        actor: &Actor,
    ) -> Result<MemberChange, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Some(member) = locked(&mut tx, team, user).await? else { return Ok(MemberChange::Unknown) };
        if member.role == Role::Owner {
            return Ok(MemberChange::IsOwner);
        }
        if member.role != role {
            sqlx::query!(
                "update team_members set role = $3 where team_id = $1 and user_id = $2",
                team.uuid(),
                user.uuid(),
                role.as_str()
            )
            .execute(&mut *tx)
            .await?;
            let deed = Deed::MemberRole { user, email: &member.email, role: role.as_str() };
            record(&mut tx, &Entry::new(team, actor, deed)).await?;
        }
        tx.commit().await?;
        Ok(MemberChange::Done)
    }

    /// Ends a membership: as a removal, or as a leave where the member does it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_membership(
        &self,
        team: TeamId,
        user: UserId,
        actor: &Actor,
    ) -> Result<MemberChange, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Some(member) = locked(&mut tx, team, user).await? else { return Ok(MemberChange::Unknown) };
        if member.role == Role::Owner {
            return Ok(MemberChange::IsOwner);
        }
        remove(&mut tx, team, user).await?;
        let email = &member.email;
        let deed = if actor.uuid() == Some(user.uuid()) {
            Deed::MemberLeave { user, email }
        } else {
            Deed::MemberRemove { user, email }
        };
        record(&mut tx, &Entry::new(team, actor, deed)).await?;
        tx.commit().await?;
        Ok(MemberChange::Done)
    }
}
