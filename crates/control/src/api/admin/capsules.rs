//! `/v1/admin/capsules`: the platform's own capsules, used as those of any team are.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::capsules::{self as team, Capsule, CreateCapsule};
use crate::api::docs::Failures;
use crate::api::exec::{self, Exec, ExecResult, ExecStarted, KillQuery, Processes};
use crate::api::extract::{InCapsule, InProcess, Json, Parameters};
use crate::api::snapshots::Snapshot;
use crate::auth::Administrator;
use crate::capsules::{self, Outcome, SnapshotRequest};
use crate::guest::Selector;
use crate::state::App;
use crate::ws::{self, Dialect, PlatformHandshake};

/// Create a capsule of the platform
#[utoipa::path(post, path = "/v1/admin/capsules", tag = "administration", request_body = CreateCapsule,
    security(("token" = [])),
    responses((status = 201, body = Capsule), (status = 202, body = Capsule), Failures))]
pub(super) async fn create(
    State(app): State<App>,
    admin: Administrator,
    body: Json<CreateCapsule>,
) -> Result<Response, ApiError> {
    team::create(State(app), admin.caller(), body).await
}

/// List the capsules of the platform
#[utoipa::path(get, path = "/v1/admin/capsules", tag = "administration",
    security(("token" = [])),
    responses((status = 200, body = Vec<Capsule>), Failures))]
pub(super) async fn list(
    State(app): State<App>,
    admin: Administrator,
) -> Result<axum::Json<Vec<Capsule>>, ApiError> {
    team::list(State(app), admin.caller()).await
}

/// Get a capsule of the platform
#[utoipa::path(get, path = "/v1/admin/capsules/{id}", tag = "administration",
    security(("token" = [])),
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 200, body = Capsule), Failures))]
pub(super) async fn get(
    State(app): State<App>,
    admin: Administrator,
    id: InCapsule,
) -> Result<axum::Json<Capsule>, ApiError> {
    team::get(State(app), admin.caller(), id).await
}

/// Destroy a capsule of the platform
#[utoipa::path(delete, path = "/v1/admin/capsules/{id}", tag = "administration",
    security(("token" = [])),
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 204, description = "Gone"), (status = 202, description = "Under way"), Failures))]
pub(super) async fn destroy(
    State(app): State<App>,
    admin: Administrator,
    id: InCapsule,
) -> Result<StatusCode, ApiError> {
    team::destroy(State(app), admin.caller(), id).await
}

/// What to call a template.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct PlatformSnapshot {
    /// Name of the template; default `template-` and 8 hex digits.
    name: Option<String>,
}

/// Make a template of the platform
///
/// For all teams. An older template of the platform of the same name is replaced when the new one is ready.
#[utoipa::path(post, path = "/v1/admin/capsules/{id}/snapshot", tag = "administration",
    request_body = PlatformSnapshot, security(("token" = [])),
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 201, body = Snapshot), (status = 202, body = Snapshot), Failures))]
pub(super) async fn snapshot(
    State(app): State<App>,
    admin: Administrator,
    InCapsule(id): InCapsule,
    Json(body): Json<PlatformSnapshot>,
) -> Result<Response, ApiError> {
    let request = SnapshotRequest { capsule: id, name: body.name, overwrite: true };
    let (outcome, name) = capsules::snapshot(&app, &admin.caller(), request).await?;
    let (status, row) = match outcome {
        Outcome::Settled(row) => (StatusCode::CREATED, row),
        Outcome::Pending(row) => (StatusCode::ACCEPTED, row),
    };
    Ok((status, axum::Json(Snapshot::of(row, name))).into_response())
}

/// Run a command in a capsule of the platform
#[utoipa::path(post, path = "/v1/admin/capsules/{id}/exec", tag = "administration", request_body = Exec,
    security(("token" = [])),
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 200, body = ExecResult), (status = 202, body = ExecStarted), Failures))]
pub(super) async fn exec(
    State(app): State<App>,
    admin: Administrator,
    id: InCapsule,
    body: Json<Exec>,
) -> Result<Response, ApiError> {
    exec::exec(State(app), admin.caller(), id, body).await
}

/// List processes of a capsule of the platform
#[utoipa::path(get, path = "/v1/admin/capsules/{id}/processes", tag = "administration",
    security(("token" = [])),
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 200, body = Processes), Failures))]
pub(super) async fn processes(
    State(app): State<App>,
    admin: Administrator,
    id: InCapsule,
) -> Result<axum::Json<Processes>, ApiError> {
    exec::processes(State(app), admin.caller(), id).await
}

/// Kill a process of a capsule of the platform
#[utoipa::path(delete, path = "/v1/admin/capsules/{id}/processes/{selector}", tag = "administration",
    security(("token" = [])),
    params(("id" = String, Path, description = "The capsule"), ("selector" = String, Path, description = "PID or tag"),
        ("signal" = Option<String>, Query, description = "`SIGKILL` (default) or `SIGTERM`")),
    responses((status = 204, description = "Signalled"), Failures))]
pub(super) async fn kill(
    State(app): State<App>,
    admin: Administrator,
    id: InCapsule,
    process: InProcess,
    query: Parameters<KillQuery>,
) -> Result<StatusCode, ApiError> {
    exec::kill(State(app), admin.caller(), id, process, query).await
}

/// Run a command in a capsule of the platform and stream its output
#[utoipa::path(get, path = "/v1/admin/capsules/{id}/exec/stream", tag = "administration",
    security(("token" = [])),
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 101, description = "WebSocket"), Failures))]
pub(super) async fn exec_stream(
    State(app): State<App>,
    InCapsule(id): InCapsule,
    PlatformHandshake(handshake): PlatformHandshake,
) -> Response {
    handshake.serve(app, id, Dialect::Exec, ws::exec)
}

/// Stream the output of a process of a capsule of the platform
#[utoipa::path(get, path = "/v1/admin/capsules/{id}/processes/{selector}/stream", tag = "administration",
    security(("token" = [])),
    params(("id" = String, Path, description = "The capsule"), ("selector" = String, Path, description = "PID or tag")),
    responses((status = 101, description = "WebSocket"), Failures))]
pub(super) async fn process_stream(
    State(app): State<App>,
    InCapsule(id): InCapsule,
    InProcess(selector): InProcess,
    PlatformHandshake(handshake): PlatformHandshake,
) -> Response {
    let selector = Selector::parse(&selector);
    handshake.serve(app, id, Dialect::Follow, |task| ws::attach(task, selector))
}

/// Open a terminal in a capsule of the platform
#[utoipa::path(get, path = "/v1/admin/capsules/{id}/pty", tag = "administration",
    security(("token" = [])),
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 101, description = "WebSocket"), Failures))]
pub(super) async fn pty(
    State(app): State<App>,
    InCapsule(id): InCapsule,
    PlatformHandshake(handshake): PlatformHandshake,
) -> Response {
    handshake.serve(app, id, Dialect::Terminal, ws::pty)
}
