//! `/v1/auth`: signing up and in.

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wrenn_core::{TeamId, UserId};

use super::ApiError;
use super::docs::Failures;
use super::extract::Json;
use crate::accounts::{self, Issued};
use crate::auth::{SignedIn, Unhurried};
use crate::state::App;

/// A sign-in.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuthResponse {
    /// Send it as `Authorization: Bearer`; valid six hours.
    token: String,
    /// The person.
    #[schema(value_type = String)]
    user_id: UserId,
    /// The team that the token is for.
    #[schema(value_type = String)]
    team_id: TeamId,
    /// Their address.
    email: String,
    /// Their name.
    name: String,
}

impl From<Issued> for AuthResponse {
    fn from(issued: Issued) -> Self {
        let Issued { token, user, team, email, name } = issued;
        Self { token, user_id: user, team_id: team, email, name }
    }
}

/// Something to tell a person.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Message {
    /// The text.
    message: &'static str,
}

/// Who signs up.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Signup {
    /// Their address.
    #[schema(required, nullable = false, min_length = 3)]
    email: Option<String>,
    /// At least 8 characters.
    #[schema(required, nullable = false, min_length = 8)]
    password: Option<String>,
    /// 1 to 100 characters.
    #[schema(required, nullable = false, min_length = 1, max_length = 100)]
    name: Option<String>,
}

/// Sign up
///
/// Mails a link that activates the account within 30 minutes.
#[utoipa::path(post, path = "/v1/auth/signup", tag = "accounts", request_body = Signup, security(()),
    responses((status = 201, body = Message), Failures))]
pub(super) async fn signup(
    State(app): State<App>,
    _: Unhurried,
    Json(body): Json<Signup>,
) -> Result<(StatusCode, axum::Json<Message>), ApiError> {
    let email = accounts::email(body.email)?;
    let password = accounts::password_field(body.password, "password")?;
    let name = accounts::person_name(body.name)?;
    accounts::sign_up(&app, &email, password, &name).await?;
    let message = if app.config.smtp.is_some() {
        "look into your mail: the link in it activates the account within 30 minutes"
    } else {
        "no mail is sent here: ask an administrator of the platform to activate the account"
    };
    Ok((StatusCode::CREATED, axum::Json(Message { message })))
}

/// A mailed token.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Activate {
    /// From the activation mail; used up.
    #[schema(required, nullable = false)]
    token: Option<String>,
}

/// Activate an account
///
/// Signs in as well.
#[utoipa::path(post, path = "/v1/auth/activate", tag = "accounts", request_body = Activate, security(()),
    responses((status = 200, body = AuthResponse), Failures))]
pub(super) async fn activate(
    State(app): State<App>,
    _: Unhurried,
    Json(body): Json<Activate>,
) -> Result<axum::Json<AuthResponse>, ApiError> {
    let token = accounts::required(body.token, "token")?;
    Ok(axum::Json(accounts::activate(&app, &token).await?.into()))
}

/// Who signs in.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Login {
    /// Their address.
    #[schema(required, nullable = false)]
    email: Option<String>,
    /// Their password.
    #[schema(required, nullable = false)]
    password: Option<String>,
}

/// Sign in
///
/// The token is for the default team, else for the one joined first.
#[utoipa::path(post, path = "/v1/auth/login", tag = "accounts", request_body = Login, security(()),
    responses((status = 200, body = AuthResponse), Failures))]
pub(super) async fn login(
    State(app): State<App>,
    Unhurried(client): Unhurried,
    Json(body): Json<Login>,
) -> Result<axum::Json<AuthResponse>, ApiError> {
    let email = accounts::email(body.email)?;
    let password = accounts::required(body.password, "password")?;
    Ok(axum::Json(accounts::login(&app, client, &email, password).await?.into()))
}

/// Where to go.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct SwitchTeam {
    /// A team that the person is in.
    #[schema(required, nullable = false)]
    team_id: Option<String>,
}

/// Switch to another team
///
/// A token is for one team; this buys one for another.
#[utoipa::path(post, path = "/v1/auth/switch-team", tag = "accounts", request_body = SwitchTeam,
    security(("token" = [])), responses((status = 200, body = AuthResponse), Failures))]
pub(super) async fn switch_team(
    State(app): State<App>,
    person: SignedIn,
    Json(body): Json<SwitchTeam>,
) -> Result<axum::Json<AuthResponse>, ApiError> {
    let team = accounts::required(body.team_id, "team_id")?;
    let team = team.parse().map_err(|error| ApiError::invalid(format!("team_id: {error}")))?;
    Ok(axum::Json(accounts::switch(&app, &person, team).await?.into()))
}
