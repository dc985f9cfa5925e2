//! What administrators of the platform see and change, and how accounts end.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_core::{CapsuleId, TeamId, UserId};

use super::accounts::{first_user_turn, make_active};
use super::audit::record;
use super::keys::delete_keys_of;
use super::members::leave_all;
use super::teams::{TeamDeletion, delete_team, stop_capsules};
use super::templates::TemplateInfo;
use super::{Store, StoreError, UserStatus};
use crate::audit::{Actor, Deed, Entry};

/// Key of the lock under which administrators lose their rank, so that one stays.
const LAST_ADMIN_LOCK: i64 = 0x7772_656e_6e03;

/// A team with its figures.
#[derive(Debug, Clone)]
pub struct TeamFigures {
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
    /// When it was deleted.
    pub deleted_at: Option<OffsetDateTime>,
    /// How many people are in it.
    pub member_count: i64,
    /// Whose it is.
    pub owner_name: Option<String>,
    /// Their address.
    pub owner_email: Option<String>,
    /// Capsules that have not ended.
    pub active_sandbox_count: i64,
    /// vCPUs of those that run.
    pub running_vcpus: i64,
    /// Memory of those that run, in MiB.
    pub running_memory_mb: i64,
}

/// An account with its figures.
#[derive(Debug, Clone)]
pub struct UserFigures {
    /// Its id.
    pub id: UserId,
    /// Its address.
    pub email: String,
    /// Its name.
    pub name: String,
    /// Whether it administers the platform.
    pub is_admin: bool,
    /// Where it is in its life.
    pub status: UserStatus,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// Live teams it is in, those it owns included.
    pub teams_joined: i64,
    /// Live teams it owns.
    pub teams_owned: i64,
}

/// How a change of an account went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserChange {
    /// Done, now or before; these capsules are `stopping`, and their hosts have to remove them.
    Done(Vec<CapsuleId>),
    /// There is no such account.
    Unknown,
    /// Nobody would administer the platform any more.
    LastAdmin,
    /// Only an active account can administer the platform.
    NotActive,
    /// The person owns a team that others are in.
    OwnsTeam,
}

struct Person {
    status: UserStatus,
    is_admin: bool,
    email: String,
}

/// An account that nobody else changes until the end of the transaction.
async fn locked(connection: &mut PgConnection, user: UserId) -> Result<Option<Person>, StoreError> {
    // One order for all who change ranks, so that they wait for each other instead of blocking each other.
    sqlx::query!("select pg_advisory_xact_lock($1)", LAST_ADMIN_LOCK).fetch_one(&mut *connection).await?;
    let row = sqlx::query!(
        "select status, is_admin, email from users where id = $1 and status <> 'deleted' for update",
        user.uuid()
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(Person { status: UserStatus::parse(&row.status)?, is_admin: row.is_admin, email: row.email })
    })
    .transpose()
}

/// Whether somebody else administers the platform, or nobody is there who could miss it.
async fn can_lose_admin(
    connection: &mut PgConnection,
    user: UserId,
    alone: bool,
) -> Result<bool, StoreError> {
    let other = sqlx::query_scalar!(
        r#"select exists (select from users where is_admin and status = 'active' and id <> $1)
            or ($2 and not exists (select from users where status = 'active' and id <> $1)) as "other!""#,
        user.uuid(),
        alone
    )
    .fetch_one(connection)
    .await?;
    Ok(other)
}

impl Store {
    /// Teams, live ones first, then newest first; and how many there are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn teams_page(&self, skip: i64, limit: i64) -> Result<(Vec<TeamFigures>, i64), StoreError> {
        let total = sqlx::query_scalar!(
            r#"select count(*) as "count!" from teams where id <> '00000000-0000-0000-0000-000000000000'"#
        )
        .fetch_one(&self.pool);
        // What is skipped is read from the index alone, and the rest for the rows of the page alone.
        let rows = sqlx::query!(
            r#"select teams.id, teams.name, slug, is_byoc, teams.created_at, teams.deleted_at,
                owner.name as "owner_name?", owner.email as "owner_email?",
                (select count(*) from team_members where team_id = page.id) as "member_count!",
                figures.active as "active!", figures.vcpus as "vcpus!", figures.memory_mb as "memory_mb!"
            from (select id from teams where id <> '00000000-0000-0000-0000-000000000000'
                order by (deleted_at is not null), created_at desc, id offset $1 limit $2) as page
            join teams on teams.id = page.id
            left join lateral (select users.name, users.email from team_members owned
                join users on users.id = owned.user_id
                where owned.team_id = page.id and owned.role = 'owner' limit 1) as owner on true
            cross join lateral (select count(*) as active,
                coalesce(sum(vcpus) filter (where status in ('running', 'starting')), 0)::bigint as vcpus,
                coalesce(sum(memory_mb) filter (where status in ('running', 'starting')), 0)::bigint as memory_mb
                from capsules where team_id = page.id and status not in ('stopped', 'error')) as figures
            order by (teams.deleted_at is not null), teams.created_at desc, teams.id"#,
            skip,
            limit
        )
        .fetch_all(&self.pool);
        let (total, rows) = tokio::try_join!(total, rows)?;
        let teams = rows
            .into_iter()
            .map(|row| TeamFigures {
                id: TeamId::from_uuid(row.id),
                name: row.name,
                slug: row.slug,
                is_byoc: row.is_byoc,
                created_at: row.created_at,
                deleted_at: row.deleted_at,
                member_count: row.member_count,
                owner_name: row.owner_name,
                owner_email: row.owner_email,
                active_sandbox_count: row.active,
                running_vcpus: row.vcpus,
                running_memory_mb: row.memory_mb,
            })
            .collect();
        Ok((teams, total))
    }

    /// Accounts that are not deleted, newest first; and how many there are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn users_page(&self, skip: i64, limit: i64) -> Result<(Vec<UserFigures>, i64), StoreError> {
        let total =
            sqlx::query_scalar!(r#"select count(*) as "count!" from users where status <> 'deleted'"#)
                .fetch_one(&self.pool);
        let rows = sqlx::query!(
            r#"select users.id, email, name, is_admin, status, created_at,
                teams.joined as "joined!", teams.owned as "owned!"
            from (select id from users where status <> 'deleted'
                order by created_at desc, id offset $1 limit $2) as page
            join users on users.id = page.id
            cross join lateral (select count(*) as joined,
                count(*) filter (where role = 'owner') as owned
                from team_members members join teams on teams.id = members.team_id
                where members.user_id = page.id and teams.deleted_at is null) as teams
            order by created_at desc, users.id"#,
            skip,
            limit
        )
        .fetch_all(&self.pool);
        let (total, rows) = tokio::try_join!(total, rows)?;
        let users: Result<_, StoreError> = rows
            .into_iter()
            .map(|row| {
                Ok(UserFigures {
                    id: UserId::from_uuid(row.id),
                    email: row.email,
                    name: row.name,
                    is_admin: row.is_admin,
                    status: UserStatus::parse(&row.status)?,
                    created_at: row.created_at,
                    teams_joined: row.joined,
                    teams_owned: row.owned,
                })
            })
            .collect();
        Ok((users?, total))
    }

    /// Makes an account work.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn activate_user(&self, user: UserId, actor: &Actor) -> Result<UserChange, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Some(person) = locked(&mut tx, user).await? else { return Ok(UserChange::Unknown) };
        if person.status != UserStatus::Active {
            make_active(&mut tx, user.uuid()).await?;
            let deed = Deed::UserActivate { user, email: &person.email };
            record(&mut tx, &Entry::of_platform(actor, deed)).await?;
        }
        tx.commit().await?;
        Ok(UserChange::Done(Vec::new()))
    }

    /// Locks an account: its keys end, and the capsules of the teams it owns become `stopping`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn deactivate_user(&self, user: UserId, actor: &Actor) -> Result<UserChange, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Some(person) = locked(&mut tx, user).await? else { return Ok(UserChange::Unknown) };
        if person.status == UserStatus::Disabled {
            return Ok(UserChange::Done(Vec::new()));
        }
        if person.is_admin && !can_lose_admin(&mut tx, user, false).await? {
            return Ok(UserChange::LastAdmin);
        }
        sqlx::query!(
            "update users set status = 'disabled', updated_at = now(), sessions_from = now() where id = $1",
            user.uuid()
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query!("delete from user_tokens where user_id = $1", user.uuid()).execute(&mut *tx).await?;
        let owned = owned_teams(&mut tx, user).await?;
        delete_keys_of(&mut tx, user, actor).await?;
        let stopped = stop_capsules(&mut tx, &owned, actor, "the owner of its team was deactivated").await?;
        let deed = Deed::UserDeactivate { user, email: &person.email };
        record(&mut tx, &Entry::of_platform(actor, deed)).await?;
        tx.commit().await?;
        Ok(UserChange::Done(stopped))
    }

    /// Makes a person an administrator of the platform, or ends that.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_admin(
        &self,
        user: UserId,
        admin: bool,
        actor: &Actor,
    ) -> Result<UserChange, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Some(person) = locked(&mut tx, user).await? else { return Ok(UserChange::Unknown) };
        if person.is_admin == admin {
            return Ok(UserChange::Done(Vec::new()));
        }
        if admin && person.status != UserStatus::Active {
            return Ok(UserChange::NotActive);
        }
        if !admin && !can_lose_admin(&mut tx, user, false).await? {
            return Ok(UserChange::LastAdmin);
        }
        sqlx::query!("update users set is_admin = $2, updated_at = now() where id = $1", user.uuid(), admin)
            .execute(&mut *tx)
            .await?;
        let email = &person.email;
        let deed = if admin { Deed::UserGrant { user, email } } else { Deed::UserRevoke { user, email } };
        record(&mut tx, &Entry::of_platform(actor, deed)).await?;
        tx.commit().await?;
        Ok(UserChange::Done(Vec::new()))
    }

    /// Ends an account as its person wishes: teams that nobody else is in go with it, other memberships and all its keys
    /// end. The row stays until it is purged.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_user(&self, user: UserId, actor: &Actor) -> Result<UserChange, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Some(person) = locked(&mut tx, user).await? else { return Ok(UserChange::Unknown) };
        // Nobody becomes the first to be active while the last one leaves.
        first_user_turn(&mut tx).await?;
        if person.is_admin && !can_lose_admin(&mut tx, user, true).await? {
            return Ok(UserChange::LastAdmin);
        }
        let owned = owned_teams(&mut tx, user).await?;
        let shared = sqlx::query_scalar!(
            r#"select exists (select from team_members where team_id = any($1) and user_id <> $2) as "shared!""#,
            &owned,
            user.uuid()
        )
        .fetch_one(&mut *tx)
        .await?;
        if shared {
            return Ok(UserChange::OwnsTeam);
        }
        let mut stopped = Vec::new();
        delete_keys_of(&mut tx, user, actor).await?;
        for team in owned {
            if let TeamDeletion::Done(capsules) = delete_team(&mut tx, team, actor).await? {
                stopped.extend(capsules);
            }
        }
        leave_all(&mut tx, user, &person.email, actor).await?;
        sqlx::query!("delete from identities where user_id = $1", user.uuid()).execute(&mut *tx).await?;
        sqlx::query!("delete from user_tokens where user_id = $1", user.uuid()).execute(&mut *tx).await?;
        sqlx::query!(
            "update users set status = 'deleted', deleted_at = now(), updated_at = now(), is_admin = false, \
                password_hash = null where id = $1",
            user.uuid()
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(UserChange::Done(stopped))
    }

    /// Forgets one account that was deleted `grace` seconds ago or earlier, and takes its person out of the audit log;
    /// nothing where there is none (any more).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn purge_user(&self, grace: f64) -> Result<Option<UserId>, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Somebody may be in very many entries.
        sqlx::query!("set local statement_timeout = 0").execute(&mut *tx).await?;
        let gone = sqlx::query_scalar!(
            "select id from users where status = 'deleted' and deleted_at <= now() - make_interval(secs => $1) \
             order by deleted_at limit 1 for update skip locked",
            grace
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(gone) = gone else { return Ok(None) };
        let user = UserId::from_uuid(gone);
        sqlx::query!(
            "update audit_logs set actor_id = null, actor_name = 'deleted-user' \
             where actor_type = 'user' and actor_id = $1",
            gone
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query!(
            "update audit_logs set resource_id = null, metadata = metadata - 'email' \
             where resource_type in ('member', 'user') and resource_id = $1",
            user.to_string()
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query!("delete from users where id = $1", gone).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(Some(user))
    }

    /// Has a team bring its own hosts; false where there is no such team.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_byoc(&self, team: TeamId, actor: &Actor) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let was = sqlx::query_scalar!(
            "select is_byoc from teams where id = $1 and deleted_at is null \
             and id <> '00000000-0000-0000-0000-000000000000' for update",
            team.uuid()
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(was) = was else { return Ok(false) };
        if !was {
            sqlx::query!("update teams set is_byoc = true where id = $1", team.uuid())
                .execute(&mut *tx)
                .await?;
            record(&mut tx, &Entry::of_platform(actor, Deed::TeamByoc { team })).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// The finished templates of all teams, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn all_templates(&self) -> Result<Vec<TemplateInfo>, StoreError> {
        self.templates_where(None, None).await
    }
}

async fn owned_teams(connection: &mut PgConnection, user: UserId) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        "select teams.id from teams join team_members members on members.team_id = teams.id \
         where members.user_id = $1 and members.role = 'owner' and teams.deleted_at is null for no key update of teams",
        user.uuid()
    )
    .fetch_all(connection)
    .await?)
}
