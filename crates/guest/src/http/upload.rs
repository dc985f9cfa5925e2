//! `POST /files`: octet-stream (one file, the body) or multipart (any number of files).
//!
//! Each file is opened and written by one blocking thread that is fed through a short channel, so that memory stays
//! flat whatever the size and whatever is slower, network or disk.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest as _, Multipart, Query, Request, State};
use futures::{Stream, StreamExt as _};
use http::{HeaderMap, header};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wrenn_protocol::guest::UploadedFile;

use super::FilesQuery;
use super::writer::Target;
use crate::accounts::User;
use crate::error::{Error, Kind, Result};
use crate::filesystem::METADATA_PREFIX;
use crate::paths;
use crate::settings::{Settings, Values};

/// Pieces on their way from the network to the disk; a piece is at most the HTTP server's read buffer.
const PIECES: usize = 4;

/// What is left of a refused body is read and dropped this long, so that the client sees the answer instead of a
/// broken connection.
const DRAIN: Duration = Duration::from_secs(60);

/// Longest attribute key, bytes.
const MAX_METADATA_KEY: usize = 246;
/// Most bytes of attributes, names with prefix and values.
const MAX_METADATA: usize = 4096;

/// Writes the files of the request as the user they are for.
pub(super) async fn upload(
    State(settings): State<Settings>,
    Query(query): Query<FilesQuery>,
    request: Request,
) -> Result<Json<Vec<UploadedFile>>> {
    let headers = request.headers().clone();
    let plan = Plan::new(&settings, query, &headers)?;
    let gzip = is_gzip(&headers)?;
    match content_type(&headers).as_str() {
        "application/octet-stream" => plan.single(request.into_body(), gzip).await.map(Json),
        "multipart/form-data" if gzip => Err(Error::invalid("multipart bodies cannot be compressed")),
        "multipart/form-data" => plan.multipart(request).await.map(Json),
        other => Err(Error::invalid(format!(
            "content type {other:?}; send application/octet-stream or multipart/form-data"
        ))),
    }
}

/// What a request for uploading says about every file in it.
#[derive(Debug)]
pub(super) struct Plan {
    user: User,
    values: Arc<Values>,
    metadata: BTreeMap<String, String>,
    path: Option<String>,
}

impl Plan {
    /// Checks the right to write, and reads what belongs to every file.
    pub(super) fn new(settings: &Settings, query: FilesQuery, headers: &HeaderMap) -> Result<Self> {
        let values = settings.get();
        let user = query.authorise("write", &values, headers)?;
        let metadata = metadata(headers)?;
        Ok(Self { user, values, metadata, path: query.path.filter(|path| !path.is_empty()) })
    }

    /// Where the body goes if it is one file.
    pub(super) fn only_target(&self, gzip: bool) -> Result<Target> {
        let path = self.path.as_deref();
        self.target(path.ok_or_else(|| Error::invalid("the query names no path to write to"))?, gzip)
    }

    async fn single(self, body: Body, gzip: bool) -> Result<Vec<UploadedFile>> {
        let target = self.only_target(gzip)?;
        let mut body = body.into_data_stream();
        let result = write(target, &mut body).await;
        if result.is_err() {
            drain(body).await;
        }
        Ok(vec![result?])
    }

    async fn multipart(self, request: Request) -> Result<Vec<UploadedFile>> {
        let mut parts = Multipart::from_request(request, &())
            .await
            .map_err(|e| Error::invalid(format!("the multipart body does not parse: {e}")))?;
        let mut uploaded = Vec::new();
        let result = self.parts(&mut parts, &mut uploaded).await;
        if result.is_err() {
            let rest = async { while let Ok(Some(_skipped)) = parts.next_field().await {} };
            // Whether the rest came in time makes no difference to the answer.
            let _ = tokio::time::timeout(DRAIN, rest).await;
        }
        result.map(|()| uploaded)
    }

    async fn parts(&self, parts: &mut Multipart, uploaded: &mut Vec<UploadedFile>) -> Result<()> {
        let broken = |e| Error::invalid(format!("the multipart body does not parse: {e}"));
        let mut seen = HashSet::new();
        while let Some(part) = parts.next_field().await.map_err(broken)? {
            if part.name() != Some("file") {
                continue;
            }
            let named = part.file_name().map(|name| name.replace("%22", "\""));
            let path = self.path.clone().or(named).filter(|path| !path.is_empty());
            let path = path.ok_or_else(|| Error::invalid("neither the query nor the part names a path"))?;
            let target = self.target(&path, false)?;
            if !seen.insert(target.path.clone()) {
                return Err(Error::invalid(format!("{}: uploaded twice in one request", target.path)));
            }
            uploaded.push(write(target, part).await?);
        }
        Ok(())
    }

    fn target(&self, path: &str, gzip: bool) -> Result<Target> {
        let path = paths::resolve(path, &self.user, self.values.default_workdir.as_deref())?;
        Ok(Target { path, user: self.user.clone(), metadata: self.metadata.clone(), gzip })
    }
}

/// Moves `pieces` into `target`.
async fn write<E: std::fmt::Display>(
    target: Target,
    mut pieces: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<UploadedFile> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let writing = spawn_writer(target, receiver);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|e| Error::invalid(format!("the body broke off: {e}")))?;
        if sender.send(piece).await.is_err() {
            break;
        }
    }
    drop(sender);
    writing.await.map_err(|e| Error::new(Kind::Internal, format!("the writing was interrupted: {e}")))?
}

fn spawn_writer(target: Target, mut pieces: mpsc::Receiver<Bytes>) -> JoinHandle<Result<UploadedFile>> {
    tokio::task::spawn_blocking(move || {
        let mut writer = target.open()?;
        while let Some(piece) = pieces.blocking_recv() {
            writer.write(&piece)?;
        }
        writer.finish()?;
        Ok(target.uploaded())
    })
}

async fn drain<E>(mut rest: impl Stream<Item = Result<Bytes, E>> + Unpin) {
    let reading = async { while let Some(Ok(_dropped)) = rest.next().await {} };
    // Whether the rest came in time makes no difference to the answer.
    let _ = tokio::time::timeout(DRAIN, reading).await;
}

/// The media type without parameters, lower case.
pub(super) fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// Whether the body is gzip; other codings are refused.
pub(super) fn is_gzip(headers: &HeaderMap) -> Result<bool> {
    match headers.get(header::CONTENT_ENCODING).map(http::HeaderValue::as_bytes) {
        None | Some(b"" | b"identity") => Ok(false),
        Some(b"gzip") => Ok(true),
        Some(_) => Err(Error::invalid("content-encoding must be gzip or identity")),
    }
}

/// What the `X-Metadata-…` headers attach, with lower-case keys.
fn metadata(headers: &HeaderMap) -> Result<BTreeMap<String, String>> {
    let mut metadata = BTreeMap::new();
    let mut total = 0;
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix("x-metadata-") else { continue };
        let value = value.to_str().map_err(|_| Error::invalid(format!("{name}: only printable ASCII")))?;
        if key.is_empty() || key.len() > MAX_METADATA_KEY {
            return Err(Error::invalid(format!("{name}: keys have 1 to {MAX_METADATA_KEY} bytes")));
        }
        total += METADATA_PREFIX.len() + key.len() + value.len();
        metadata.insert(key.to_owned(), value.to_owned());
    }
    if total > MAX_METADATA {
        return Err(Error::invalid(format!("metadata of {total} bytes; at most {MAX_METADATA} fit")));
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn metadata_headers_become_lower_case_keys_within_limits() {
        let found = metadata(&headers(&[("X-Metadata-Author", "Ann"), ("x-other", "1")])).unwrap();
        assert_eq!(found, BTreeMap::from([("author".to_owned(), "Ann".to_owned())]));
        let long = "v".repeat(MAX_METADATA);
        assert!(metadata(&headers(&[("x-metadata-a", &long)])).is_err());
        let key = format!("x-metadata-{}", "k".repeat(MAX_METADATA_KEY + 1));
        assert!(metadata(&headers(&[(&key, "v")])).is_err());
    }

    #[test]
    fn only_gzip_and_identity_codings_are_taken() {
        assert!(!is_gzip(&headers(&[("content-encoding", "identity")])).unwrap());
        assert!(is_gzip(&headers(&[("content-encoding", "gzip")])).unwrap());
        assert!(is_gzip(&headers(&[("content-encoding", "br")])).is_err());
    }

    #[test]
    fn the_media_type_counts_without_its_parameters() {
        let headers = headers(&[("content-type", "Multipart/Form-Data; boundary=x")]);
        assert_eq!(content_type(&headers), "multipart/form-data");
    }
}
