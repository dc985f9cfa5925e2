//! `/v1/admin/templates`

use axum::extract::State;
use http::StatusCode;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use wrenn_core::{TeamId, timestamp};

use crate::api::ApiError;
use crate::api::docs::Failures;
use crate::api::extract::InTemplate;
use crate::auth::Administrator;
use crate::state::App;
use crate::store::TemplateInfo;
use crate::templates;

/// A template of any team.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AdminTemplate {
    name: String,
    /// `base` or `snapshot`.
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpus: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<i64>,
    size_bytes: i64,
    /// The owning team; the platform's own has an id of zeros.
    #[schema(value_type = String)]
    team_id: TeamId,
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    /// Whether it can never be deleted.
    protected: bool,
}

impl From<TemplateInfo> for AdminTemplate {
    fn from(info: TemplateInfo) -> Self {
        Self {
            name: info.name,
            kind: info.kind,
            vcpus: info.vcpus,
            memory_mb: info.memory_mb,
            size_bytes: info.size_bytes,
            team_id: info.team,
            created_at: info.created_at,
            protected: info.protected,
        }
    }
}

/// List the templates of all teams
///
/// Newest first.
#[utoipa::path(get, path = "/v1/admin/templates", tag = "administration", security(("token" = [])),
    responses((status = 200, body = Vec<AdminTemplate>), Failures))]
pub(super) async fn list(
    State(app): State<App>,
    _: Administrator,
) -> Result<axum::Json<Vec<AdminTemplate>>, ApiError> {
    let found = app.store.all_templates().await?;
    Ok(axum::Json(found.into_iter().map(AdminTemplate::from).collect()))
}

/// Delete a template of the platform
///
/// Capsules made from it are not hurt.
#[utoipa::path(delete, path = "/v1/admin/templates/{name}", tag = "administration", security(("token" = [])),
    params(("name" = String, Path, description = "The template")),
    responses((status = 204, description = "Gone"), Failures))]
pub(super) async fn delete(
    State(app): State<App>,
    admin: Administrator,
    InTemplate(name): InTemplate,
) -> Result<StatusCode, ApiError> {
    templates::delete(&app, &admin.caller(), &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
