//! Interactive terminals.
//!
//! A session is split into a writer and a reader that live in different tasks. The writer's messages go through a
//! short queue into one task that owns the sending half, so that the reader can answer the server's pings without
//! waiting behind a slow keystroke. The task ends when both halves are gone, after sending what is queued.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::stream::SplitStream;
use futures::{SinkExt, Stream, StreamExt};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use wrenn_core::CapsuleId;

use crate::client::Client;
use crate::error::Error;
use crate::socket::{self, Socket};
use crate::types::TerminalSize;

/// Messages that may wait for the connection.
const QUEUE: usize = 64;

/// What to run in a new terminal. What is not set takes the server's default: a login shell in the user's home.
#[derive(Debug, Clone, Default)]
pub struct PtyCommand {
    /// The executable.
    pub cmd: Option<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables over the base environment.
    pub envs: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// The user it runs as.
    pub user: Option<String>,
}

/// Something that a terminal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PtyEvent {
    /// Bytes for the screen.
    Output(Bytes),
    /// A message of the server; the session goes on.
    Notice(String),
    /// The process ended. The last event.
    Exit(i32),
}

/// An open terminal.
#[derive(Debug)]
pub struct Pty {
    /// Name with which [`Client::pty_attach`] finds it again.
    pub tag: String,
    /// Process id in the capsule.
    pub pid: u32,
    writer: PtyWriter,
    reader: PtyReader,
}

/// The sending half. Dropping it neither ends the process nor the reader.
#[derive(Debug, Clone)]
pub struct PtyWriter {
    queue: mpsc::Sender<Message>,
}

/// The receiving half: a stream that ends after [`PtyEvent::Exit`] or the first error.
#[derive(Debug)]
pub struct PtyReader {
    socket: SplitStream<Socket>,
    pongs: mpsc::Sender<Message>,
    done: bool,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Control {
    Started {
        tag: String,
        pid: u32,
    },
    Exit {
        exit_code: i32,
    },
    Error {
        data: String,
        #[serde(default)]
        fatal: bool,
    },
    Ping,
    #[serde(other)]
    Unknown,
}

impl Client {
    /// Opens a terminal. It outlives the connection: only [`PtyWriter::kill`], the end of its process, or the end of
    /// the capsule ends it.
    ///
    /// # Errors
    /// Where the session cannot be opened or the process not be started.
    pub async fn pty(&self, id: CapsuleId, command: &PtyCommand, size: TerminalSize) -> Result<Pty, Error> {
        let mut start = json!({"type": "start", "cols": size.cols, "rows": size.rows});
        for (key, value) in [("cmd", &command.cmd), ("cwd", &command.cwd), ("user", &command.user)] {
            if let Some(value) = value {
                start[key] = json!(value);
            }
        }
        if !command.args.is_empty() {
            start["args"] = json!(command.args);
        }
        if !command.envs.is_empty() {
            start["envs"] = json!(command.envs);
        }
        self.open_pty(id, start).await
    }

    /// Opens a terminal that exists, from its next output on.
    ///
    /// # Errors
    /// [`Error::Session`] for an unknown tag.
    pub async fn pty_attach(&self, id: CapsuleId, tag: &str, size: TerminalSize) -> Result<Pty, Error> {
        let first = json!({"type": "connect", "tag": tag, "cols": size.cols, "rows": size.rows});
        self.open_pty(id, first).await
    }

    async fn open_pty(&self, id: CapsuleId, first: serde_json::Value) -> Result<Pty, Error> {
        let socket = socket::open(self, &self.capsule_url(id, "/pty")).await?;
        let (mut sink, stream) = socket.split();
        sink.send(socket::text(&first)).await.map_err(socket::failed)?;
        let (queue, mut queued) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            while let Some(message) = queued.recv().await {
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            // A connection that is gone needs no farewell.
            let _ = sink.close().await;
        });
        let mut reader = PtyReader { socket: stream, pongs: queue.clone(), done: false };
        let (tag, pid) = reader.started().await?;
        Ok(Pty { tag, pid, writer: PtyWriter { queue }, reader })
    }
}

impl Pty {
    /// The two halves, for two tasks.
    pub fn split(self) -> (PtyWriter, PtyReader) {
        (self.writer, self.reader)
    }
}

impl PtyWriter {
    /// Sends keystrokes. Waits while the connection is slow.
    ///
    /// # Errors
    /// [`Error::Disconnected`] where the connection is gone.
    pub async fn write(&self, bytes: impl Into<Bytes>) -> Result<(), Error> {
        self.send(Message::Binary(bytes.into())).await
    }

    /// Tells the terminal its new size.
    ///
    /// # Errors
    /// [`Error::Disconnected`] where the connection is gone.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        self.send(socket::text(&json!({"type": "resize", "cols": size.cols, "rows": size.rows}))).await
    }

    /// Kills (SIGKILL) the process; its exit arrives at the reader.
    ///
    /// # Errors
    /// [`Error::Disconnected`] where the connection is gone.
    pub async fn kill(&self) -> Result<(), Error> {
        self.send(socket::text(&json!({"type": "kill"}))).await
    }

    async fn send(&self, message: Message) -> Result<(), Error> {
        self.queue.send(message).await.map_err(|_| Error::Disconnected)
    }
}

/// What the reader made of a message.
enum Step {
    Started(String, u32),
    Event(PtyEvent),
    Nothing,
}

impl PtyReader {
    async fn started(&mut self) -> Result<(String, u32), Error> {
        loop {
            match futures::future::poll_fn(|cx| self.poll_step(cx)).await? {
                Step::Started(tag, pid) => return Ok((tag, pid)),
                Step::Event(PtyEvent::Exit(code)) => {
                    return Err(Error::Session(format!("the terminal ended at once with exit code {code}")));
                }
                Step::Event(_) | Step::Nothing => {}
            }
        }
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Error>> {
        Poll::Ready(match ready!(self.socket.poll_next_unpin(cx)) {
            Some(Ok(Message::Binary(bytes))) => Ok(Step::Event(PtyEvent::Output(bytes))),
            Some(Ok(Message::Text(text))) => self.control(&text),
            Some(Ok(Message::Close(_))) | None => Err(Error::Disconnected),
            Some(Ok(_)) => Ok(Step::Nothing),
            Some(Err(error)) => Err(socket::failed(error)),
        })
    }

    fn control(&self, text: &str) -> Result<Step, Error> {
        match serde_json::from_str(text).unwrap_or(Control::Unknown) {
            Control::Started { tag, pid } => Ok(Step::Started(tag, pid)),
            Control::Exit { exit_code } => Ok(Step::Event(PtyEvent::Exit(exit_code))),
            Control::Error { data, fatal: true } => Err(Error::Session(data)),
            Control::Error { data, fatal: false } => Ok(Step::Event(PtyEvent::Notice(data))),
            Control::Ping => {
                // With a full queue the connection is not idle, and idleness is all that the answer prevents.
                let _ = self.pongs.try_send(socket::text(&json!({"type": "pong"})));
                Ok(Step::Nothing)
            }
            Control::Unknown => Ok(Step::Nothing),
        }
    }
}

impl Stream for PtyReader {
    type Item = Result<PtyEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.done {
            let item = match ready!(self.poll_step(cx)) {
                Ok(Step::Event(event)) => Ok(event),
                Ok(Step::Started(..) | Step::Nothing) => continue,
                Err(error) => Err(error),
            };
            self.done = matches!(item, Err(_) | Ok(PtyEvent::Exit(_)));
            return Poll::Ready(Some(item));
        }
        Poll::Ready(None)
    }
}
