//! `/v1/snapshots`

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use wrenn_core::{Metadata, timestamp};

use super::ApiError;
use super::capsules::Capsule;
use super::docs::Failures;
use super::extract::{InTemplate, Json, Parameters};
use crate::auth::Caller;
use crate::capsules::{self, Outcome, SnapshotRequest};
use crate::state::App;
use crate::store::{CapsuleRow, TemplateInfo};
use crate::templates;

/// What capsules are made from.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Template {
    /// Its name.
    name: String,
    /// `base` for a disk, `snapshot` for a disk with the memory and the processes on it.
    #[serde(rename = "type")]
    #[schema(example = "snapshot")]
    kind: String,
    /// vCPUs of every capsule made from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpus: Option<i64>,
    /// Memory in MiB of every capsule made from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<i64>,
    /// Bytes that it takes on its host; 0 where not measured.
    size_bytes: i64,
    /// When it was finished.
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    /// Whether it is the platform's, for all teams.
    platform: bool,
    /// Whether it can never be deleted.
    protected: bool,
    /// Versions of what it was made on.
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata,
}

impl From<TemplateInfo> for Template {
    fn from(info: TemplateInfo) -> Self {
        Self {
            name: info.name,
            kind: info.kind,
            vcpus: info.vcpus,
            memory_mb: info.memory_mb,
            size_bytes: info.size_bytes,
            created_at: info.created_at,
            platform: info.team.uuid().is_nil(),
            protected: info.protected,
            metadata: info.metadata,
        }
    }
}

/// Which templates to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// `base` or `snapshot`; absent for both.
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// List templates
///
/// Those of the team and of the platform, newest first.
#[utoipa::path(get, path = "/v1/snapshots", tag = "templates", params(Filter),
    responses((status = 200, body = Vec<Template>), Failures))]
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    Parameters(filter): Parameters<Filter>,
) -> Result<axum::Json<Vec<Template>>, ApiError> {
    let kind = filter.kind.filter(|kind| !kind.is_empty());
    let found = app.store.templates(caller.team, kind.as_deref()).await?;
    Ok(axum::Json(found.into_iter().map(Template::from).collect()))
}

/// What to make a template from.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CreateSnapshot {
    /// A running or paused capsule.
    sandbox_id: Option<String>,
    /// Name of the template; default `template-` and 8 hex digits.
    name: Option<String>,
}

/// How to treat a template of the same name.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Overwriting {
    /// Whether the team's template of the same name is replaced; it stays until the new one is ready.
    #[serde(default)]
    overwrite: bool,
}

/// A template that was asked for: the capsule it is made from, with the template's name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Snapshot {
    /// The capsule.
    #[serde(flatten)]
    capsule: Capsule,
    /// Name of the template.
    name: String,
    /// `snapshot`.
    #[serde(rename = "type")]
    #[schema(example = "snapshot")]
    kind: &'static str,
}

impl Snapshot {
    pub(super) fn of(row: CapsuleRow, name: String) -> Self {
        Self { capsule: row.into(), name, kind: "snapshot" }
    }
}

/// Make a template from a capsule
///
/// Keeps its disk, its memory and its processes. A running capsule stops for a moment and goes on; a paused one stays
/// paused. Answers 201 when the template is ready within the settle window, else 202; it is listed when it is ready.
#[utoipa::path(post, path = "/v1/snapshots", tag = "templates", request_body = CreateSnapshot, params(Overwriting),
    responses((status = 201, body = Snapshot), (status = 202, body = Snapshot), Failures))]
pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    Parameters(how): Parameters<Overwriting>,
    Json(body): Json<CreateSnapshot>,
) -> Result<Response, ApiError> {
    let id = body.sandbox_id.ok_or_else(|| ApiError::invalid("sandbox_id is missing"))?;
    let capsule = id.parse().map_err(|error| ApiError::invalid(format!("sandbox_id: {error}")))?;
    let request = SnapshotRequest { capsule, name: body.name, overwrite: how.overwrite };
    let (outcome, name) = capsules::snapshot(&app, &caller, request).await?;
    let (status, row) = match outcome {
        Outcome::Settled(row) => (StatusCode::CREATED, row),
        Outcome::Pending(row) => (StatusCode::ACCEPTED, row),
    };
    Ok((status, axum::Json(Snapshot::of(row, name))).into_response())
}

/// Delete a template
///
/// Capsules made from it are not hurt.
#[utoipa::path(delete, path = "/v1/snapshots/{name}", tag = "templates",
    params(("name" = String, Path, description = "The template")),
    responses((status = 204, description = "Gone"), Failures))]
pub(super) async fn delete(
    State(app): State<App>,
    caller: Caller,
    InTemplate(name): InTemplate,
) -> Result<StatusCode, ApiError> {
    templates::delete(&app, &caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
