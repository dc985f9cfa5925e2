//! `/v1/capsules/{id}/files`
//!
//! Contents pass through piece by piece in both directions; nothing here holds a whole file.

use std::time::Duration;

use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use http_body_util::Limited;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use wrenn_core::limits::{MAX_DOWNLOAD, MAX_UPLOAD};
use wrenn_protocol::filesystem::{EntryInfo, FileType};

use super::ApiError;
use super::docs::{Content, Failures};
use super::extract::{InCapsule, Json};
use crate::auth::Caller;
use crate::capsules;
use crate::guest::{Guest, Upload, check_path};
use crate::state::App;

/// Longest path in an upload, in bytes.
const MAX_PATH: usize = 64 * 1024;
/// How long the rest of a refused upload is read, so that the client sees the answer and not a reset.
const DRAIN: Duration = Duration::from_secs(5);
/// Permission bits of a mode, without the file's kind.
const MODE_BITS: u32 = 0o7777;

pub(super) fn routes() -> OpenApiRouter<App> {
    let buffered = OpenApiRouter::new()
        .routes(routes!(write))
        .layer(DefaultBodyLimit::max(usize::try_from(MAX_UPLOAD).unwrap_or(usize::MAX)));
    let streamed = OpenApiRouter::new().routes(routes!(stream_write)).layer(DefaultBodyLimit::disable());
    OpenApiRouter::new()
        .merge(buffered)
        .merge(streamed)
        .routes(routes!(read))
        .routes(routes!(stream_read))
        .routes(routes!(list))
        .routes(routes!(mkdir))
        .routes(routes!(remove))
}

/// A file to write.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a multipart body, which is read part by part")]
pub(super) struct UploadForm {
    /// Where to; must come first.
    path: String,
    /// Its content.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// A path.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct AtPath {
    /// Absolute, or relative to the default user's home.
    #[schema(required, nullable = false, example = "/root/data.csv")]
    path: Option<String>,
}

impl AtPath {
    fn checked(self) -> Result<String, ApiError> {
        let path = self.path.unwrap_or_default();
        check_path(&path)?;
        Ok(path)
    }
}

/// A directory to list.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ListAt {
    /// Absolute, or relative to the default user's home.
    #[schema(required, nullable = false, example = "/root")]
    path: Option<String>,
    /// How many levels; default 1.
    depth: Option<i64>,
}

/// A file, directory or link.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FileEntry {
    name: String,
    path: String,
    /// `file`, `directory` or `symlink`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Bytes.
    size: i64,
    /// Permission bits.
    mode: u32,
    #[schema(example = "-rw-r--r--")]
    permissions: String,
    owner: String,
    group: String,
    /// Unix seconds.
    modified_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink_target: Option<String>,
}

impl From<EntryInfo> for FileEntry {
    fn from(entry: EntryInfo) -> Self {
        Self {
            kind: kind(&entry),
            name: entry.name,
            path: entry.path,
            size: entry.size,
            mode: entry.mode & MODE_BITS,
            permissions: entry.permissions,
            owner: entry.owner,
            group: entry.group,
            modified_at: entry.modified_time.as_option().map_or(0, |time| time.seconds),
            symlink_target: entry.symlink_target,
        }
    }
}

/// Clients know three kinds; a broken link, which leads to itself, is one, and a device or socket counts as a file, also
/// at the end of a link.
fn kind(entry: &EntryInfo) -> &'static str {
    match entry.r#type.as_known() {
        Some(FileType::FILE_TYPE_DIRECTORY) => "directory",
        Some(FileType::FILE_TYPE_SYMLINK) => "symlink",
        Some(FileType::FILE_TYPE_FILE) => "file",
        Some(FileType::FILE_TYPE_UNSPECIFIED) | None => {
            if entry.is_symlink && entry.symlink_target.as_deref().is_none_or(|to| to == entry.path) {
                "symlink"
            } else {
                "file"
            }
        }
    }
}

/// Entries of a directory.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Listing {
    entries: Vec<FileEntry>,
}

/// A directory just made.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Made {
    entry: FileEntry,
}

/// Write a file
///
/// At most 100 MiB for the whole body.
#[utoipa::path(post, path = "/v1/capsules/{id}/files/write", tag = "files",
    params(("id" = String, Path, description = "The capsule")),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 204, description = "Written"), Failures))]
pub(super) async fn write(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Result<StatusCode, ApiError> {
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_UPLOAD) {
        return Err(too_large());
    }
    upload(&app, caller, id, form).await
}

/// Write a file of any size
#[utoipa::path(post, path = "/v1/capsules/{id}/files/stream/write", tag = "files",
    params(("id" = String, Path, description = "The capsule")),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 204, description = "Written"), Failures))]
pub(super) async fn stream_write(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
    form: Result<Multipart, MultipartRejection>,
) -> Result<StatusCode, ApiError> {
    upload(&app, caller, id, form).await
}

async fn upload(
    app: &App,
    caller: Caller,
    id: wrenn_core::CapsuleId,
    form: Result<Multipart, MultipartRejection>,
) -> Result<StatusCode, ApiError> {
    let mut form =
        form.map_err(|_| ApiError::invalid("send the body as multipart/form-data with a boundary"))?;
    let answer = receive(app, caller, id, &mut form).await;
    if answer.is_err() {
        let _ = tokio::time::timeout(DRAIN, drain(&mut form)).await;
    }
    answer
}

async fn receive(
    app: &App,
    caller: Caller,
    id: wrenn_core::CapsuleId,
    form: &mut Multipart,
) -> Result<StatusCode, ApiError> {
    let guest = capsules::guest(app, caller.team, id).await?;
    let path = path_part(form).await?;
    check_path(&path)?;
    forward(&guest, &path, form).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn path_part(form: &mut Multipart) -> Result<String, ApiError> {
    let mut field = named(form.next_field().await.map_err(|error| broken(&error))?, "path")?;
    let mut path = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| broken(&error))? {
        path.extend_from_slice(&chunk);
        if path.len() > MAX_PATH {
            return Err(ApiError::invalid("path is too long"));
        }
    }
    String::from_utf8(path).map_err(|_| ApiError::invalid("path is not UTF-8"))
}

fn named<'a>(field: Option<Field<'a>>, name: &str) -> Result<Field<'a>, ApiError> {
    field.filter(|field| field.name() == Some(name)).ok_or_else(|| {
        ApiError::invalid(format!("the part `{name}` is missing; send `path` first, then `file`"))
    })
}

/// Passes the content on while watching for the guest's answer, which may come early when it refuses. The guest is asked
/// once the part is there, and told that the file is complete once the whole form is.
async fn forward(guest: &Guest, path: &str, form: &mut Multipart) -> Result<(), ApiError> {
    let (upload, answer) = guest.write_file(path);
    let begun = Notify::new();
    let mut answer = std::pin::pin!(async {
        begun.notified().await;
        answer.await
    });
    let answered = tokio::select! {
        biased;
        answered = &mut answer => Some(answered),
        sent = pass(upload, form, &begun) => {
            sent?;
            None
        }
    };
    match answered {
        Some(Ok(())) => Err(ApiError::agent("the guest answered before it had the whole file")),
        Some(Err(error)) => Err(error),
        None => answer.await,
    }
}

async fn pass(upload: Upload, form: &mut Multipart, begun: &Notify) -> Result<(), ApiError> {
    let mut field = named(form.next_field().await.map_err(|error| broken(&error))?, "file")?;
    begun.notify_one();
    while let Some(chunk) = field.chunk().await.map_err(|error| broken(&error))? {
        if !upload.send(chunk).await {
            // Not completed: the guest's answer says what is wrong.
            return Ok(());
        }
    }
    drop(field);
    drain(form).await?;
    upload.complete().await;
    Ok(())
}

async fn drain(form: &mut Multipart) -> Result<(), ApiError> {
    while let Some(mut field) = form.next_field().await.map_err(|error| broken(&error))? {
        while field.chunk().await.map_err(|error| broken(&error))?.is_some() {}
    }
    Ok(())
}

fn broken(error: &MultipartError) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return too_large();
    }
    ApiError::invalid(format!("the multipart body is damaged: {}", error.body_text()))
}

fn too_large() -> ApiError {
    ApiError::too_large("this call takes at most 100 MiB; use files/stream/write for more")
}

/// Read a file
///
/// At most 256 MiB.
#[utoipa::path(post, path = "/v1/capsules/{id}/files/read", tag = "files", request_body = AtPath,
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 200, body = Content, content_type = "application/octet-stream"), Failures))]
pub(super) async fn read(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
    Json(at): Json<AtPath>,
) -> Result<Response, ApiError> {
    let (length, body) = open(&app, caller, id, at).await?;
    if length.is_some_and(|length| length > MAX_DOWNLOAD) {
        return Err(ApiError::too_large("this call reads at most 256 MiB; use files/stream/read for more"));
    }
    let limit = usize::try_from(MAX_DOWNLOAD).unwrap_or(usize::MAX);
    Ok(content(length, Body::new(Limited::new(body, limit))))
}

/// Read a file of any size
#[utoipa::path(post, path = "/v1/capsules/{id}/files/stream/read", tag = "files", request_body = AtPath,
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 200, body = Content, content_type = "application/octet-stream"), Failures))]
pub(super) async fn stream_read(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
    Json(at): Json<AtPath>,
) -> Result<Response, ApiError> {
    let (_, body) = open(&app, caller, id, at).await?;
    Ok(content(None, Body::from_stream(http_body_util::BodyDataStream::new(body))))
}

async fn open(
    app: &App,
    caller: Caller,
    id: wrenn_core::CapsuleId,
    at: AtPath,
) -> Result<(Option<u64>, hyper::body::Incoming), ApiError> {
    let path = at.checked()?;
    let response = capsules::guest(app, caller.team, id).await?.read_file(&path).await?;
    let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    Ok((length, response.into_body()))
}

fn content(length: Option<u64>, body: Body) -> Response {
    let mut response = ([(CONTENT_TYPE, "application/octet-stream")], body).into_response();
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response
}

/// List a directory
#[utoipa::path(post, path = "/v1/capsules/{id}/files/list", tag = "files", request_body = ListAt,
    params(("id" = String, Path, description = "The capsule")), responses((status = 200, body = Listing), Failures))]
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
    Json(at): Json<ListAt>,
) -> Result<axum::Json<Listing>, ApiError> {
    let depth =
        at.depth.filter(|&depth| depth > 0).map_or(1, |depth| u32::try_from(depth).unwrap_or(u32::MAX));
    let path = AtPath { path: at.path }.checked()?;
    let entries = capsules::guest(&app, caller.team, id).await?.list_dir(&path, depth).await?;
    Ok(axum::Json(Listing { entries: entries.into_iter().map(FileEntry::from).collect() }))
}

/// Make a directory
///
/// With its parents; 409 `already_exists` where it is there already.
#[utoipa::path(post, path = "/v1/capsules/{id}/files/mkdir", tag = "files", request_body = AtPath,
    params(("id" = String, Path, description = "The capsule")), responses((status = 200, body = Made), Failures))]
pub(super) async fn mkdir(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
    Json(at): Json<AtPath>,
) -> Result<axum::Json<Made>, ApiError> {
    let path = at.checked()?;
    let entry = capsules::guest(&app, caller.team, id).await?.make_dir(&path).await?;
    Ok(axum::Json(Made { entry: entry.into() }))
}

/// Remove a file or a whole directory
#[utoipa::path(post, path = "/v1/capsules/{id}/files/remove", tag = "files", request_body = AtPath,
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 204, description = "Removed"), Failures))]
pub(super) async fn remove(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
    Json(at): Json<AtPath>,
) -> Result<StatusCode, ApiError> {
    let path = at.checked()?;
    capsules::guest(&app, caller.team, id).await?.remove(&path).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_see_a_kind_they_do_not_know() {
        let cases = [
            (FileType::FILE_TYPE_FILE, false, "file"),
            (FileType::FILE_TYPE_DIRECTORY, true, "directory"),
            (FileType::FILE_TYPE_SYMLINK, true, "symlink"),
            (FileType::FILE_TYPE_UNSPECIFIED, true, "symlink"),
            (FileType::FILE_TYPE_UNSPECIFIED, false, "file"),
        ];
        for (proto, is_symlink, expected) in cases {
            let entry = EntryInfo { r#type: proto.into(), is_symlink, ..Default::default() };
            assert_eq!(kind(&entry), expected);
        }
        let to_device = EntryInfo {
            is_symlink: true,
            path: "/a".to_owned(),
            symlink_target: Some("/dev/null".to_owned()),
            ..Default::default()
        };
        assert_eq!(kind(&to_device), "file");
        let odd = EntryInfo { r#type: buffa::EnumValue::from(99), mode: 0o100_644, ..Default::default() };
        let entry = FileEntry::from(odd);
        assert_eq!((entry.kind, entry.mode), ("file", 0o644));
    }
}
