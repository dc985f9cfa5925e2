//! Terminals.
//!
//! Four things go on at once, none waiting for another: output flows to the client, messages are read, keystrokes are
//! typed, and control messages are carried out. Keystrokes that come while others are on their way are merged into one
//! call; control messages overtake them, so that a kill works where the process reads nothing. The process outlives
//! the socket.

use std::sync::{Mutex, PoisonError};

use axum::extract::ws::Message;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use wrenn_protocol::guest::SpawnError;
use wrenn_protocol::process::Signal;

use super::{Ending, Inbound, PIECE, Session, SocketTask, send, string_map, strings, text};
use crate::exec::spawn_failure;
use crate::guest::{Command, Event, Events, Guest, GuestError, Selector, TerminalSize, failure};
use crate::secret;

const DEFAULT_SHELL: &str = "/bin/bash";
/// Every image has it.
const LAST_SHELL: &str = "/bin/sh";
const DEFAULT_SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };
const DEFAULT_TERM: &str = "xterm-256color";
/// Keystrokes kept for a process that reads nothing, in bytes; beyond it the socket is not read.
const MAX_UNTYPED: usize = 8 * 1024 * 1024;
/// Control messages on their way.
const CONTROLS: usize = 64;

/// Runs one terminal session.
pub(crate) async fn pty(task: SocketTask) {
    task.run(async |session: &mut Session, guest| run(session, &guest).await.unwrap_or_else(|ending| ending))
        .await;
}

async fn run(session: &mut Session, guest: &Guest) -> Result<Ending, Ending> {
    let message = session.first().await?;
    let (pid, tag, mut events) = match message["type"].as_str() {
        Some("start") => start(guest, &message).await?,
        Some("connect") => connect(guest, &message).await?,
        _ => return Err(Ending::Failed("the first message must be of type start or connect".into())),
    };
    session.send(&json!({"type": "started", "tag": tag, "pid": pid})).await?;
    let process = Selector::Pid(pid);
    let typed = Typed::default();
    let (controls, orders) = mpsc::channel(CONTROLS);
    let out = session.out.clone();
    tokio::select! {
        ended = show(&mut events, &out) => ended,
        ending = read(session, &typed, &controls) => Ok(ending),
        never = type_in(guest, &process, &typed, &out) => never,
        never = obey(guest, &process, orders) => never,
    }
}

async fn start(guest: &Guest, message: &Value) -> Result<(u32, String, Events), Ending> {
    let tag = format!("pty-{}", secret::random_hex::<4>());
    let mut command = parse_start(message, &tag).map_err(|text| Ending::Failed(text.to_owned()))?;
    let mut started = guest.start(command.clone()).await.map_err(GuestError::from);
    let shell_missing = matches!(started, Err(GuestError::Spawn(SpawnError::NotFound)));
    if shell_missing && command.cmd == DEFAULT_SHELL && command.args.is_empty() {
        LAST_SHELL.clone_into(&mut command.cmd);
        started = guest.start(command.clone()).await.map_err(GuestError::from);
    }
    let (pid, events) = started.map_err(|error| spawn_failure(&command.cmd, error))?;
    Ok((pid, tag, events))
}

async fn connect(guest: &Guest, message: &Value) -> Result<(u32, String, Events), Ending> {
    let tag = text(&message["tag"]).ok_or_else(|| Ending::Failed("tag is required".into()))?;
    let selector = Selector::Tag(tag.clone());
    let (pid, events) = guest.attach(&selector).await.map_err(|error| failure(&error))?;
    if let Some(size) = size(message) {
        guest.resize(&selector, size).await.map_err(|error| failure(&error))?;
    }
    Ok((pid, tag, events))
}

fn size(message: &Value) -> Option<TerminalSize> {
    let side =
        |name: &str| message[name].as_u64().filter(|&n| n > 0).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    Some(TerminalSize { cols: side("cols")?, rows: side("rows")? })
}

fn parse_start(message: &Value, tag: &str) -> Result<Command, &'static str> {
    let mut envs = string_map(&message["envs"]).ok_or("envs must map strings to strings")?;
    envs.entry("TERM".to_owned()).or_insert_with(|| DEFAULT_TERM.to_owned());
    let command = Command {
        cmd: text(&message["cmd"]).unwrap_or_else(|| DEFAULT_SHELL.to_owned()),
        args: strings(&message["args"]).ok_or("args must be an array of strings")?,
        envs,
        cwd: text(&message["cwd"]),
        tag: Some(tag.to_owned()),
        terminal: Some(size(message).unwrap_or(DEFAULT_SIZE)),
        user: text(&message["user"]),
    };
    command.check()?;
    Ok(command)
}

/// Keystrokes not yet typed.
#[derive(Debug, Default)]
struct Typed {
    waiting: Mutex<BytesMut>,
    more: Notify,
    room: Notify,
}

impl Typed {
    fn waiting(&self) -> std::sync::MutexGuard<'_, BytesMut> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn push(&self, data: &[u8]) {
        while self.waiting().len() > MAX_UNTYPED {
            self.room.notified().await;
        }
        self.waiting().extend_from_slice(data);
        self.more.notify_one();
    }

    async fn take(&self) -> Bytes {
        loop {
            let data = self.waiting().split().freeze();
            if !data.is_empty() {
                self.room.notify_one();
                return data;
            }
            self.more.notified().await;
        }
    }
}

enum Control {
    Resize(TerminalSize),
    Kill,
}

/// Reads messages until the socket ends.
async fn read(session: &mut Session, typed: &Typed, controls: &mpsc::Sender<Control>) -> Ending {
    loop {
        let message = match session.receive().await {
            Ok(Inbound::Binary(data)) => {
                typed.push(&data).await;
                continue;
            }
            Ok(Inbound::Text(message)) => message,
            Err(ending) => return ending,
        };
        let control = match message["type"].as_str() {
            Some("input") => {
                let data = message["data"].as_str().and_then(|data| STANDARD.decode(data).ok());
                typed.push(&data.unwrap_or_default()).await;
                None
            }
            Some("resize") => size(&message).map(Control::Resize),
            Some("kill") => Some(Control::Kill),
            _ => None,
        };
        if let Some(control) = control
            && controls.send(control).await.is_err()
        {
            return Ending::Gone;
        }
    }
}

/// Shows output as it comes, as fast as the client takes it.
async fn show(events: &mut Events, out: &mpsc::Sender<Message>) -> Result<Ending, Ending> {
    loop {
        match events.next().await.map_err(|error| failure(&error))? {
            Some(Event::Terminal(mut data) | Event::Stdout(mut data) | Event::Stderr(mut data)) => {
                while !data.is_empty() {
                    let piece = data.split_to(data.len().min(PIECE));
                    out.send(Message::Binary(piece)).await.map_err(|_| Ending::Gone)?;
                }
            }
            Some(Event::End(end)) => {
                send(out, &json!({"type": "exit", "exit_code": end.exit_code})).await?;
                return Ok(Ending::Done);
            }
            None => {
                return Err(Ending::Failed("the connection to the terminal was lost; connect again".into()));
            }
        }
    }
}

/// Types what was read, in order. A process that takes no input is told to the client and does not end the session.
async fn type_in(
    guest: &Guest,
    process: &Selector,
    typed: &Typed,
    out: &mpsc::Sender<Message>,
) -> Result<Ending, Ending> {
    loop {
        let data = typed.take().await;
        if let Err(error) = guest.type_in(process, data).await {
            let told = failure(&error).message;
            send(out, &json!({"type": "error", "data": told})).await?;
        }
    }
}

/// Carries out control messages. One that comes too late for its process is of no interest.
async fn obey(
    guest: &Guest,
    process: &Selector,
    mut orders: mpsc::Receiver<Control>,
) -> Result<Ending, Ending> {
    while let Some(order) = orders.recv().await {
        let done = match order {
            Control::Resize(size) => guest.resize(process, size).await,
            Control::Kill => guest.signal(process, Signal::SIGNAL_SIGKILL).await,
        };
        if let Err(error) = done {
            tracing::debug!(capsule.id = %guest.capsule(), %error, "a terminal did not take a control message");
        }
    }
    Err(Ending::Gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_start_message_is_optional() {
        let command = parse_start(&json!({"type": "start"}), "pty-1").unwrap();
        assert_eq!(command.cmd, "/bin/bash");
        assert_eq!(command.terminal, Some(DEFAULT_SIZE));
        assert_eq!(command.envs["TERM"], "xterm-256color");
        let message = json!({"type": "start", "cols": 0, "rows": 5, "user": "bob", "envs": {"TERM": "dumb"}});
        let command = parse_start(&message, "pty-1").unwrap();
        assert_eq!(command.terminal, Some(DEFAULT_SIZE));
        assert_eq!(command.user.as_deref(), Some("bob"));
        assert_eq!(command.envs["TERM"], "dumb");
    }

    #[tokio::test]
    async fn keystrokes_that_wait_are_merged_in_order() {
        let typed = Typed::default();
        typed.push(b"a").await;
        typed.push(b"b").await;
        assert_eq!(typed.take().await, "ab");
    }

    #[tokio::test]
    async fn a_full_buffer_waits_until_something_is_typed() {
        let typed = std::sync::Arc::new(Typed::default());
        typed.push(&vec![0; MAX_UNTYPED + 1]).await;
        let pushing = tokio::spawn({
            let typed = typed.clone();
            async move { typed.push(b"x").await }
        });
        assert_eq!(typed.take().await.len(), MAX_UNTYPED + 1);
        pushing.await.unwrap();
        assert_eq!(typed.take().await, "x");
    }
}
