//! Files of a guest: contents over plain HTTP as root, everything else over RPC as the default user.

use bytes::Bytes;
use connectrpc::client::{ClientBody, full_body};
use connectrpc::{ConnectError, ErrorCode};
use futures::stream;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::mpsc;
use wrenn_protocol::filesystem::{EntryInfo, ListDirRequest, MakeDirRequest, RemoveRequest, StatRequest};
use wrenn_protocol::guest::GuestError as GuestBody;

use super::Guest;
use super::error::unreached;
use crate::api::ApiError;

/// Pieces of an upload on their way at a time.
const IN_FLIGHT: usize = 8;
/// Largest piece in bytes.
const PIECE: usize = 64 * 1024;
/// Most of a refusal's body that is read, in bytes.
const MAX_REFUSAL: usize = 64 * 1024;

/// Refuses paths that no guest could mean.
pub(crate) fn check_path(path: &str) -> Result<(), ApiError> {
    if path.is_empty() {
        return Err(ApiError::invalid("path is required"));
    }
    if path.contains('\0') {
        return Err(ApiError::invalid("path must not contain NUL bytes"));
    }
    if path.starts_with('~') && path != "~" && !path.starts_with("~/") {
        return Err(ApiError::invalid("path may begin with ~ or ~/, not with another user's home"));
    }
    Ok(())
}

enum Piece {
    Data(Bytes),
    Complete,
}

/// The sending end of an upload. Unless [`Upload::complete`] is called, the guest is told that the upload broke off.
#[derive(Debug)]
pub(crate) struct Upload {
    pieces: mpsc::Sender<Piece>,
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Piece").finish_non_exhaustive()
    }
}

impl Upload {
    fn channel() -> (Self, ClientBody) {
        let (pieces, received) = mpsc::channel(IN_FLIGHT);
        let frames = stream::unfold(Some(received), |received| async move {
            let mut received = received?;
            match received.recv().await {
                Some(Piece::Data(data)) => Some((Ok(Frame::data(data)), Some(received))),
                Some(Piece::Complete) => None,
                None => Some((Err(ConnectError::canceled("the upload broke off")), None)),
            }
        });
        (Self { pieces }, BodyExt::boxed(StreamBody::new(frames)))
    }

    /// Sends more of the file; false where the guest takes no more.
    pub(crate) async fn send(&self, mut data: Bytes) -> bool {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            if self.pieces.send(Piece::Data(piece)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Says that the file is complete.
    pub(crate) async fn complete(self) {
        // A guest that has gone is reported by its answer.
        let _ = self.pieces.send(Piece::Complete).await;
    }
}

impl Guest {
    /// Opens a file for reading: an answer whose body is its content.
    pub(crate) async fn read_file(&self, path: &str) -> Result<Response<Incoming>, ApiError> {
        self.send(Method::GET, path, full_body(Bytes::new())).await
    }

    /// Begins to write a file: where to send its content, and the guest's answer.
    pub(crate) fn write_file<'a>(
        &'a self,
        path: &'a str,
    ) -> (Upload, impl Future<Output = Result<(), ApiError>> + Send + 'a) {
        let (upload, body) = Upload::channel();
        let answer = async move {
            let response = self.send(Method::POST, path, body).await?;
            // Read to its end, so that the connection can be used again.
            let _ = Limited::new(response.into_body(), MAX_REFUSAL).collect().await;
            Ok(())
        };
        (upload, answer)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: ClientBody,
    ) -> Result<Response<Incoming>, ApiError> {
        let path = utf8_percent_encode(path, NON_ALPHANUMERIC);
        let uri = self.transport.guest_uri(self.capsule, &format!("/files?path={path}&username=root"));
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(body)
            .map_err(|_| ApiError::invalid("path is too long"))?;
        let response = self.transport.send(request).await.map_err(|error| unreached(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    /// Entries below a directory, down to `depth` levels.
    pub(crate) async fn list_dir(&self, path: &str, depth: u32) -> Result<Vec<EntryInfo>, ApiError> {
        let request = ListDirRequest { path: path.to_owned(), depth, ..Default::default() };
        let answer = self.filesystem().list_dir(request).await.map_err(|error| super::failure(&error))?;
        Ok(answer.into_owned().entries)
    }

    /// Makes a directory and its parents.
    pub(crate) async fn make_dir(&self, path: &str) -> Result<EntryInfo, ApiError> {
        let request = MakeDirRequest { path: path.to_owned(), ..Default::default() };
        let answer = self.filesystem().make_dir(request).await.map_err(|error| super::failure(&error))?;
        answer.into_owned().entry.into_option().ok_or_else(|| ApiError::agent("the guest made no directory"))
    }

    /// Removes a file, a link or a whole directory. The guest's own call succeeds for what is not there, so that is
    /// found out first.
    pub(crate) async fn remove(&self, path: &str) -> Result<(), ApiError> {
        let files = self.filesystem();
        let stat = StatRequest { path: path.to_owned(), ..Default::default() };
        files.stat(stat).await.map_err(|error| super::failure(&error))?;
        let request = RemoveRequest { path: path.to_owned(), ..Default::default() };
        match files.remove(request).await {
            Err(error) if error.code != ErrorCode::NotFound => Err(super::failure(&error)),
            _ => Ok(()),
        }
    }
}

async fn refusal(response: Response<Incoming>) -> ApiError {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_REFUSAL).collect().await;
    let told = body.ok().and_then(|body| serde_json::from_slice::<GuestBody>(&body.to_bytes()).ok());
    let text = told.map_or_else(|| format!("the guest answered {status}"), |body| body.message);
    match status {
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ApiError::invalid(text),
        StatusCode::NOT_FOUND => ApiError::not_found(text),
        StatusCode::CONFLICT => ApiError::conflict(text),
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(text),
        StatusCode::INSUFFICIENT_STORAGE => ApiError::disk_full(),
        StatusCode::NOT_IMPLEMENTED => ApiError::unsupported(text),
        _ => ApiError::agent(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_checked_before_the_guest_is_asked() {
        for good in ["/a", "a/b", "~", "~/x", "/~x", ".", "/ü"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in ["", "~root", "~root/x", "/a\0b"] {
            assert_eq!(check_path(bad).unwrap_err().code, "invalid_request", "{bad:?}");
        }
    }

    #[tokio::test]
    async fn an_upload_that_is_dropped_ends_in_an_error() {
        let (upload, mut body) = Upload::channel();
        assert!(upload.send(Bytes::from_static(b"half")).await);
        drop(upload);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_complete_upload_ends_well_and_comes_in_small_pieces() {
        let (upload, body) = Upload::channel();
        let sent = tokio::spawn(async move {
            assert!(upload.send(vec![7u8; 3 * PIECE + 1].into()).await);
            upload.complete().await;
        });
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 3 * PIECE + 1);
        sent.await.unwrap();
    }
}
