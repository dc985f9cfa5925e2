//! What administrators of the platform do to people and teams.

use wrenn_core::{TeamId, UserId};

use crate::api::ApiError;
use crate::auth::Administrator;
use crate::capsules;
use crate::state::App;
use crate::store::UserChange;
use crate::teams;

/// Lets an account work, or locks it.
pub(crate) async fn set_active(
    app: &App,
    admin: &Administrator,
    user: UserId,
    active: bool,
) -> Result<(), ApiError> {
    let actor = admin.0.actor();
    if active {
        return done(app, user, app.store.activate_user(user, &actor).await?);
    }
    if user == admin.0.user {
        return Err(ApiError::invalid("active: you cannot deactivate yourself; ask another administrator"));
    }
    done(app, user, app.store.deactivate_user(user, &actor).await?)
}

/// Makes somebody an administrator, or ends that.
pub(crate) async fn set_admin(
    app: &App,
    admin: &Administrator,
    user: UserId,
    to: bool,
) -> Result<(), ApiError> {
    done(app, user, app.store.set_admin(user, to, &admin.0.actor()).await?)
}

fn done(app: &App, user: UserId, change: UserChange) -> Result<(), ApiError> {
    match change {
        UserChange::Done(stopped) => {
            capsules::let_go(app, stopped);
            Ok(())
        }
        UserChange::Unknown => Err(ApiError::not_found(format!("there is no account {user}"))),
        UserChange::LastAdmin => Err(ApiError::invalid(
            "this is the last administrator of the platform; make somebody else one first",
        )),
        UserChange::NotActive => Err(ApiError::invalid(
            "admin: only an active account can administer the platform; activate it first",
        )),
        UserChange::OwnsTeam => Err(ApiError::conflict("the account owns a team that others are in")),
    }
}

/// Has a team bring its own hosts. There is no way back: its capsules could stay on hosts that it may not use.
pub(crate) async fn set_byoc(
    app: &App,
    admin: &Administrator,
    team: TeamId,
    enabled: bool,
) -> Result<(), ApiError> {
    if !enabled {
        return Err(ApiError::invalid(
            "enabled must be true: a team that brings its own hosts keeps doing so",
        ));
    }
    refuse_platform(team)?;
    if app.store.set_byoc(team, &admin.0.actor()).await? {
        return Ok(());
    }
    Err(ApiError::not_found(format!("there is no team {team} (any more)")))
}

pub(crate) async fn delete_team(app: &App, admin: &Administrator, team: TeamId) -> Result<(), ApiError> {
    refuse_platform(team)?;
    teams::delete(app, &admin.0, team).await
}

fn refuse_platform(team: TeamId) -> Result<(), ApiError> {
    if team == TeamId::PLATFORM {
        return Err(ApiError::invalid("id: this is the platform's own team"));
    }
    Ok(())
}
