//! Files of a capsule, whole and streamed.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method, Response};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;
use wrenn_core::CapsuleId;

use crate::client::Client;
use crate::error::Error;
use crate::types::FileEntry;

/// Bytes read at once from the source of an upload.
const CHUNK: usize = 64 * 1024;
/// Deadline of a buffered transfer, which moves at most a few hundred MiB.
const BUFFERED_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a streamed download may take to begin.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct PathRequest<'a> {
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<u32>,
}

#[derive(Deserialize)]
struct Entries {
    #[serde(default, deserialize_with = "crate::types::null_as_default")]
    entries: Vec<FileEntry>,
}

#[derive(Deserialize)]
struct Entry {
    entry: FileEntry,
}

impl Client {
    /// A whole file, at most 256 MiB.
    ///
    /// # Errors
    /// `not_found`, `invalid_request` for what is not a regular file, `too_large`.
    pub async fn read(&self, id: CapsuleId, path: &str) -> Result<Bytes, Error> {
        let response = self.file_call(id, "read", path, None, BUFFERED_TIMEOUT).await?;
        response.bytes().await.map_err(|e| self.transport(e))
    }

    /// Writes a whole file, at most 100 MiB, and creates its parents.
    ///
    /// # Errors
    /// `invalid_request` where the path is a directory or a parent is a file, `too_large`.
    pub async fn write(&self, id: CapsuleId, path: &str, content: impl Into<Bytes>) -> Result<(), Error> {
        let part = Part::stream(Body::from(content.into())).file_name("upload");
        let request = self
            .request(Method::POST, &self.capsule_url(id, "/files/write"))
            .multipart(Form::new().text("path", path.to_owned()).part("file", part));
        self.send(request.timeout(BUFFERED_TIMEOUT)).await.map(drop)
    }

    /// Writes a file of any size from a reader, without holding it, and creates its parents. Has no deadline.
    ///
    /// # Errors
    /// As [`Client::write`], without the limit. An error of the reader ends the call and may leave a part of the
    /// file behind.
    pub async fn upload(
        &self,
        id: CapsuleId,
        path: &str,
        content: impl AsyncRead + Send + 'static,
    ) -> Result<(), Error> {
        let body = Body::wrap_stream(ReaderStream::with_capacity(content, CHUNK));
        let part = Part::stream(body).file_name("upload.bin");
        let request = self
            .request(Method::POST, &self.capsule_url(id, "/files/stream/write"))
            .multipart(Form::new().text("path", path.to_owned()).part("file", part));
        self.send(request).await.map(drop)
    }

    /// A file of any size as a stream of chunks. Has no deadline after its beginning.
    ///
    /// # Errors
    /// `not_found` and `invalid_request` before the first byte; a failure afterwards is an item of the stream.
    pub async fn download(
        &self,
        id: CapsuleId,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + Unpin + use<>, Error> {
        let request = self
            .request(Method::POST, &self.capsule_url(id, "/files/stream/read"))
            .json(&PathRequest { path, depth: None });
        let begun = tokio::time::timeout(FIRST_BYTE_TIMEOUT, self.send(request)).await;
        let response = begun.map_err(|_| {
            Error::Session(format!("no answer to the download within {} s", FIRST_BYTE_TIMEOUT.as_secs()))
        })??;
        let client = self.clone();
        Ok(response.bytes_stream().map_err(move |e| client.transport(e)).boxed())
    }

    /// The entries of a directory, `depth` levels down; links are not followed into.
    ///
    /// # Errors
    /// `not_found`; `invalid_request` for what is not a directory.
    pub async fn list_files(&self, id: CapsuleId, path: &str, depth: u32) -> Result<Vec<FileEntry>, Error> {
        let response = self.file_call(id, "list", path, Some(depth), BUFFERED_TIMEOUT).await?;
        let list: Entries = self.json(response).await?;
        Ok(list.entries)
    }

    /// Creates a directory and its parents.
    ///
    /// # Errors
    /// `already_exists` for an existing directory, `invalid_request` for an existing something else.
    pub async fn mkdir(&self, id: CapsuleId, path: &str) -> Result<FileEntry, Error> {
        let response = self.file_call(id, "mkdir", path, None, BUFFERED_TIMEOUT).await?;
        let made: Entry = self.json(response).await?;
        Ok(made.entry)
    }

    /// Removes a file, a link, or a directory with everything in it.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn remove(&self, id: CapsuleId, path: &str) -> Result<(), Error> {
        self.file_call(id, "remove", path, None, BUFFERED_TIMEOUT).await.map(drop)
    }

    async fn file_call(
        &self,
        id: CapsuleId,
        what: &str,
        path: &str,
        depth: Option<u32>,
        deadline: Duration,
    ) -> Result<Response, Error> {
        let url = self.capsule_url(id, &format!("/files/{what}"));
        self.post(&url, &PathRequest { path, depth }, Some(deadline)).await
    }
}
