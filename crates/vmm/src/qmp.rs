//! A client of QEMU's machine protocol (QMP): one JSON object a line over a unix socket.
//!
//! Each command carries an id; a reader task hands the answer to whoever waits for that id, and broadcasts events.
//! Events and members that this client does not know pass by, so a newer QEMU is no error. The connection ends with
//! the last handle, and QEMU then accepts another client.

use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, oneshot};
use tokio::task::AbortHandle;

/// Far above what any command in use takes, even under emulation on a crowded host.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Events are rare; a receiver that falls this far behind is told so by its channel.
const EVENT_BACKLOG: usize = 64;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused the command.
    #[error("QEMU refused `{command}`: {description} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of the error.
        class: String,
        /// QEMU's own words.
        description: String,
    },
    /// The connection ended before the answer came: the VMM has ended, or is ending.
    #[error("QEMU closed its control socket before it answered `{command}`")]
    Closed {
        /// The command.
        command: String,
    },
    /// No answer within the time limit.
    #[error("QEMU did not answer `{command}` within {after:?}")]
    Timeout {
        /// The command.
        command: String,
        /// The limit.
        after: Duration,
    },
    /// The answer is not of the shape that this command has.
    #[error("QEMU's answer to `{command}` has an unknown form")]
    Answer {
        /// The command.
        command: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The socket failed.
    #[error("QEMU's control socket failed")]
    Io(#[from] std::io::Error),
}

/// Something that QEMU tells unasked, such as `STOP`, `RESUME`, `SHUTDOWN`.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    /// The event's name.
    #[serde(rename = "event")]
    pub name: String,
    /// Its details.
    #[serde(default)]
    pub data: Value,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

#[derive(Debug, Deserialize)]
struct Answer {
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

type Outcome = Result<Value, Refusal>;

/// The commands on their way; `None` once the connection has ended.
type Pending = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Outcome>>>>>;

/// A connection whose capabilities are negotiated.
#[derive(Debug)]
pub struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: Pending,
    next_id: AtomicU64,
    events: broadcast::Sender<Event>,
    reader: AbortHandle,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Takes QEMU's greeting from a fresh connection and enters command mode.
    ///
    /// # Errors
    /// [`QmpError`] where the other side does not speak QMP, or does not answer.
    pub async fn negotiate(stream: UnixStream) -> Result<Self, QmpError> {
        let command = || "qmp_capabilities".to_owned();
        let (read, write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let greeting = tokio::time::timeout(CALL_TIMEOUT, lines.next_line())
            .await
            .map_err(|_| QmpError::Timeout { command: command(), after: CALL_TIMEOUT })??
            .ok_or_else(|| QmpError::Closed { command: command() })?;
        tracing::trace!(%greeting, "connected to QEMU");
        let pending: Pending = Arc::new(Mutex::new(Some(HashMap::new())));
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let reader = tokio::spawn(read_all(lines, Arc::clone(&pending), events.clone())).abort_handle();
        let writer = tokio::sync::Mutex::new(write);
        let qmp = Self { writer, pending, next_id: AtomicU64::new(1), events, reader };
        qmp.execute(&command(), Value::Null).await?;
        Ok(qmp)
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Runs a command and waits for its answer. `arguments` is an object, or null for none.
    ///
    /// # Errors
    /// [`QmpError`] where QEMU refuses, goes away or does not answer in time.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.limited(command, self.exchange(command, arguments, None)).await
    }

    /// As [`Qmp::execute`], with a descriptor that QEMU receives along with the command.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_with(
        &self,
        command: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        self.limited(command, self.exchange(command, arguments, Some(fd))).await
    }

    async fn limited(
        &self,
        command: &str,
        answer: impl Future<Output = Result<Value, QmpError>>,
    ) -> Result<Value, QmpError> {
        tokio::time::timeout(CALL_TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| Err(QmpError::Timeout { command: command.to_owned(), after: CALL_TIMEOUT }))
    }

    /// Runs a command without arguments and reads its answer into `T`.
    ///
    /// # Errors
    /// As [`Qmp::execute`], and [`QmpError::Answer`].
    pub async fn query<T: DeserializeOwned>(&self, command: &str) -> Result<T, QmpError> {
        let value = self.execute(command, Value::Null).await?;
        serde_json::from_value(value)
            .map_err(|source| QmpError::Answer { command: command.to_owned(), source })
    }

    async fn exchange(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let closed = || QmpError::Closed { command: command.to_owned() };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut request = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let (_ticket, answer) = Ticket::new(&self.pending, id).ok_or_else(closed)?;
        let line = format!("{request}\n");
        // A socket that QEMU has closed is the same to the caller before and after the write.
        self.write(line.as_bytes(), fd).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?.map_err(|refusal| QmpError::Refused {
            command: command.to_owned(),
            class: refusal.class,
            description: refusal.desc,
        })
    }

    async fn write(&self, line: &[u8], fd: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
        let mut writer = self.writer.lock().await;
        let sent = match fd {
            Some(fd) => send_with(writer.as_ref(), line, fd).await?,
            None => 0,
        };
        writer.write_all(&line[sent..]).await
    }
}

/// Writes the first bytes of a command together with a descriptor, and says how many they were.
async fn send_with(socket: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> std::io::Result<usize> {
    socket
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = [fd];
            if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(std::io::ErrorKind::OutOfMemory.into());
            }
            Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
        })
        .await
}

/// A place in the map of pending commands, given up also when the caller stops waiting.
struct Ticket<'a> {
    pending: &'a Pending,
    id: u64,
}

impl<'a> Ticket<'a> {
    /// `None` where the connection has ended.
    fn new(pending: &'a Pending, id: u64) -> Option<(Self, oneshot::Receiver<Outcome>)> {
        let (sender, receiver) = oneshot::channel();
        pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.insert(id, sender);
        Some((Self { pending, id }, receiver))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(map) = self.pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            map.remove(&self.id);
        }
    }
}

async fn read_all(
    mut lines: Lines<BufReader<OwnedReadHalf>>,
    pending: Pending,
    events: broadcast::Sender<Event>,
) {
    while let Ok(Some(line)) = lines.next_line().await {
        dispatch(&line, &pending, &events);
    }
    // Dropping the senders wakes every waiter with "closed".
    pending.lock().unwrap_or_else(PoisonError::into_inner).take();
}

fn dispatch(line: &str, pending: &Pending, events: &broadcast::Sender<Event>) {
    if let Ok(event) = serde_json::from_str::<Event>(line) {
        // Nobody listening is fine.
        let _ = events.send(event);
        return;
    }
    let Ok(Answer { id: Some(id), value, error }) = serde_json::from_str(line) else {
        tracing::debug!(line, "a line from QEMU that is neither an answer nor an event");
        return;
    };
    let waiter =
        pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(|map| map.remove(&id));
    if let Some(waiter) = waiter {
        let _ = waiter.send(error.map_or_else(|| Ok(value.unwrap_or_default()), Err));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that greets, accepts the negotiation, and then runs `script` on its end.
    async fn peer<F, S>(script: S) -> Qmp
    where
        S: FnOnce(Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf) -> F + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        tokio::spawn(async move {
            let (read, mut write) = theirs.into_split();
            let mut lines = BufReader::new(read).lines();
            write.write_all(b"{\"QMP\":{\"version\":{},\"capabilities\":[]}}\n").await.expect("greet");
            lines.next_line().await.expect("read");
            write.write_all(b"{\"return\":{},\"id\":1}\n").await.expect("answer");
            script(lines, write).await;
        });
        Qmp::negotiate(ours).await.expect("negotiated")
    }

    #[tokio::test]
    async fn answers_reach_their_callers_out_of_order_and_events_pass_between() {
        let qmp = peer(|mut lines, mut write| async move {
            lines.next_line().await.unwrap();
            lines.next_line().await.unwrap();
            let text = "{\"timestamp\":{},\"event\":\"NEW_IN_QEMU_99\"}\nnot json\n{\"return\":3,\"id\":3}\n\
                        {\"return\":9,\"id\":9}\n{\"return\":2,\"id\":2,\"new\":1}\n";
            write.write_all(text.as_bytes()).await.unwrap();
            lines.next_line().await.unwrap();
        })
        .await;
        let mut events = qmp.events();
        let (first, second) = tokio::join!(qmp.query::<u32>("a"), qmp.query::<u32>("b"));
        assert_eq!((first.unwrap(), second.unwrap()), (2, 3));
        assert_eq!(events.recv().await.unwrap().name, "NEW_IN_QEMU_99");
    }

    #[tokio::test]
    async fn a_refusal_carries_the_words_of_qemu() {
        let qmp = peer(|mut lines, mut write| async move {
            lines.next_line().await.unwrap();
            let text = "{\"id\":2,\"error\":{\"class\":\"GenericError\",\"desc\":\"no such device\"}}\n";
            write.write_all(text.as_bytes()).await.unwrap();
            lines.next_line().await.unwrap();
        })
        .await;
        let error = qmp.execute("device_del", json!({ "id": "x" })).await.unwrap_err();
        assert!(error.to_string().contains("`device_del`: no such device"), "{error}");
    }

    #[tokio::test]
    async fn a_connection_that_ends_fails_the_waiting_and_all_later_calls() {
        let qmp = peer(|mut lines, _write| async move {
            lines.next_line().await.unwrap();
        })
        .await;
        assert!(matches!(qmp.query::<Value>("a").await, Err(QmpError::Closed { .. })));
        assert!(matches!(qmp.query::<Value>("b").await, Err(QmpError::Closed { .. })));
    }

    #[tokio::test]
    async fn a_caller_that_stops_waiting_leaves_nothing_behind() {
        let qmp = peer(|lines, write| async move {
            std::future::pending::<()>().await;
            drop((lines, write));
        })
        .await;
        let waiting = tokio::time::timeout(Duration::from_millis(10), qmp.query::<Value>("a"));
        assert!(waiting.await.is_err());
        assert_eq!(qmp.pending.lock().unwrap().as_ref().map(HashMap::len), Some(0));
    }
}
