//! Streams of text from a process: one that the socket starts, or one that runs already.

use std::time::Duration;

use axum::extract::ws::Message;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::utf8::Decoder;
use super::{Ending, Inbound, PIECE, Session, SocketTask, send, string_map, strings, text};
use crate::exec::{Leash, MAX_TIMEOUT_SEC, spawn_failure};
use crate::guest::{Command, Event, Events, Guest, GuestError, Selector, failure};

/// How long a killed process may take to report its end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Starts the process that the first message names, and kills it when the socket ends.
pub(crate) async fn exec(task: SocketTask) {
    task.run(async |session: &mut Session, guest| run(session, &guest).await.unwrap_or_else(|ending| ending))
        .await;
}

/// Follows a running process, and leaves it running.
pub(crate) async fn attach(task: SocketTask, selector: Selector) {
    task.run(async |session: &mut Session, guest| {
        follow(session, &guest, &selector).await.unwrap_or_else(|ending| ending)
    })
    .await;
}

async fn run(session: &mut Session, guest: &Guest) -> Result<Ending, Ending> {
    let message = session.first().await?;
    let (command, limit) = parse_start(&message).map_err(|text| Ending::Failed(text.to_owned()))?;
    let name = command.cmd.clone();
    let started =
        guest.start(command).await.map_err(|error| spawn_failure(&name, GuestError::from(error)))?;
    let (pid, mut events) = started;
    let mut leash = Leash::new(&session.app, guest, pid);
    session.send(&json!({"type": "start", "pid": pid})).await?;
    let out = session.out.clone();
    let mut pumping = std::pin::pin!(pump(&mut events, &out));
    let stopped = tokio::select! {
        ended = &mut pumping => {
            // Anything but its end leaves the process running, and nobody there to stop it.
            if ended.is_ok() {
                leash.release();
            } else {
                leash.kill().await;
            }
            return ended;
        }
        ending = listen(session, Listen::ForStop) => ending,
        () = expired(limit) => {
            leash.kill().await;
            return Err(Ending::Failed("the command ran longer than timeout_sec".into()));
        }
    };
    leash.kill().await;
    match stopped {
        // Asked to stop: the client still learns how the process ended.
        Ending::Done => tokio::time::timeout(LAST_WORDS, pumping).await.unwrap_or(Ok(Ending::Done)),
        ending => Ok(ending),
    }
}

async fn follow(session: &mut Session, guest: &Guest, selector: &Selector) -> Result<Ending, Ending> {
    let (pid, mut events) = guest.attach(selector).await.map_err(|error| failure(&error))?;
    session.send(&json!({"type": "start", "pid": pid})).await?;
    let out = session.out.clone();
    tokio::select! {
        ended = pump(&mut events, &out) => ended,
        ending = listen(session, Listen::ForNothing) => Ok(ending),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Listen {
    ForStop,
    ForNothing,
}

/// Reads, so that Pings are answered and an end is noticed. [`Ending::Done`] when the client asks to stop.
async fn listen(session: &mut Session, what: Listen) -> Ending {
    loop {
        match session.receive().await {
            Ok(Inbound::Text(message)) if what == Listen::ForStop && message["type"] == "stop" => {
                return Ending::Done;
            }
            Ok(_) => {}
            Err(ending) => return ending,
        }
    }
}

async fn expired(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Passes output on as it comes, as fast as the client takes it.
async fn pump(events: &mut Events, out: &mpsc::Sender<Message>) -> Result<Ending, Ending> {
    let (mut stdout, mut stderr) = (Decoder::default(), Decoder::default());
    loop {
        match events.next().await.map_err(|error| failure(&error))? {
            Some(Event::Stdout(data) | Event::Terminal(data)) => {
                pass(out, "stdout", &mut stdout, data).await?;
            }
            Some(Event::Stderr(data)) => pass(out, "stderr", &mut stderr, data).await?,
            Some(Event::End(end)) => {
                say(out, "stdout", stdout.finish()).await?;
                say(out, "stderr", stderr.finish()).await?;
                send(out, &json!({"type": "exit", "exit_code": end.exit_code})).await?;
                return Ok(Ending::Done);
            }
            None => return Err(Ending::Failed("the connection to the process was lost".into())),
        }
    }
}

async fn pass(
    out: &mpsc::Sender<Message>,
    kind: &str,
    decoder: &mut Decoder,
    mut data: Bytes,
) -> Result<(), Ending> {
    while !data.is_empty() {
        let piece = data.split_to(data.len().min(PIECE));
        say(out, kind, decoder.push(&piece)).await?;
    }
    Ok(())
}

async fn say(out: &mpsc::Sender<Message>, kind: &str, data: String) -> Result<(), Ending> {
    if data.is_empty() { Ok(()) } else { send(out, &json!({"type": kind, "data": data})).await }
}

fn parse_start(message: &Value) -> Result<(Command, Option<Duration>), &'static str> {
    if message["type"] != "start" {
        return Err("the first message must be {\"type\":\"start\",\"cmd\":…}");
    }
    let command = Command {
        cmd: text(&message["cmd"]).ok_or("cmd is required")?,
        args: strings(&message["args"]).ok_or("args must be an array of strings")?,
        envs: string_map(&message["envs"]).ok_or("envs must map strings to strings")?,
        cwd: text(&message["cwd"]),
        ..Command::default()
    };
    command.check()?;
    let seconds = message["timeout_sec"].as_u64().filter(|&seconds| seconds > 0);
    Ok((command, seconds.map(|seconds| Duration::from_secs(seconds.min(MAX_TIMEOUT_SEC)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_message_needs_its_type_and_a_command() {
        assert!(parse_start(&Value::Null).is_err());
        assert!(parse_start(&json!({"type": "stop"})).is_err());
        assert_eq!(parse_start(&json!({"type": "start"})).unwrap_err(), "cmd is required");
        assert!(parse_start(&json!({"type": "start", "cmd": "x", "args": [1]})).is_err());
        let (command, limit) = parse_start(&json!({"type": "start", "cmd": "x", "args": ["-c"]})).unwrap();
        assert_eq!((command.cmd.as_str(), command.args.as_slice()), ("x", &["-c".to_owned()][..]));
        assert_eq!(limit, None);
    }
}
