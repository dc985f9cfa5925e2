//! Commands that run to their end while the client waits, and commands that are left running.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};
use wrenn_core::limits::MAX_EXEC_OUTPUT;
use wrenn_protocol::guest::SpawnError;
use wrenn_protocol::process::Signal;

use crate::api::ApiError;
use crate::guest::{Command, Event, Events, Guest, GuestError, Selector, failure};
use crate::state::App;

/// Exit codes that a shell gives where a command cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;
/// Longest time limit that is counted in full: ten years. Beyond some such limit the clock's own arithmetic ends.
pub(crate) const MAX_TIMEOUT_SEC: u64 = 315_360_000;
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of a stream may follow its last event.
const TRAIL: Duration = Duration::from_secs(1);

/// A command that has ended.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit_code: i32,
    pub(crate) duration: Duration,
}

/// Kills a process unless it is released: whoever waits for it has given up.
pub(crate) struct Leash {
    app: App,
    guest: Guest,
    pid: Option<u32>,
}

impl Leash {
    pub(crate) fn new(app: &App, guest: &Guest, pid: u32) -> Self {
        Self { app: app.clone(), guest: guest.clone(), pid: Some(pid) }
    }

    /// The process has ended by itself.
    pub(crate) fn release(&mut self) {
        self.pid = None;
    }

    /// Kills the process now.
    pub(crate) async fn kill(&mut self) {
        if let Some(pid) = self.pid.take() {
            kill(&self.guest, pid).await;
        }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.take() {
            let guest = self.guest.clone();
            self.app.tasks.spawn(async move { kill(&guest, pid).await });
        }
    }
}

async fn kill(guest: &Guest, pid: u32) {
    let selector = Selector::Pid(pid);
    let signal = guest.signal(&selector, Signal::SIGNAL_SIGKILL);
    if let Ok(Err(error)) = timeout(KILL_TIMEOUT, signal).await {
        tracing::debug!(capsule.id = %guest.capsule(), %error, "process {pid} could not be killed");
    }
}

/// Runs a command to its end; kills it when `limit` runs out or the caller goes away.
pub(crate) async fn foreground(
    app: &App,
    guest: &Guest,
    command: Command,
    limit: Duration,
) -> Result<Finished, ApiError> {
    let begun = Instant::now();
    let deadline = begun + limit;
    let late = || ApiError::timeout(format!("the command did not finish within {} s", limit.as_secs()));
    let name = command.cmd.clone();
    let started = tokio::time::timeout_at(deadline, guest.start(command)).await.map_err(|_| late())?;
    let (pid, mut events) = match started.map_err(GuestError::from) {
        Ok(started) => started,
        Err(error) => return unstarted(&name, error, begun),
    };
    let mut leash = Leash::new(app, guest, pid);
    match tokio::time::timeout_at(deadline, collect(&mut events)).await {
        Ok(Ok(finished)) => {
            leash.release();
            Ok(Finished { duration: begun.elapsed(), ..finished })
        }
        Ok(Err(error)) => {
            leash.kill().await;
            Err(error)
        }
        Err(_) => {
            leash.kill().await;
            Err(late())
        }
    }
}

/// What a shell would say of a command that cannot be run.
fn unstarted(name: &str, error: GuestError, begun: Instant) -> Result<Finished, ApiError> {
    let (exit_code, text) = match error {
        GuestError::Spawn(SpawnError::NotFound) => (NOT_FOUND, "not found"),
        GuestError::Spawn(SpawnError::NotExecutable) => (NOT_EXECUTABLE, "permission denied"),
        GuestError::Spawn(SpawnError::BadCwd) => {
            return Err(ApiError::invalid("cwd is not a directory of the capsule"));
        }
        GuestError::Other(error) => return Err(error),
    };
    let stderr = format!("sh: {name}: {text}\n").into_bytes();
    Ok(Finished { stderr, exit_code, duration: begun.elapsed(), ..Finished::default() })
}

async fn collect(events: &mut Events) -> Result<Finished, ApiError> {
    let mut finished = Finished::default();
    loop {
        match events.next().await.map_err(|error| failure(&error))? {
            Some(Event::Stdout(data) | Event::Terminal(data)) => {
                keep(&mut finished.stdout, &data, finished.stderr.len())?;
            }
            Some(Event::Stderr(data)) => keep(&mut finished.stderr, &data, finished.stdout.len())?,
            Some(Event::End(end)) => {
                finished.exit_code = end.exit_code;
                // Read to its end, the connection can carry the next command.
                let _ = timeout(TRAIL, events.next()).await;
                return Ok(finished);
            }
            None => return Err(ApiError::agent("the command's output ended before the command did")),
        }
    }
}

fn keep(stream: &mut Vec<u8>, data: &Bytes, other: usize) -> Result<(), ApiError> {
    if stream.len() + other + data.len() > MAX_EXEC_OUTPUT {
        return Err(ApiError::agent(
            "the command wrote more than 64 MiB; redirect its output to a file or stream it",
        ));
    }
    stream.extend_from_slice(data);
    Ok(())
}

/// Starts a command and leaves it running: its PID.
pub(crate) async fn background(guest: &Guest, command: Command) -> Result<u32, ApiError> {
    let name = command.cmd.clone();
    match guest.start(command).await.map_err(GuestError::from) {
        Ok((pid, _)) => Ok(pid),
        Err(error) => Err(spawn_failure(&name, error)),
    }
}

/// The answer where a command that is not waited for cannot be run.
pub(crate) fn spawn_failure(name: &str, error: GuestError) -> ApiError {
    match error {
        GuestError::Spawn(SpawnError::NotFound) => ApiError::invalid(format!("{name}: not found")),
        GuestError::Spawn(SpawnError::NotExecutable) => {
            ApiError::invalid(format!("{name}: permission denied"))
        }
        GuestError::Spawn(SpawnError::BadCwd) => ApiError::invalid("cwd is not a directory of the capsule"),
        GuestError::Other(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_executable_ends_like_in_a_shell() {
        let error = GuestError::Spawn(SpawnError::NotFound);
        let finished = unstarted("nope", error, Instant::now()).unwrap();
        assert_eq!(finished.exit_code, 127);
        assert_eq!(finished.stderr, b"sh: nope: not found\n");
        let error = unstarted("ls", GuestError::Spawn(SpawnError::BadCwd), Instant::now()).unwrap_err();
        assert_eq!(error.code, "invalid_request");
    }

    #[test]
    fn both_streams_share_one_cap() {
        let mut stream = vec![0; 10];
        let data = Bytes::from_static(b"x");
        assert!(keep(&mut stream, &data, MAX_EXEC_OUTPUT - 11).is_ok());
        assert_eq!(keep(&mut stream, &data, MAX_EXEC_OUTPUT - 11).unwrap_err().code, "agent_error");
    }
}
