//! `/v1/capsules`

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use wrenn_core::{CapsuleStatus, Metadata, timestamp};
use wrenn_protocol::agent;

use super::ApiError;
use super::docs::Failures;
use super::extract::{InCapsule, Json};
use crate::auth::Caller;
use crate::capsules::{self, CreateRequest, Destroyed, ForkRequest, Forked, Outcome};
use crate::state::App;
use crate::store::CapsuleRow;

/// A microVM.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Capsule {
    /// `cl-` and 25 characters.
    id: String,
    /// Where it is in its life.
    #[schema(value_type = String, example = "running")]
    status: CapsuleStatus,
    /// The template as the request named it.
    template: String,
    /// vCPUs.
    vcpus: i64,
    /// Memory in MiB.
    memory_mb: i64,
    /// Seconds without activity after which it is paused; 0 for never.
    timeout_sec: i64,
    /// Capacity of its disk in MiB.
    disk_size_mb: i64,
    /// MiB of its disk in use; only where one capsule is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_used_mb: Option<u32>,
    /// When it was asked for.
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    /// When its status last changed.
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    last_updated: OffsetDateTime,
    /// When it first ran.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "timestamp::serialize_option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<OffsetDateTime>,
    /// When it was last used.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "timestamp::serialize_option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    last_active_at: Option<OffsetDateTime>,
    /// Labels of the caller, and versions of what it runs on.
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata,
}

impl From<CapsuleRow> for Capsule {
    fn from(row: CapsuleRow) -> Self {
        let mut metadata = row.metadata;
        if row.started_at.is_some() {
            metadata.extend(row.versions);
        }
        Self {
            id: row.id.to_string(),
            status: row.status,
            template: row.template_name,
            vcpus: row.vcpus,
            memory_mb: row.memory_mb,
            timeout_sec: row.timeout_sec,
            disk_size_mb: row.disk_mb,
            disk_used_mb: None,
            created_at: row.created_at,
            last_updated: row.updated_at,
            started_at: row.started_at,
            last_active_at: row.last_active_at,
            metadata,
        }
    }
}

impl Capsule {
    fn with_live(mut self, live: &agent::Capsule) -> Self {
        self.disk_used_mb = Some(live.disk_used_mb);
        let active = OffsetDateTime::from_unix_timestamp(live.last_active).ok();
        self.last_active_at = self.last_active_at.max(active.filter(|_| live.last_active > 0));
        self
    }
}

/// What to create. Absent, null and zero fields take their defaults.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CreateCapsule {
    /// Name of a template of the team or the platform; default `minimal`.
    template: Option<String>,
    /// vCPUs; default 1. A template of type `snapshot` has its own.
    vcpus: Option<i64>,
    /// Memory in MiB; default 512. A template of type `snapshot` has its own.
    memory_mb: Option<i64>,
    /// Seconds without activity after which the capsule is paused: 0 for never, else at least 60.
    timeout_sec: Option<i64>,
    /// Capacity of the disk in MiB, at least the template's; default 5120.
    disk_size_mb: Option<i64>,
    /// At most 20 labels.
    metadata: Option<Metadata>,
}

/// Create a capsule
///
/// Answers 201 when the capsule runs within the settle window, else 202; it then starts in the background.
#[utoipa::path(post, path = "/v1/capsules", tag = "capsules", request_body = CreateCapsule,
    responses((status = 201, body = Capsule), (status = 202, body = Capsule), Failures))]
pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<CreateCapsule>,
) -> Result<Response, ApiError> {
    let request = CreateRequest {
        template: body.template,
        vcpus: body.vcpus,
        memory_mb: body.memory_mb,
        disk_size_mb: body.disk_size_mb,
        timeout_sec: body.timeout_sec,
        metadata: body.metadata,
    };
    Ok(answer(StatusCode::CREATED, capsules::create(&app, &caller, request).await?))
}

/// The capsule, with `done` where the work has settled.
fn answer(done: StatusCode, outcome: Outcome) -> Response {
    let (status, row) = match outcome {
        Outcome::Settled(row) => (done, row),
        Outcome::Pending(row) => (StatusCode::ACCEPTED, row),
    };
    (status, axum::Json(Capsule::from(row))).into_response()
}

/// List capsules
///
/// Newest first, without those that have ended.
#[utoipa::path(get, path = "/v1/capsules", tag = "capsules",
    responses((status = 200, body = Vec<Capsule>), Failures))]
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
) -> Result<axum::Json<Vec<Capsule>>, ApiError> {
    let rows = app.store.live_capsules(caller.team).await?;
    Ok(axum::Json(rows.into_iter().map(Capsule::from).collect()))
}

/// Get a capsule
#[utoipa::path(get, path = "/v1/capsules/{id}", tag = "capsules",
    params(("id" = String, Path, description = "The capsule")), responses((status = 200, body = Capsule), Failures))]
pub(super) async fn get(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
) -> Result<axum::Json<Capsule>, ApiError> {
    let (row, live) = capsules::find_live(&app, caller.team, id).await?;
    let capsule = Capsule::from(row);
    Ok(axum::Json(match live {
        Some(live) => capsule.with_live(&live),
        None => capsule,
    }))
}

/// Destroy a capsule
///
/// Answers 204 when the capsule is gone, or goes within the settle window, else 202. Safe to repeat.
#[utoipa::path(delete, path = "/v1/capsules/{id}", tag = "capsules",
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 204, description = "Gone"), (status = 202, description = "Under way"), Failures))]
pub(super) async fn destroy(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
) -> Result<StatusCode, ApiError> {
    Ok(match capsules::destroy(&app, &caller, id).await? {
        Destroyed::Settled => StatusCode::NO_CONTENT,
        Destroyed::Accepted => StatusCode::ACCEPTED,
    })
}

/// Keep a capsule alive
///
/// Resets the inactivity clock.
#[utoipa::path(post, path = "/v1/capsules/{id}/ping", tag = "capsules",
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 204, description = "Done"), Failures))]
pub(super) async fn ping(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
) -> Result<StatusCode, ApiError> {
    capsules::ping(&app, caller.team, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pause a capsule
///
/// Writes its memory to disk and gives its host's memory and CPUs back. Answers 200 when it is paused, already or within
/// the settle window, else 202.
#[utoipa::path(post, path = "/v1/capsules/{id}/pause", tag = "capsules",
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 200, body = Capsule), (status = 202, body = Capsule), Failures))]
pub(super) async fn pause(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
) -> Result<Response, ApiError> {
    Ok(answer(StatusCode::OK, capsules::pause(&app, &caller, id).await?))
}

/// Resume a capsule
///
/// Brings a paused capsule back, processes and all. Answers 200 when it runs, already or within the settle window, else
/// 202.
#[utoipa::path(post, path = "/v1/capsules/{id}/resume", tag = "capsules",
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 200, body = Capsule), (status = 202, body = Capsule), Failures))]
pub(super) async fn resume(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
) -> Result<Response, ApiError> {
    Ok(answer(StatusCode::OK, capsules::resume(&app, &caller, id).await?))
}

/// How to fork. Absent, null and zero fields take their defaults.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Fork {
    /// Number of copies, from 1 to 100; default 1.
    count: Option<i64>,
    /// Labels of every copy; default those of the source.
    metadata: Option<Metadata>,
}

/// Copies of a capsule.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Copies {
    /// One for each copy.
    capsules: Vec<Capsule>,
}

/// Fork a capsule
///
/// Makes running copies of a running capsule, memory and processes included, all of them or none; the source goes on.
/// Answers 201 when all copies run within the settle window, else 202.
#[utoipa::path(post, path = "/v1/capsules/{id}/fork", tag = "capsules", request_body = Fork,
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 201, body = Copies), (status = 202, body = Copies), Failures))]
pub(super) async fn fork(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
    Json(body): Json<Fork>,
) -> Result<Response, ApiError> {
    let request = ForkRequest { count: body.count, metadata: body.metadata };
    let (status, rows) = match capsules::fork(&app, &caller, id, request).await? {
        Forked::Settled(rows) => (StatusCode::CREATED, rows),
        Forked::Pending(rows) => (StatusCode::ACCEPTED, rows),
    };
    let capsules = rows.into_iter().map(Capsule::from).collect();
    Ok((status, axum::Json(Copies { capsules })).into_response())
}
