//! `/v1/admin/teams` and `/v1/admin/users`

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use wrenn_core::{TeamId, UserId, timestamp};

use super::{PER_PAGE, PageQuery};
use crate::administration;
use crate::api::ApiError;
use crate::api::docs::Failures;
use crate::api::extract::{AnyTeam, AnyUser, Json, Parameters};
use crate::auth::Administrator;
use crate::state::App;
use crate::store::{TeamFigures, UserFigures};

/// A team with its figures.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AdminTeam {
    #[schema(value_type = String)]
    id: TeamId,
    name: String,
    slug: String,
    is_byoc: bool,
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    /// Null where it is live.
    #[serde(serialize_with = "timestamp::serialize_option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    deleted_at: Option<OffsetDateTime>,
    member_count: i64,
    /// Null where it was made on the platform's own machine and nobody owns it yet.
    owner_name: Option<String>,
    owner_email: Option<String>,
    /// Capsules that have not ended.
    active_sandbox_count: i64,
    /// Notification channels.
    channel_count: i64,
    running_vcpus: i64,
    running_memory_mb: i64,
}

impl From<TeamFigures> for AdminTeam {
    fn from(row: TeamFigures) -> Self {
        Self {
            id: row.id,
            name: row.name,
            slug: row.slug,
            is_byoc: row.is_byoc,
            created_at: row.created_at,
            deleted_at: row.deleted_at,
            member_count: row.member_count,
            owner_name: row.owner_name,
            owner_email: row.owner_email,
            active_sandbox_count: row.active_sandbox_count,
            // No team can have one: this server does not offer them.
            channel_count: 0,
            running_vcpus: row.running_vcpus,
            running_memory_mb: row.running_memory_mb,
        }
    }
}

/// A page of teams.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TeamsPage {
    teams: Vec<AdminTeam>,
    total: i64,
    page: i64,
    per_page: i64,
    total_pages: i64,
}

/// List all teams
///
/// Live ones first, then newest first.
#[utoipa::path(get, path = "/v1/admin/teams", tag = "administration", security(("token" = [])), params(PageQuery),
    responses((status = 200, body = TeamsPage), Failures))]
pub(super) async fn teams(
    State(app): State<App>,
    _: Administrator,
    Parameters(query): Parameters<PageQuery>,
) -> Result<axum::Json<TeamsPage>, ApiError> {
    let (rows, total) = app.store.teams_page(query.skip(), PER_PAGE).await?;
    let at = query.of(total);
    Ok(axum::Json(TeamsPage {
        teams: rows.into_iter().map(AdminTeam::from).collect(),
        total,
        page: at.page,
        per_page: PER_PAGE,
        total_pages: at.total_pages(),
    }))
}

/// Whether.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Enabled {
    /// True: there is no way back.
    #[schema(required, nullable = false)]
    enabled: Option<bool>,
}

fn given(field: Option<bool>, name: &str) -> Result<bool, ApiError> {
    field.ok_or_else(|| ApiError::invalid(format!("{name} is required: true or false")))
}

/// Have a team bring its own hosts
///
/// Safe to repeat.
#[utoipa::path(put, path = "/v1/admin/teams/{id}/byoc", tag = "administration", request_body = Enabled,
    security(("token" = [])), params(("id" = String, Path, description = "The team")),
    responses((status = 204, description = "Done"), Failures))]
pub(super) async fn set_byoc(
    State(app): State<App>,
    admin: Administrator,
    AnyTeam(team): AnyTeam,
    Json(body): Json<Enabled>,
) -> Result<StatusCode, ApiError> {
    administration::set_byoc(&app, &admin, team, given(body.enabled, "enabled")?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Delete a team
///
/// Its capsules, keys and templates go with it.
#[utoipa::path(delete, path = "/v1/admin/teams/{id}", tag = "administration", security(("token" = [])),
    params(("id" = String, Path, description = "The team")),
    responses((status = 204, description = "Gone"), Failures))]
pub(super) async fn delete_team(
    State(app): State<App>,
    admin: Administrator,
    AnyTeam(team): AnyTeam,
) -> Result<StatusCode, ApiError> {
    administration::delete_team(&app, &admin, team).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An account with its figures.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AdminUser {
    #[schema(value_type = String)]
    id: UserId,
    email: String,
    name: String,
    is_admin: bool,
    /// `inactive`, `active` or `disabled`.
    status: &'static str,
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    /// Teams that they are in.
    teams_joined: i64,
    /// Teams that they own.
    teams_owned: i64,
}

impl From<UserFigures> for AdminUser {
    fn from(row: UserFigures) -> Self {
        Self {
            id: row.id,
            email: row.email,
            name: row.name,
            is_admin: row.is_admin,
            status: row.status.as_str(),
            created_at: row.created_at,
            teams_joined: row.teams_joined,
            teams_owned: row.teams_owned,
        }
    }
}

/// A page of accounts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsersPage {
    users: Vec<AdminUser>,
    total: i64,
    page: i64,
    per_page: i64,
    total_pages: i64,
}

/// List all accounts
///
/// Newest first, without those that were deleted.
#[utoipa::path(get, path = "/v1/admin/users", tag = "administration", security(("token" = [])), params(PageQuery),
    responses((status = 200, body = UsersPage), Failures))]
pub(super) async fn users(
    State(app): State<App>,
    _: Administrator,
    Parameters(query): Parameters<PageQuery>,
) -> Result<axum::Json<UsersPage>, ApiError> {
    let (rows, total) = app.store.users_page(query.skip(), PER_PAGE).await?;
    let at = query.of(total);
    Ok(axum::Json(UsersPage {
        users: rows.into_iter().map(AdminUser::from).collect(),
        total,
        page: at.page,
        per_page: PER_PAGE,
        total_pages: at.total_pages(),
    }))
}

/// Whether an account works.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Active {
    #[schema(required, nullable = false)]
    active: Option<bool>,
}

/// Activate or deactivate an account
///
/// Deactivating ends the keys that its person made and destroys the capsules of the teams that they own.
#[utoipa::path(put, path = "/v1/admin/users/{id}/active", tag = "administration", request_body = Active,
    security(("token" = [])), params(("id" = String, Path, description = "The account")),
    responses((status = 204, description = "Done"), Failures))]
pub(super) async fn set_active(
    State(app): State<App>,
    admin: Administrator,
    AnyUser(user): AnyUser,
    Json(body): Json<Active>,
) -> Result<StatusCode, ApiError> {
    administration::set_active(&app, &admin, user, given(body.active, "active")?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether somebody administers the platform.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Admin {
    #[schema(required, nullable = false)]
    admin: Option<bool>,
}

/// Make somebody an administrator of the platform, or end that
///
/// The last one stays.
#[utoipa::path(put, path = "/v1/admin/users/{id}/admin", tag = "administration", request_body = Admin,
    security(("token" = [])), params(("id" = String, Path, description = "The account")),
    responses((status = 204, description = "Done"), Failures))]
pub(super) async fn set_admin(
    State(app): State<App>,
    admin: Administrator,
    AnyUser(user): AnyUser,
    Json(body): Json<Admin>,
) -> Result<StatusCode, ApiError> {
    administration::set_admin(&app, &admin, user, given(body.admin, "admin")?).await?;
    Ok(StatusCode::NO_CONTENT)
}
