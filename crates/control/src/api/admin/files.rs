//! `/v1/admin/capsules/{id}/files`

use axum::extract::multipart::{Multipart, MultipartRejection};
use axum::extract::{DefaultBodyLimit, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use wrenn_core::limits::MAX_UPLOAD;

use crate::api::ApiError;
use crate::api::docs::{Content, Failures};
use crate::api::extract::{InCapsule, Json};
use crate::api::files::{self, AtPath, ListAt, Listing, Made, UploadForm};
use crate::auth::Administrator;
use crate::state::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    let buffered = OpenApiRouter::new()
        .routes(routes!(write))
        .layer(DefaultBodyLimit::max(usize::try_from(MAX_UPLOAD).unwrap_or(usize::MAX)));
    OpenApiRouter::new()
        .merge(buffered)
        .routes(routes!(read))
        .routes(routes!(list))
        .routes(routes!(mkdir))
        .routes(routes!(remove))
}

/// Write a file in a capsule of the platform
///
/// At most 100 MiB for the whole body.
#[utoipa::path(post, path = "/v1/admin/capsules/{id}/files/write", tag = "administration", security(("token" = [])),
    params(("id" = String, Path, description = "The capsule")),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 204, description = "Written"), Failures))]
pub(super) async fn write(
    State(app): State<App>,
    admin: Administrator,
    id: InCapsule,
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Result<StatusCode, ApiError> {
    files::write(State(app), admin.caller(), id, headers, form).await
}

/// Read a file in a capsule of the platform
///
/// At most 256 MiB.
#[utoipa::path(post, path = "/v1/admin/capsules/{id}/files/read", tag = "administration", request_body = AtPath,
    security(("token" = [])), params(("id" = String, Path, description = "The capsule")),
    responses((status = 200, body = Content, content_type = "application/octet-stream"), Failures))]
pub(super) async fn read(
    State(app): State<App>,
    admin: Administrator,
    id: InCapsule,
    at: Json<AtPath>,
) -> Result<Response, ApiError> {
    files::read(State(app), admin.caller(), id, at).await
}

/// List a directory in a capsule of the platform
#[utoipa::path(post, path = "/v1/admin/capsules/{id}/files/list", tag = "administration", request_body = ListAt,
    security(("token" = [])), params(("id" = String, Path, description = "The capsule")),
    responses((status = 200, body = Listing), Failures))]
pub(super) async fn list(
    State(app): State<App>,
    admin: Administrator,
    id: InCapsule,
    at: Json<ListAt>,
) -> Result<axum::Json<Listing>, ApiError> {
    files::list(State(app), admin.caller(), id, at).await
}

/// Make a directory in a capsule of the platform
#[utoipa::path(post, path = "/v1/admin/capsules/{id}/files/mkdir", tag = "administration", request_body = AtPath,
    security(("token" = [])), params(("id" = String, Path, description = "The capsule")),
    responses((status = 200, body = Made), Failures))]
pub(super) async fn mkdir(
    State(app): State<App>,
    admin: Administrator,
    id: InCapsule,
    at: Json<AtPath>,
) -> Result<axum::Json<Made>, ApiError> {
    files::mkdir(State(app), admin.caller(), id, at).await
}

/// Remove a file or a whole directory in a capsule of the platform
#[utoipa::path(post, path = "/v1/admin/capsules/{id}/files/remove", tag = "administration", request_body = AtPath,
    security(("token" = [])), params(("id" = String, Path, description = "The capsule")),
    responses((status = 204, description = "Removed"), Failures))]
pub(super) async fn remove(
    State(app): State<App>,
    admin: Administrator,
    id: InCapsule,
    at: Json<AtPath>,
) -> Result<StatusCode, ApiError> {
    files::remove(State(app), admin.caller(), id, at).await
}
