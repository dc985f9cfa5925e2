//! Firecracker's HTTP interface on its unix socket. Source: `src/firecracker/swagger/firecracker.yaml` of its releases.
//!
//! It serves one request at a time and answers success with 200 or 204. Each request has a connection of its own, which costs
//! microseconds and leaves no state that could go stale.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::VmmError;

/// An answer takes milliseconds; only a VMM that cannot go on needs this long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of an answer; Firecracker's have some hundreds.
const MOST_BYTES: usize = 1 << 20;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Firecracker refused it, in its own words.
    #[error("Firecracker refused {call}: {message}")]
    Refused {
        /// Method and path.
        call: String,
        /// What it said.
        message: String,
    },
    /// It did not answer.
    #[error("Firecracker did not answer {call} within {after:?}")]
    Timeout {
        /// Method and path.
        call: String,
        /// How long was waited.
        after: Duration,
    },
    /// The connection or the answer failed.
    #[error("Firecracker's control socket failed at {call}: {reason}")]
    Broken {
        /// Method and path.
        call: String,
        /// What went wrong.
        reason: String,
    },
}

/// The socket of one Firecracker, by an open descriptor of its directory: that may be renamed.
#[derive(Debug)]
pub(super) struct Api {
    dir: OwnedFd,
    socket: &'static str,
    /// The process that must be behind it.
    pid: OnceLock<u32>,
}

impl Api {
    /// The socket called `socket` in `dir`.
    pub(super) fn open(dir: &Path, socket: &'static str) -> Result<Self, VmmError> {
        let opened = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir);
        let dir = opened.map_err(|source| VmmError::io("open", dir, source))?;
        Ok(Self { dir: dir.into(), socket, pid: OnceLock::new() })
    }

    /// Speaks with this process only: the socket lies in a directory of the VMM's own, and what has broken out of a guest
    /// could put a link to another machine's socket in its place.
    pub(super) fn expect(&self, pid: u32) {
        self.pid.get_or_init(|| pid);
    }

    /// A file in the socket's directory, by a path that is good for as long as this lives.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        Path::new("/proc/self/fd").join(self.dir.as_raw_fd().to_string()).join(name)
    }

    /// Whether the socket takes connections.
    pub(super) async fn answers(&self) -> bool {
        UnixStream::connect(self.beside(self.socket)).await.is_ok()
    }

    pub(super) async fn put(&self, path: &str, body: &impl Serialize) -> Result<(), ApiError> {
        self.call(Method::PUT, path, Some(body), TIMEOUT).await.map(drop)
    }

    pub(super) async fn put_within(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<(), ApiError> {
        self.call(Method::PUT, path, Some(body), limit).await.map(drop)
    }

    pub(super) async fn patch(&self, path: &str, body: &impl Serialize) -> Result<(), ApiError> {
        self.call(Method::PATCH, path, Some(body), TIMEOUT).await.map(drop)
    }

    pub(super) async fn get<T: for<'a> Deserialize<'a>>(&self, path: &str) -> Result<T, ApiError> {
        self.get_within(path, TIMEOUT).await
    }

    pub(super) async fn get_within<T: for<'a> Deserialize<'a>>(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<T, ApiError> {
        let answer = self.call(Method::GET, path, None::<&()>, limit).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| ApiError::Broken { call: format!("GET {path}"), reason: error.to_string() })
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        limit: Duration,
    ) -> Result<Bytes, ApiError> {
        let call = format!("{method} {path}");
        let broken = |reason: String| ApiError::Broken { call: call.clone(), reason };
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| broken(error.to_string()))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|error| broken(error.to_string()))?;
        let answer = tokio::time::timeout(limit, self.exchange(request)).await;
        let (status, bytes) = match answer {
            Err(_) => return Err(ApiError::Timeout { call, after: limit }),
            Ok(Err(reason)) => return Err(broken(reason)),
            Ok(Ok(answer)) => answer,
        };
        if status.is_success() {
            return Ok(bytes);
        }
        let message = serde_json::from_slice::<Fault>(&bytes).map_or_else(
            |_| String::from_utf8_lossy(&bytes).trim().to_owned(),
            |fault| fault.fault_message.trim().to_owned(),
        );
        Err(ApiError::Refused { call, message })
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
        let stream =
            UnixStream::connect(self.beside(self.socket)).await.map_err(|error| error.to_string())?;
        let peer = stream.peer_cred().map_err(|error| error.to_string())?.pid();
        if peer.and_then(|pid| u32::try_from(pid).ok()).as_ref() != self.pid.get() {
            return Err("it is not the VMM's own".to_owned());
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MOST_BYTES);
            let bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok((status, bytes))
        };
        // In one task: a call that is given up takes its connection along.
        tokio::select! {
            biased;
            answer = exchange => answer,
            Err(error) = connection => Err(error.to_string()),
        }
    }
}

#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Answers one request with `answer` and returns what was asked. It stands in for Firecracker, which needs KVM.
    fn answer_once(dir: &Path, answer: &'static str) -> std::thread::JoinHandle<String> {
        let listener = UnixListener::bind(dir.join("api.sock")).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut buffer = [0; 4096];
            while !asked.ends_with(b"}") {
                let count = stream.read(&mut buffer).unwrap();
                asked.extend(&buffer[..count]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(asked).unwrap()
        })
    }

    #[tokio::test]
    async fn what_a_stand_in_for_firecracker_refuses_is_told_in_its_words_though_the_directory_moved() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("before");
        std::fs::create_dir(&dir).unwrap();
        let asked = answer_once(
            &dir,
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 33\r\n\r\n{\"fault_message\":\"no such drive\"}",
        );
        let api = Api::open(&dir, "api.sock").unwrap();
        api.expect(std::process::id());
        std::fs::rename(&dir, root.path().join("after")).unwrap();
        let error = api.put("/drives/root", &serde_json::json!({ "a": 1 })).await.unwrap_err();
        assert_eq!(error.to_string(), "Firecracker refused PUT /drives/root: no such drive");
        let asked = asked.join().unwrap();
        assert!(
            asked.starts_with("PUT /drives/root HTTP/1.1\r\n") && asked.ends_with("{\"a\":1}"),
            "{asked}"
        );
    }

    #[tokio::test]
    async fn a_stand_in_for_firecracker_that_says_no_content_has_obeyed_and_a_missing_socket_is_named() {
        let root = tempfile::tempdir().unwrap();
        let api = Api::open(root.path(), "api.sock").unwrap();
        api.expect(std::process::id());
        assert!(matches!(api.patch("/vm", &()).await, Err(ApiError::Broken { .. })));
        let asked = answer_once(root.path(), "HTTP/1.1 204 No Content\r\n\r\n");
        api.patch("/vm", &serde_json::json!({ "state": "Paused" })).await.unwrap();
        asked.join().unwrap();
    }

    #[tokio::test]
    async fn a_socket_of_another_process_than_the_vmm_is_told_nothing() {
        let root = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(root.path().join("api.sock")).unwrap();
        let api = Api::open(root.path(), "api.sock").unwrap();
        api.expect(std::process::id() + 1);
        let error = api.patch("/vm", &()).await.unwrap_err();
        assert!(error.to_string().contains("not the VMM's own"), "{error}");
        let (mut stream, _) = listener.accept().unwrap();
        assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0);
    }
}
