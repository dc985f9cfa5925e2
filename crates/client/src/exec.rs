//! Commands that end before the answer, processes that outlive it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use wrenn_core::{CapsuleId, limits};

use crate::client::{Client, segment};
use crate::error::Error;
use crate::types::{Command, ExecResult, ProcessInfo, StartedProcess};

/// What a foreground call may take beyond the command's own time.
const EXEC_GRACE: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Request<'a> {
    #[serde(flatten)]
    command: &'a Command,
    background: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
}

#[derive(Deserialize)]
struct Foreground {
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
    exit_code: i32,
    #[serde(default)]
    duration_ms: u64,
    #[serde(default)]
    encoding: String,
}

#[derive(Deserialize)]
struct Processes {
    #[serde(default, deserialize_with = "crate::types::null_as_default")]
    processes: Vec<ProcessInfo>,
}

impl Client {
    /// Runs a command and returns its exact output once it has ended. A non-zero exit code is not an error.
    ///
    /// # Errors
    /// `timeout` after the command's time-out (30 s where it sets none), `agent_error` beyond 64 MiB of output,
    /// `invalid_request` for a missing working directory, `invalid_state` where the capsule does not run.
    pub async fn exec(&self, id: CapsuleId, command: &Command) -> Result<ExecResult, Error> {
        let own = command.timeout_sec.filter(|&s| s > 0).unwrap_or(limits::DEFAULT_EXEC_TIMEOUT_SEC);
        let deadline = Duration::from_secs(u64::from(own)).saturating_add(EXEC_GRACE);
        let request = Request { command, background: false, tag: None };
        let response = self.post(&self.capsule_url(id, "/exec"), &request, Some(deadline)).await?;
        decode(self.json(response).await?)
    }

    /// Starts a process that goes on without the caller. A tag names it; the server makes one up where it is absent.
    ///
    /// # Errors
    /// As [`Client::exec`], without the time-out.
    pub async fn spawn(
        &self,
        id: CapsuleId,
        command: &Command,
        tag: Option<&str>,
    ) -> Result<StartedProcess, Error> {
        let request = Request { command, background: true, tag };
        let response = self.post(&self.capsule_url(id, "/exec"), &request, None).await?;
        self.json(response).await
    }

    /// The living processes that were started through the API, terminals included.
    ///
    /// # Errors
    /// `invalid_state` where the capsule does not run.
    pub async fn processes(&self, id: CapsuleId) -> Result<Vec<ProcessInfo>, Error> {
        let list: Processes = self.get_json(&self.capsule_url(id, "/processes")).await?;
        Ok(list.processes)
    }

    /// Kills (SIGKILL) the process with this pid or tag.
    ///
    /// # Errors
    /// `not_found` where there is none.
    pub async fn kill(&self, id: CapsuleId, selector: &str) -> Result<(), Error> {
        self.signal(id, selector, "SIGKILL").await
    }

    /// Asks (SIGTERM) the process with this pid or tag to end.
    ///
    /// # Errors
    /// `not_found` where there is none.
    pub async fn terminate(&self, id: CapsuleId, selector: &str) -> Result<(), Error> {
        self.signal(id, selector, "SIGTERM").await
    }

    async fn signal(&self, id: CapsuleId, selector: &str, signal: &str) -> Result<(), Error> {
        let url = self.capsule_url(id, &format!("/processes/{}?signal={signal}", segment(selector)));
        self.idempotent(Method::DELETE, &url).await.map(drop)
    }
}

fn decode(answer: Foreground) -> Result<ExecResult, Error> {
    let bytes = |text: String| match answer.encoding.as_str() {
        "base64" => STANDARD.decode(text).map(Bytes::from).map_err(|e| Error::Protocol(e.to_string())),
        _ => Ok(Bytes::from(text)),
    };
    Ok(ExecResult {
        stdout: bytes(answer.stdout)?,
        stderr: bytes(answer.stderr)?,
        exit_code: answer.exit_code,
        duration: Duration::from_millis(answer.duration_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(stdout: &str, encoding: &str) -> Result<ExecResult, Error> {
        decode(Foreground {
            stdout: stdout.to_owned(),
            stderr: String::new(),
            exit_code: 0,
            duration_ms: 5,
            encoding: encoding.to_owned(),
        })
    }

    #[test]
    fn both_encodings_give_the_exact_bytes() {
        assert_eq!(answer("aGk=", "utf-8").unwrap().stdout, "aGk=");
        assert_eq!(answer("/wA=", "base64").unwrap().stdout, &[0xff, 0][..]);
        assert!(matches!(answer("?", "base64"), Err(Error::Protocol(_))));
    }

    #[test]
    fn a_request_is_flat() {
        let command = Command::shell("true").env("A", "b").cwd("/tmp").timeout_sec(5);
        let request = Request { command: &command, background: true, tag: Some("t") };
        assert_eq!(
            serde_json::to_value(request).unwrap(),
            serde_json::json!({
                "cmd": "/bin/sh", "args": ["-c", "true"], "envs": {"A": "b"}, "cwd": "/tmp",
                "timeout_sec": 5, "background": true, "tag": "t",
            })
        );
    }
}
