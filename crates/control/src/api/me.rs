//! `/v1/me`: a person's own account.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wrenn_core::{TeamId, UserId};

use super::ApiError;
use super::auth::AuthResponse;
use super::docs::Failures;
use super::extract::{InProvider, Json};
use crate::accounts;
use crate::auth::{SignedIn, Unhurried, is_https};
use crate::state::App;
use crate::store::Role;

/// A person's own account.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Me {
    #[schema(value_type = String)]
    user_id: UserId,
    /// The team that the token is for.
    #[schema(value_type = String)]
    team_id: TeamId,
    name: String,
    email: String,
    /// `owner`, `admin` or `member` of that team; empty where the person is not in it any more.
    role: &'static str,
    /// Whether they administer the platform.
    is_admin: bool,
    /// Whether they can sign in with a password.
    has_password: bool,
    /// The providers with which they can sign in.
    providers: Vec<String>,
}

/// Get your account
#[utoipa::path(get, path = "/v1/me", tag = "accounts", security(("token" = [])),
    responses((status = 200, body = Me), Failures))]
pub(super) async fn get(State(app): State<App>, person: SignedIn) -> Result<axum::Json<Me>, ApiError> {
    let accounts::Me { person, profile } = accounts::me(&app, person).await?;
    Ok(axum::Json(Me {
        user_id: person.user,
        team_id: person.team,
        role: person.role.map_or("", Role::as_str),
        name: person.name,
        email: person.email,
        is_admin: person.is_admin,
        has_password: profile.has_password,
        providers: profile.providers,
    }))
}

/// What to change.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Rename {
    /// 1 to 100 characters.
    #[schema(required, nullable = false, min_length = 1, max_length = 100)]
    name: Option<String>,
}

/// Change your name
///
/// Answers with a fresh token, in which the name is new.
#[utoipa::path(patch, path = "/v1/me", tag = "accounts", request_body = Rename, security(("token" = [])),
    responses((status = 200, body = AuthResponse), Failures))]
pub(super) async fn rename(
    State(app): State<App>,
    person: SignedIn,
    Json(body): Json<Rename>,
) -> Result<axum::Json<AuthResponse>, ApiError> {
    let name = accounts::person_name(body.name)?;
    Ok(axum::Json(accounts::rename(&app, &person, &name).await?.into()))
}

/// That it is meant.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Deletion {
    /// The account's own address.
    #[schema(required, nullable = false)]
    confirmation: Option<String>,
}

/// Delete your account
///
/// Teams that nobody else is in go with it, and all keys that you made. What is left is purged after 15 days.
#[utoipa::path(delete, path = "/v1/me", tag = "accounts", request_body = Deletion, security(("token" = [])),
    responses((status = 204, description = "Gone"), Failures))]
pub(super) async fn delete(
    State(app): State<App>,
    person: SignedIn,
    Json(body): Json<Deletion>,
) -> Result<StatusCode, ApiError> {
    let confirmation = accounts::required(body.confirmation, "confirmation")?;
    if confirmation.trim().to_lowercase() != person.email {
        return Err(ApiError::invalid("confirmation must be the address of your account"));
    }
    accounts::delete(&app, &person).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The old password and the new one.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Password {
    /// Where there is one.
    current_password: Option<String>,
    /// The new one again, where there was none.
    confirm_password: Option<String>,
    /// At least 8 characters.
    #[schema(required, nullable = false, min_length = 8)]
    new_password: Option<String>,
}

/// Change your password
#[utoipa::path(post, path = "/v1/me/password", tag = "accounts", request_body = Password, security(("token" = [])),
    responses((status = 204, description = "Changed"), Failures))]
pub(super) async fn password(
    State(app): State<App>,
    person: SignedIn,
    Unhurried(client): Unhurried,
    Json(body): Json<Password>,
) -> Result<StatusCode, ApiError> {
    let new = accounts::password_field(body.new_password, "new_password")?;
    accounts::change(&app, &person, client, body.current_password, body.confirm_password, new).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whose password is forgotten.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Reset {
    /// The address of the account.
    email: Option<String>,
}

/// Ask for a new password
///
/// Mails a link where there is an active account with this address. The answer is the same whether there is or not.
#[utoipa::path(post, path = "/v1/me/password/reset", tag = "accounts", request_body = Reset, security(()),
    responses((status = 204, description = "Always"), Failures))]
pub(super) async fn reset(
    State(app): State<App>,
    _: Unhurried,
    body: Result<Bytes, BytesRejection>,
) -> StatusCode {
    let body = body.ok().and_then(|body| serde_json::from_slice::<Reset>(&body).ok());
    if let Some(email) = body.and_then(|body| accounts::email(body.email).ok()) {
        accounts::request_reset(&app, email);
    }
    StatusCode::NO_CONTENT
}

/// A mailed token and a new password.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ConfirmReset {
    /// From the mail; used up.
    #[schema(required, nullable = false)]
    token: Option<String>,
    /// At least 8 characters.
    #[schema(required, nullable = false, min_length = 8)]
    new_password: Option<String>,
}

/// Choose a new password
///
/// Ends every sign-in until now.
#[utoipa::path(post, path = "/v1/me/password/reset/confirm", tag = "accounts", request_body = ConfirmReset,
    security(()), responses((status = 204, description = "Changed"), Failures))]
pub(super) async fn confirm_reset(
    State(app): State<App>,
    Unhurried(client): Unhurried,
    Json(body): Json<ConfirmReset>,
) -> Result<StatusCode, ApiError> {
    let token = accounts::required(body.token, "token")?;
    let new = accounts::password_field(body.new_password, "new_password")?;
    accounts::confirm_reset(&app, client, &token, new).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Where to go.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Connect {
    /// Send the browser there; the answer's cookies must go with it.
    auth_url: String,
}

/// Connect a sign-in provider
#[utoipa::path(get, path = "/v1/me/providers/{provider}/connect", tag = "accounts", security(("token" = [])),
    params(("provider" = String, Path, description = "Such as `github`")),
    responses((status = 200, body = Connect), Failures))]
pub(super) async fn connect(
    State(app): State<App>,
    person: SignedIn,
    InProvider(provider): InProvider,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let landing = accounts::connect(&app, &person, &provider, is_https(&headers)).await?;
    Ok((landing.cookies, axum::Json(Connect { auth_url: landing.location })).into_response())
}

/// Disconnect a sign-in provider
#[utoipa::path(delete, path = "/v1/me/providers/{provider}", tag = "accounts", security(("token" = [])),
    params(("provider" = String, Path, description = "Such as `github`")),
    responses((status = 204, description = "Disconnected"), Failures))]
pub(super) async fn disconnect(
    State(app): State<App>,
    person: SignedIn,
    InProvider(provider): InProvider,
) -> Result<StatusCode, ApiError> {
    accounts::disconnect(&app, &person, &provider).await?;
    Ok(StatusCode::NO_CONTENT)
}
