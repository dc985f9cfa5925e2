//! `/v1/capsules/{id}/exec` and `/processes`

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wrenn_core::CapsuleId;
use wrenn_core::limits::DEFAULT_EXEC_TIMEOUT_SEC;
use wrenn_protocol::process::{self, Signal};

use super::ApiError;
use super::docs::Failures;
use super::extract::{InCapsule, InProcess, Json, Parameters};
use crate::auth::Caller;
use crate::exec::{Finished, MAX_TIMEOUT_SEC, background, foreground};
use crate::guest::{Command, Selector, failure};
use crate::state::App;
use crate::{capsules, secret};

/// A command.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Exec {
    /// The executable; no shell is added.
    #[schema(required, nullable = false)]
    cmd: Option<String>,
    /// Its arguments.
    args: Option<Vec<String>>,
    /// Seconds after which a foreground command is killed; default 30.
    timeout_sec: Option<i64>,
    /// Leave it running and answer at once.
    background: Option<bool>,
    /// Name of a background process; default `proc-` and 8 digits.
    tag: Option<String>,
    /// Variables on top of the base environment.
    envs: Option<BTreeMap<String, String>>,
    /// Working directory; default the user's home.
    cwd: Option<String>,
}

/// A command that has ended.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ExecResult {
    sandbox_id: String,
    cmd: String,
    stdout: String,
    stderr: String,
    /// Its exit code, -1 where a signal ended it.
    exit_code: i32,
    duration_ms: u64,
    /// `utf-8`, or `base64` for both streams.
    #[schema(example = "utf-8")]
    encoding: &'static str,
}

/// A command left running.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ExecStarted {
    sandbox_id: String,
    cmd: String,
    pid: u32,
    tag: String,
}

/// Run a command
///
/// Answers 200 when it has ended, also where it failed; 202 for a background command.
#[utoipa::path(post, path = "/v1/capsules/{id}/exec", tag = "processes", request_body = Exec,
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 200, body = ExecResult), (status = 202, body = ExecStarted), Failures))]
pub(super) async fn exec(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
    Json(body): Json<Exec>,
) -> Result<Response, ApiError> {
    let left_running = body.background.unwrap_or_default();
    let seconds = body.timeout_sec.filter(|&seconds| seconds > 0);
    let limit = seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(DEFAULT_EXEC_TIMEOUT_SEC.into());
    let mut command = command(body)?;
    let cmd = command.cmd.clone();
    let guest = capsules::guest(&app, caller.team, id).await?;
    if left_running {
        let tag = command.tag.get_or_insert_with(|| format!("proc-{}", secret::random_hex::<4>())).clone();
        let pid = background(&guest, command).await?;
        let started = ExecStarted { sandbox_id: id.to_string(), cmd, pid, tag };
        return Ok((StatusCode::ACCEPTED, axum::Json(started)).into_response());
    }
    command.tag = None;
    let finished = foreground(&app, &guest, command, Duration::from_secs(limit.min(MAX_TIMEOUT_SEC))).await?;
    Ok(axum::Json(result(id, cmd, finished)).into_response())
}

fn command(body: Exec) -> Result<Command, ApiError> {
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    let cmd = text(body.cmd).ok_or_else(|| ApiError::invalid("cmd is required"))?;
    let args = body.args.unwrap_or_default();
    let envs = body.envs.unwrap_or_default();
    let cwd = text(body.cwd);
    let command = Command { cmd, args, envs, cwd, tag: text(body.tag), ..Command::default() };
    command.check().map_err(ApiError::invalid)?;
    Ok(command)
}

fn result(id: CapsuleId, cmd: String, finished: Finished) -> ExecResult {
    let Finished { stdout, stderr, exit_code, duration } = finished;
    let (stdout, stderr, encoding) = match (String::from_utf8(stdout), String::from_utf8(stderr)) {
        (Ok(stdout), Ok(stderr)) => (stdout, stderr, "utf-8"),
        (stdout, stderr) => (base64(stdout), base64(stderr), "base64"),
    };
    let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    ExecResult { sandbox_id: id.to_string(), cmd, stdout, stderr, exit_code, duration_ms, encoding }
}

fn base64(stream: Result<String, std::string::FromUtf8Error>) -> String {
    match stream {
        Ok(text) => STANDARD.encode(text),
        Err(error) => STANDARD.encode(error.as_bytes()),
    }
}

/// A live process.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Process {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    cmd: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
}

impl From<process::ProcessInfo> for Process {
    fn from(info: process::ProcessInfo) -> Self {
        let config = info.config.into_option().unwrap_or_default();
        Self { pid: info.pid, tag: info.tag, cmd: config.cmd, args: config.args }
    }
}

/// Live processes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Processes {
    processes: Vec<Process>,
}

/// List processes
///
/// The live ones that were started through the API, terminals included.
#[utoipa::path(get, path = "/v1/capsules/{id}/processes", tag = "processes",
    params(("id" = String, Path, description = "The capsule")), responses((status = 200, body = Processes), Failures))]
pub(super) async fn processes(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
) -> Result<axum::Json<Processes>, ApiError> {
    let guest = capsules::guest(&app, caller.team, id).await?;
    let found = guest.list().await.map_err(|error| failure(&error))?;
    Ok(axum::Json(Processes { processes: found.into_iter().map(Process::from).collect() }))
}

/// How to end a process.
#[derive(Debug, Deserialize)]
pub(super) struct KillQuery {
    signal: Option<String>,
}

/// Kill a process
#[utoipa::path(delete, path = "/v1/capsules/{id}/processes/{selector}", tag = "processes",
    params(("id" = String, Path, description = "The capsule"), ("selector" = String, Path, description = "PID or tag"),
        ("signal" = Option<String>, Query, description = "`SIGKILL` (default) or `SIGTERM`")),
    responses((status = 204, description = "Signalled"), Failures))]
pub(super) async fn kill(
    State(app): State<App>,
    caller: Caller,
    InCapsule(id): InCapsule,
    InProcess(selector): InProcess,
    Parameters(query): Parameters<KillQuery>,
) -> Result<StatusCode, ApiError> {
    let signal = match query.signal.as_deref() {
        Some("SIGTERM") => Signal::SIGNAL_SIGTERM,
        _ => Signal::SIGNAL_SIGKILL,
    };
    let guest = capsules::guest(&app, caller.team, id).await?;
    guest.signal(&Selector::parse(&selector), signal).await.map_err(|error| failure(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(stdout: &[u8], stderr: &[u8]) -> ExecResult {
        let finished = Finished { stdout: stdout.into(), stderr: stderr.into(), ..Finished::default() };
        result(CapsuleId::random(), "x".into(), finished)
    }

    #[test]
    fn one_stream_that_is_no_text_makes_both_base64() {
        let text = of("ü".as_bytes(), b"");
        assert_eq!((text.stdout.as_str(), text.encoding), ("ü", "utf-8"));
        let binary = of(b"ok", b"\xff");
        assert_eq!(
            (binary.stdout.as_str(), binary.stderr.as_str(), binary.encoding),
            ("b2s=", "/w==", "base64")
        );
    }

    #[test]
    fn a_command_without_an_executable_is_refused() {
        let empty: Exec = serde_json::from_str(r#"{"cmd": ""}"#).unwrap();
        assert_eq!(command(empty).unwrap_err().message, "cmd is required");
        let nul: Exec = serde_json::from_str(r#"{"cmd": "a\u0000b"}"#).unwrap();
        assert_eq!(command(nul).unwrap_err().code, "invalid_request");
    }
}
