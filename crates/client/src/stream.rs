//! Live output of a process: one that ends with the session, or one that was there before.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{SinkExt, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use wrenn_core::CapsuleId;

use crate::client::{Client, segment};
use crate::error::Error;
use crate::socket::{self, Socket};
use crate::types::Command;

/// Something that a process did. Serialised as the message of the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ProcessEvent {
    /// It runs.
    Start {
        /// Its process id in the capsule.
        pid: u32,
    },
    /// Text on standard output. The protocol carries text: bytes that are not UTF-8 have become U+FFFD.
    Stdout {
        /// The text.
        data: String,
    },
    /// Text on standard error.
    Stderr {
        /// The text.
        data: String,
    },
    /// It ended. The last event.
    Exit {
        /// Its exit code; -1 after death by a signal.
        exit_code: i32,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Failure {
    Error { data: String },
}

/// Events of one process, in order. Ends after [`ProcessEvent::Exit`] or the first error; a connection that closes
/// earlier gives [`Error::Disconnected`].
#[derive(Debug)]
pub struct ProcessStream {
    socket: Socket,
    done: bool,
}

impl Client {
    /// Runs a command and streams its output. Dropping the stream kills the process.
    ///
    /// # Errors
    /// Where the session cannot be opened. An unknown capsule, a wrong state or a missing working directory are
    /// told by the stream's first item.
    pub async fn exec_stream(&self, id: CapsuleId, command: &Command) -> Result<ProcessStream, Error> {
        let mut socket = socket::open(self, &self.capsule_url(id, "/exec/stream")).await?;
        let mut start = serde_json::to_value(command).map_err(|e| Error::Protocol(e.to_string()))?;
        start["type"] = json!("start");
        socket.send(socket::text(&start)).await.map_err(socket::failed)?;
        Ok(ProcessStream { socket, done: false })
    }

    /// Watches the process with this pid or tag from now on. Dropping the stream leaves it running.
    ///
    /// # Errors
    /// As [`Client::exec_stream`]; an unknown process is told by the stream's first item.
    pub async fn attach(&self, id: CapsuleId, selector: &str) -> Result<ProcessStream, Error> {
        let path = format!("/processes/{}/stream", segment(selector));
        let socket = socket::open(self, &self.capsule_url(id, &path)).await?;
        Ok(ProcessStream { socket, done: false })
    }
}

impl ProcessStream {
    /// Asks the server to kill the process of [`Client::exec_stream`]; its exit arrives as an event.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub async fn stop(&mut self) -> Result<(), Error> {
        self.socket.send(socket::text(&json!({"type": "stop"}))).await.map_err(socket::failed)
    }
}

impl Stream for ProcessStream {
    type Item = Result<ProcessEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.done {
            let item = match ready!(self.socket.poll_next_unpin(cx)) {
                Some(Ok(Message::Text(text))) => match parse(&text) {
                    Some(item) => item,
                    None => continue,
                },
                Some(Ok(Message::Close(_))) | None => Err(Error::Disconnected),
                Some(Ok(_)) => continue,
                Some(Err(error)) => Err(socket::failed(error)),
            };
            self.done = matches!(item, Err(_) | Ok(ProcessEvent::Exit { .. }));
            return Poll::Ready(Some(item));
        }
        Poll::Ready(None)
    }
}

/// `None` for a kind of message that this client does not know, which the API may add.
fn parse(text: &str) -> Option<Result<ProcessEvent, Error>> {
    if let Ok(event) = serde_json::from_str(text) {
        return Some(Ok(event));
    }
    let Failure::Error { data } = serde_json::from_str(text).ok()?;
    Some(Err(Error::Session(data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_events_and_unknown_kinds_are_skipped() {
        let event = |text: &str| parse(text).unwrap().unwrap();
        assert_eq!(event(r#"{"type":"start","pid":7}"#), ProcessEvent::Start { pid: 7 });
        assert_eq!(event(r#"{"type":"stdout","data":"a"}"#), ProcessEvent::Stdout { data: "a".into() });
        assert_eq!(event(r#"{"type":"exit","exit_code":-1}"#), ProcessEvent::Exit { exit_code: -1 });
        assert!(parse(r#"{"type":"error","data":"no"}"#).unwrap().is_err_and(|e| e.to_string() == "no"));
        assert!(parse(r#"{"type":"weather"}"#).is_none());
        assert!(parse("not json").is_none());
    }
}
