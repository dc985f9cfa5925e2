//! `/v1/teams`

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use wrenn_core::{TeamId, UserId, timestamp};

use super::ApiError;
use super::docs::Failures;
use super::extract::{InUser, Json};
use crate::accounts;
use crate::auth::{SignedIn, TeamAdmin, TeamMember, TeamOwner};
use crate::state::App;
use crate::store::{MemberRow, Role, TeamRow};
use crate::teams;

/// A team.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Team {
    /// `team-` and 25 characters.
    #[schema(value_type = String)]
    id: TeamId,
    name: String,
    /// Short, unique and for ever.
    #[schema(example = "1a2b3c-4d5e6f")]
    slug: String,
    /// Whether its capsules run on its own hosts.
    is_byoc: bool,
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
}

impl From<TeamRow> for Team {
    fn from(row: TeamRow) -> Self {
        let TeamRow { id, name, slug, is_byoc, created_at } = row;
        Self { id, name, slug, is_byoc, created_at }
    }
}

/// A team, and what the person is in it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TeamWithRole {
    #[serde(flatten)]
    team: Team,
    /// `owner`, `admin` or `member`.
    role: &'static str,
}

impl From<(TeamRow, Role)> for TeamWithRole {
    fn from((row, role): (TeamRow, Role)) -> Self {
        Self { team: row.into(), role: role.as_str() }
    }
}

/// Somebody in a team.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Member {
    #[schema(value_type = String)]
    user_id: UserId,
    name: String,
    email: String,
    /// `owner`, `admin` or `member`.
    role: &'static str,
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    joined_at: OffsetDateTime,
}

impl From<MemberRow> for Member {
    fn from(row: MemberRow) -> Self {
        let MemberRow { user, name, email, role, joined_at } = row;
        Self { user_id: user, name, email, role: role.as_str(), joined_at }
    }
}

/// A team with everybody in it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TeamWithMembers {
    team: Team,
    /// In the order of joining.
    members: Vec<Member>,
}

/// What a team is called.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct TeamName {
    /// 1 to 128 letters, digits, spaces or any of `_ - @ '`.
    #[schema(required, nullable = false, min_length = 1, max_length = 128)]
    name: Option<String>,
}

/// List your teams
///
/// In the order of joining.
#[utoipa::path(get, path = "/v1/teams", tag = "teams", security(("token" = [])),
    responses((status = 200, body = Vec<TeamWithRole>), Failures))]
pub(super) async fn list(
    State(app): State<App>,
    person: SignedIn,
) -> Result<axum::Json<Vec<TeamWithRole>>, ApiError> {
    let rows = app.store.teams_of(person.user).await?;
    Ok(axum::Json(rows.into_iter().map(TeamWithRole::from).collect()))
}

/// Make a team
///
/// You own it.
#[utoipa::path(post, path = "/v1/teams", tag = "teams", request_body = TeamName, security(("token" = [])),
    responses((status = 201, body = TeamWithRole), Failures))]
pub(super) async fn create(
    State(app): State<App>,
    person: SignedIn,
    Json(body): Json<TeamName>,
) -> Result<(StatusCode, axum::Json<TeamWithRole>), ApiError> {
    let name = accounts::team_name(body.name)?;
    let row = teams::create(&app, &person, name).await?;
    Ok((StatusCode::CREATED, axum::Json((row, Role::Owner).into())))
}

/// Get the team that the token is for
#[utoipa::path(get, path = "/v1/teams/{id}", tag = "teams", security(("token" = [])),
    params(("id" = String, Path, description = "The team")),
    responses((status = 200, body = TeamWithMembers), Failures))]
pub(super) async fn get(
    State(app): State<App>,
    TeamMember(person): TeamMember,
) -> Result<axum::Json<TeamWithMembers>, ApiError> {
    let (team, members) = teams::show(&app, &person).await?;
    let members = members.into_iter().map(Member::from).collect();
    Ok(axum::Json(TeamWithMembers { team: team.into(), members }))
}

/// Rename the team
#[utoipa::path(patch, path = "/v1/teams/{id}", tag = "teams", request_body = TeamName, security(("token" = [])),
    params(("id" = String, Path, description = "The team")),
    responses((status = 204, description = "Renamed"), Failures))]
pub(super) async fn rename(
    State(app): State<App>,
    TeamAdmin(person): TeamAdmin,
    Json(body): Json<TeamName>,
) -> Result<StatusCode, ApiError> {
    teams::rename(&app, &person, &accounts::team_name(body.name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Delete the team
///
/// Its capsules, keys and templates go with it.
#[utoipa::path(delete, path = "/v1/teams/{id}", tag = "teams", security(("token" = [])),
    params(("id" = String, Path, description = "The team")),
    responses((status = 204, description = "Gone"), Failures))]
pub(super) async fn delete(
    State(app): State<App>,
    TeamOwner(person): TeamOwner,
) -> Result<StatusCode, ApiError> {
    teams::delete(&app, &person, person.team).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the members
///
/// In the order of joining.
#[utoipa::path(get, path = "/v1/teams/{id}/members", tag = "teams", security(("token" = [])),
    params(("id" = String, Path, description = "The team")),
    responses((status = 200, body = Vec<Member>), Failures))]
pub(super) async fn members(
    State(app): State<App>,
    TeamMember(person): TeamMember,
) -> Result<axum::Json<Vec<Member>>, ApiError> {
    let rows = app.store.members(person.team).await?;
    Ok(axum::Json(rows.into_iter().map(Member::from).collect()))
}

/// Whom to add.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct NewMember {
    /// The address of an active account.
    #[schema(required, nullable = false, min_length = 3)]
    email: Option<String>,
}

/// Add a member
#[utoipa::path(post, path = "/v1/teams/{id}/members", tag = "teams", request_body = NewMember,
    security(("token" = [])), params(("id" = String, Path, description = "The team")),
    responses((status = 201, body = Member), Failures))]
pub(super) async fn add(
    State(app): State<App>,
    TeamAdmin(person): TeamAdmin,
    Json(body): Json<NewMember>,
) -> Result<(StatusCode, axum::Json<Member>), ApiError> {
    let email = accounts::email(body.email)?;
    Ok((StatusCode::CREATED, axum::Json(teams::add(&app, &person, &email).await?.into())))
}

/// What somebody is to be.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct NewRole {
    /// `admin` or `member`.
    #[schema(required, nullable = false, example = "admin")]
    role: Option<String>,
}

/// Change a member's role
///
/// The owner's cannot be changed.
#[utoipa::path(patch, path = "/v1/teams/{id}/members/{uid}", tag = "teams", request_body = NewRole,
    security(("token" = [])),
    params(("id" = String, Path, description = "The team"), ("uid" = String, Path, description = "The person")),
    responses((status = 204, description = "Changed"), Failures))]
pub(super) async fn set_role(
    State(app): State<App>,
    TeamAdmin(person): TeamAdmin,
    InUser(user): InUser,
    Json(body): Json<NewRole>,
) -> Result<StatusCode, ApiError> {
    let role = accounts::required(body.role, "role")?;
    teams::set_role(&app, &person, user, &role).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove a member
///
/// The owner cannot be removed.
#[utoipa::path(delete, path = "/v1/teams/{id}/members/{uid}", tag = "teams", security(("token" = [])),
    params(("id" = String, Path, description = "The team"), ("uid" = String, Path, description = "The person")),
    responses((status = 204, description = "Removed"), Failures))]
pub(super) async fn remove(
    State(app): State<App>,
    TeamAdmin(person): TeamAdmin,
    InUser(user): InUser,
) -> Result<StatusCode, ApiError> {
    teams::remove(&app, &person, user).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Leave the team
///
/// The owner cannot.
#[utoipa::path(post, path = "/v1/teams/{id}/leave", tag = "teams", security(("token" = [])),
    params(("id" = String, Path, description = "The team")),
    responses((status = 204, description = "Left"), Failures))]
pub(super) async fn leave(
    State(app): State<App>,
    TeamMember(person): TeamMember,
) -> Result<StatusCode, ApiError> {
    teams::leave(&app, &person).await?;
    Ok(StatusCode::NO_CONTENT)
}
