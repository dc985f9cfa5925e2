//! Teams and who is in them.

use time::Duration;
use wrenn_core::{TeamId, UserId};
use wrenn_mail::Letter;

use crate::accounts::TeamSeed;
use crate::api::ApiError;
use crate::auth::SignedIn;
use crate::capsules;
use crate::state::App;
use crate::store::{Joining, Login, MemberChange, MemberRow, Role, TeamDeletion, TeamRow, UserStatus};

/// Of a letter that only tells of something.
const NOTICE_LIFE: Duration = Duration::days(1);

fn gone(team: TeamId) -> ApiError {
    ApiError::not_found(format!("there is no team {team} (any more)"))
}

pub(crate) async fn create(app: &App, person: &SignedIn, name: String) -> Result<TeamRow, ApiError> {
    let made = app.store.create_team(&TeamSeed::named(name).as_new(), person.user).await?;
    made.ok_or_else(ApiError::account_deactivated)
}

/// The team of a member, with all of them.
pub(crate) async fn show(app: &App, person: &SignedIn) -> Result<(TeamRow, Vec<MemberRow>), ApiError> {
    let team = app.store.team(person.team).await?.ok_or_else(|| gone(person.team))?;
    let members = app.store.members(person.team).await?;
    Ok((team, members))
}

pub(crate) async fn rename(app: &App, person: &SignedIn, name: &str) -> Result<(), ApiError> {
    if app.store.rename_team(person.team, name, &person.actor()).await? {
        return Ok(());
    }
    Err(gone(person.team))
}

/// Deletes a team with all that it has. Its capsules go in the background.
pub(crate) async fn delete(app: &App, person: &SignedIn, team: TeamId) -> Result<(), ApiError> {
    match app.store.delete_team(team, &person.actor()).await? {
        TeamDeletion::Done(capsules) => {
            capsules::let_go(app, capsules);
            tracing::info!(team.id = %team, user.id = %person.user, "team {team} was deleted");
            Ok(())
        }
        TeamDeletion::Unknown => Err(gone(team)),
    }
}

/// Takes the person with this address into the team.
pub(crate) async fn add(app: &App, person: &SignedIn, email: &str) -> Result<MemberRow, ApiError> {
    let unknown = || ApiError::not_found(format!("there is no active account with the address {email}"));
    let Login { id, name, status, .. } = app.store.login(email).await?.ok_or_else(unknown)?;
    if status != UserStatus::Active {
        return Err(unknown());
    }
    let team = app.store.team(person.team).await?.ok_or_else(|| gone(person.team))?;
    let letter = Letter::AddedToTeam {
        name: name.clone(),
        team: team.name,
        by: person.name.clone(),
        link: format!("{}/dashboard", app.config.dashboard_url),
    };
    let sealed = app.post.seal(&app.vault, email, &letter, NOTICE_LIFE);
    let mail = sealed.as_ref().map(|letter| letter.as_new());
    let actor = person.actor();
    let joined_at = match app.store.add_member(person.team, id, email, &actor, mail.as_ref()).await? {
        Joining::Done(joined_at) => joined_at,
        Joining::Member => return Err(ApiError::invalid(format!("email {email} is in the team already"))),
        Joining::Gone => return Err(unknown()),
    };
    app.post.nudge();
    Ok(MemberRow { user: id, name, email: email.to_owned(), role: Role::Member, joined_at })
}

pub(crate) async fn set_role(app: &App, person: &SignedIn, user: UserId, role: &str) -> Result<(), ApiError> {
    let role = match role {
        "admin" => Role::Admin,
        "member" => Role::Member,
        _ => return Err(ApiError::invalid("role must be admin or member")),
    };
    let change = app.store.set_role(person.team, user, role, &person.actor()).await?;
    changed(change, "the role of the team's owner cannot be changed")
}

pub(crate) async fn remove(app: &App, person: &SignedIn, user: UserId) -> Result<(), ApiError> {
    let change = app.store.end_membership(person.team, user, &person.actor()).await?;
    changed(change, "the team's owner cannot be removed")
}

pub(crate) async fn leave(app: &App, person: &SignedIn) -> Result<(), ApiError> {
    let change = app.store.end_membership(person.team, person.user, &person.actor()).await?;
    changed(change, "the owner cannot leave the team; delete it instead")
}

fn changed(change: MemberChange, about_owner: &str) -> Result<(), ApiError> {
    match change {
        MemberChange::Done => Ok(()),
        MemberChange::Unknown => Err(ApiError::not_found("this person is not in the team")),
        MemberChange::IsOwner => Err(ApiError::forbidden(about_owner)),
    }
}
