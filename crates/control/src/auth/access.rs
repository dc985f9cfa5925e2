//! What handlers name in their signatures to be called by somebody, and by nobody else.

use axum::extract::{FromRequestParts, Path};
use http::HeaderMap;
use http::request::Parts;
use time::OffsetDateTime;
use wrenn_core::{TeamId, UserId};

use super::client::address;
use super::keys::{KEY_HEADER, is_key, shown};
use super::tokens::{Claims, bearer};
use crate::api::ApiError;
use crate::audit::Actor;
use crate::state::App;
use crate::store::{Role, Session, StoreError, UserStatus};

/// Who acts for a team: a program with its key, or a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whose resources the request is about.
    pub team: TeamId,
    /// Who makes the request.
    pub actor: Actor,
}

/// A person with an active account.
#[derive(Debug, Clone)]
pub struct SignedIn {
    /// Their account.
    pub user: UserId,
    /// Their name.
    pub name: String,
    /// Their address.
    pub email: String,
    /// Whether they administer the platform.
    pub is_admin: bool,
    /// The team that their token is for.
    pub team: TeamId,
    /// Their role in that team; `None` where it is gone or they are not in it (any more).
    pub role: Option<Role>,
    team_deleted: bool,
}

impl SignedIn {
    /// The person as one who acts.
    pub fn actor(&self) -> Actor {
        Actor::User { id: self.user, name: self.name.clone() }
    }

    /// The person as one who acts for their team.
    ///
    /// # Errors
    /// 403 `no_team` where they are not in it (any more).
    pub fn caller(&self) -> Result<Caller, ApiError> {
        match self.role {
            Some(_) => Ok(Caller { team: self.team, actor: self.actor() }),
            None => Err(ApiError::no_team()),
        }
    }
}

/// A member of the team in the path, which is the one that their token is for.
#[derive(Debug, Clone)]
pub struct TeamMember(pub SignedIn);

/// An admin or the owner of the team in the path, which is the one that their token is for.
#[derive(Debug, Clone)]
pub struct TeamAdmin(pub SignedIn);

/// The owner of the team in the path, which is the one that their token is for.
#[derive(Debug, Clone)]
pub struct TeamOwner(pub SignedIn);

/// An administrator of the platform, as the database has it.
#[derive(Debug, Clone)]
pub struct Administrator(pub SignedIn);

impl Administrator {
    /// The person as one who acts for the platform's own team.
    pub fn caller(&self) -> Caller {
        Caller { team: TeamId::PLATFORM, actor: self.0.actor() }
    }
}

/// Why a credential is refused, for whoever reads the logs: where it came from and how it begins, never more.
fn refused(parts: &Parts, app: &App, what: &str, begins: &str, why: &str) {
    let client = address(parts, &app.config.trusted_proxies);
    let begins: String = begins.chars().filter(|c| !c.is_control()).collect();
    tracing::warn!(%client, begins, "refused {what}: {why}");
}

/// The caller that the request proves. A key decides even where there is a bearer token beside it.
pub(crate) async fn authenticate(app: &App, parts: &Parts) -> Result<Caller, ApiError> {
    if let Some(key) = parts.headers.get(KEY_HEADER) {
        return by_key(app, parts, key.to_str().unwrap_or_default()).await;
    }
    let Some(token) = bearer(&parts.headers) else {
        return Err(missing(&parts.headers, KEY_OR_TOKEN));
    };
    by_token(app, parts, token).await?.caller()
}

async fn by_key(app: &App, parts: &Parts, key: &str) -> Result<Caller, ApiError> {
    let owner = match is_key(key) {
        true => app.store.within(app.keys.owner(&app.store, key)).await?,
        false => None,
    };
    let Some(owner) = owner else {
        refused(parts, app, "an API key", &shown(key), "unknown or revoked");
        return Err(ApiError::unauthorized("the API key is unknown or revoked"));
    };
    app.keys.used(owner.key);
    Ok(Caller { team: owner.team, actor: Actor::ApiKey { id: owner.key, name: owner.name } })
}

const TOKEN: &str = "the token of a sign-in as Authorization: Bearer";
const KEY_OR_TOKEN: &str = "an API key in X-API-Key, or the token of a sign-in as Authorization: Bearer";

fn missing(headers: &HeaderMap, what: &str) -> ApiError {
    ApiError::unauthorized(if headers.contains_key(http::header::AUTHORIZATION) {
        "the Authorization header must have the form `Bearer <token>`".to_owned()
    } else {
        format!("send {what}")
    })
}

/// The person whom a token stands for, where their account is active.
pub(crate) async fn by_token(app: &App, parts: &Parts, token: &str) -> Result<SignedIn, ApiError> {
    let begins = || token.chars().take(10).collect::<String>();
    let unknown = |why: &str| {
        refused(parts, app, "a token", &begins(), why);
        ApiError::unauthorized("the token is not valid (any more); sign in again")
    };
    let Some(claims) = app.tokens.read(token) else { return Err(unknown("malformed, foreign or expired")) };
    let session = app.store.within(app.store.session(claims.sub, claims.team_id)).await?;
    let Some(session) = session else { return Err(unknown("there is no such account")) };
    if session.status != UserStatus::Active {
        refused(parts, app, "a token", &begins(), "the account is not active");
        return Err(ApiError::account_deactivated());
    }
    if is_before(&claims, session.sessions_from) {
        return Err(unknown("signed before the password was reset"));
    }
    Ok(person(&claims, session))
}

fn is_before(claims: &Claims, time: OffsetDateTime) -> bool {
    claims.iat < time.unix_timestamp()
}

fn person(claims: &Claims, session: Session) -> SignedIn {
    SignedIn {
        user: claims.sub,
        name: session.name,
        email: session.email,
        is_admin: session.is_admin,
        team: claims.team_id,
        role: session.role,
        team_deleted: session.team_deleted,
    }
}

/// Whether somebody who was let in may still act: the key is in force, or the account is active and in the team, or an
/// administrator where that is what let them in.
pub(crate) async fn may_go_on(
    app: &App,
    caller: &Caller,
    as_administrator: bool,
) -> Result<bool, StoreError> {
    match &caller.actor {
        Actor::ApiKey { id, .. } => app.store.is_key_in_force(caller.team, *id).await,
        Actor::User { id, .. } => Ok(app.store.session(*id, caller.team).await?.is_some_and(|session| {
            let ranked = if as_administrator { session.is_admin } else { session.role.is_some() };
            session.status == UserStatus::Active && ranked
        })),
        Actor::System => Ok(true),
    }
}

/// The administrator of the platform whom the request proves.
pub(crate) async fn administrator(app: &App, parts: &Parts) -> Result<Administrator, ApiError> {
    ranked(signed_in(app, parts).await?)
}

/// The person as an administrator, where they are one.
pub(crate) fn ranked(person: SignedIn) -> Result<Administrator, ApiError> {
    if person.is_admin {
        return Ok(Administrator(person));
    }
    Err(ApiError::forbidden("only administrators of the platform may do this"))
}

async fn signed_in(app: &App, parts: &Parts) -> Result<SignedIn, ApiError> {
    if parts.headers.contains_key(KEY_HEADER) {
        return Err(ApiError::unauthorized(
            "an API key cannot do this: it acts for a team, not for a person; sign in and send the token alone",
        ));
    }
    match bearer(&parts.headers) {
        Some(token) => by_token(app, parts, token).await,
        None => Err(missing(&parts.headers, TOKEN)),
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        authenticate(app, parts).await
    }
}

impl FromRequestParts<App> for SignedIn {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        signed_in(app, parts).await
    }
}

impl FromRequestParts<App> for Administrator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        administrator(app, parts).await
    }
}

#[derive(serde::Deserialize)]
struct TeamPath {
    id: String,
}

/// A person with at least this role in the team in the path.
async fn in_team(parts: &mut Parts, app: &App, least: Role) -> Result<SignedIn, ApiError> {
    let person = signed_in(app, parts).await?;
    let Path(path) = Path::<TeamPath>::from_request_parts(parts, app)
        .await
        .map_err(|rejection| ApiError::invalid(rejection.body_text()))?;
    let team: TeamId = path.id.parse()?;
    if team != person.team {
        return Err(ApiError::forbidden("the token is for another team; switch to this one first"));
    }
    match person.role {
        _ if person.team_deleted => Err(ApiError::not_found(format!("there is no team {team} (any more)"))),
        None => Err(ApiError::forbidden("you are not in this team (any more)")),
        Some(role) if role < least => Err(ApiError::forbidden(match least {
            Role::Owner => "only the owner of the team may do this",
            _ => "only the owner and the admins of the team may do this",
        })),
        Some(_) => Ok(person),
    }
}

macro_rules! in_team {
    ($($name:ident: $least:ident;)*) => {$(
        impl FromRequestParts<App> for $name {
            type Rejection = ApiError;

            async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
                in_team(parts, app, Role::$least).await.map(Self)
            }
        }
    )*};
}

in_team! {
    TeamMember: Member;
    TeamAdmin: Admin;
    TeamOwner: Owner;
}
