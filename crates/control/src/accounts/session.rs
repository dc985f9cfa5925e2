//! Signing in.

use http::StatusCode;
use wrenn_core::{TeamId, UserId};

use super::TeamSeed;
use crate::api::ApiError;
use crate::auth::{ClientAddress, SignedIn, Subject};
use crate::state::App;
use crate::store::UserStatus;

/// A sign-in: the token, and whom it is for.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    pub(crate) token: String,
    pub(crate) user: UserId,
    pub(crate) team: TeamId,
    pub(crate) email: String,
    pub(crate) name: String,
}

/// Signs in with a password. Whatever is wrong takes as long and says the same, until the password is right.
pub(crate) async fn login(
    app: &App,
    client: ClientAddress,
    email: &str,
    password: String,
) -> Result<Issued, ApiError> {
    app.limits.account(email, client).inspect_err(|_| {
        tracing::warn!(%client, account = email, "refused a sign-in: too many wrong passwords");
    })?;
    let found = app.store.login(email).await?;
    let hash = found.as_ref().and_then(|login| login.password_hash.clone());
    let right = app.passwords.matches(password, hash).await.map_err(ApiError::from_hash)?;
    let Some(login) = found.filter(|_| right) else {
        tracing::warn!(%client, account = email, "refused a sign-in: wrong address or password");
        return Err(ApiError::unauthorized("the address or the password is wrong"));
    };
    app.limits.forgive(email, client);
    let refused = |code, message| Err(ApiError::special(StatusCode::FORBIDDEN, code, message));
    match login.status {
        UserStatus::Active => start(app, login.id).await,
        UserStatus::Inactive => {
            refused("account_not_activated", "the account is not activated yet; use the link in the mail")
        }
        UserStatus::Disabled | UserStatus::Deleted => {
            tracing::warn!(%client, account = email, "refused a sign-in: the account is disabled");
            refused("account_disabled", "the account was disabled; ask an administrator of the platform")
        }
    }
}

/// Signs an active person in, in the team where they begin. Whoever is in none gets one.
pub(crate) async fn start(app: &App, user: UserId) -> Result<Issued, ApiError> {
    let session =
        app.store.session(user, TeamId::PLATFORM).await?.ok_or_else(ApiError::account_deactivated)?;
    let home = app.store.home_team(user, &TeamSeed::of(&session.name).as_new()).await?;
    let team = home.ok_or_else(ApiError::account_deactivated)?;
    issue(app, user, team).await
}

/// A fresh token for the same person and team, or for the team where they begin, where they have left that one.
pub(crate) async fn reissue(app: &App, person: &SignedIn) -> Result<Issued, ApiError> {
    match person.role {
        Some(_) => issue(app, person.user, person.team).await,
        None => start(app, person.user).await,
    }
}

/// A token for another team of the person.
pub(crate) async fn switch(app: &App, person: &SignedIn, team: TeamId) -> Result<Issued, ApiError> {
    if app.store.team(team).await?.is_none() {
        return Err(ApiError::not_found(format!("there is no team {team} (any more)")));
    }
    issue(app, person.user, team).await
}

async fn issue(app: &App, user: UserId, team: TeamId) -> Result<Issued, ApiError> {
    let session = app.store.session(user, team).await?.ok_or_else(ApiError::account_deactivated)?;
    if session.status != UserStatus::Active {
        return Err(ApiError::account_deactivated());
    }
    let role = session.role.ok_or_else(|| ApiError::forbidden("you are not in this team"))?;
    let (email, name) = (session.email, session.name);
    let subject =
        Subject { user, team, role: Some(role), email: &email, name: &name, is_admin: session.is_admin };
    let token = app.tokens.sign(subject).map_err(|error| {
        tracing::error!(%error, "a token could not be signed");
        ApiError::internal()
    })?;
    Ok(Issued { token, user, team, email, name })
}
