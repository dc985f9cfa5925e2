//! Processes and terminals started through the API.
//!
//! ```text
//!   Start ─▶ spawn ─▶ Process ──(one task each)──▶ output pumps ─▶ subscribers ─▶ RPC streams
//!                        ▲                             exit, deadline ─▶ end event, table
//!             SendInput ─┘ input
//! ```
//!
//! A process belongs to the table, not to the stream that started it: streams come and go. Its own task moves its
//! output to every subscriber and waits for a slow one, which stops this process and no other. An ended process stays
//! findable for a while, so that a late `Connect` still learns how it ended.

mod input;
mod launch;
mod output;
mod service;
pub(crate) mod session;
mod spawn;
mod table;

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wrenn_protocol::process::ProcessConfig;
use wrenn_protocol::process::process_event::EndEvent;

use crate::reaper::{Exit, Reaper};
use input::Input;

pub(crate) use service::{Processes, keepalive};

/// Chunks that wait for one subscriber before the process is held up.
const SUBSCRIBER_CHUNKS: usize = 4;

/// What a subscriber is told, in order.
#[derive(Debug, Clone)]
enum Event {
    /// A piece of output.
    Output(Stream, Bytes),
    /// The process has ended; nothing follows.
    End(EndEvent),
}

/// Where a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
    Pty,
}

/// A process started through the API.
#[derive(Debug)]
struct Process {
    pid: i32,
    tag: Option<String>,
    config: ProcessConfig,
    input: Input,
    audience: Mutex<Audience>,
    ended: CancellationToken,
    reaper: Reaper,
}

/// Who is told about a process, and how it ended once it has.
#[derive(Debug, Default)]
struct Audience {
    subscribers: Vec<mpsc::Sender<Event>>,
    end: Option<EndEvent>,
}

impl Process {
    /// Everything from now on; for an ended process, how it ended.
    fn subscribe(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(SUBSCRIBER_CHUNKS);
        let mut audience = self.audience();
        match &audience.end {
            // An empty channel always has room for one event.
            Some(end) => drop(sender.try_send(Event::End(end.clone()))),
            None => audience.subscribers.push(sender),
        }
        receiver
    }

    /// Hands an event to every subscriber, waiting for the slow ones and forgetting the departed.
    async fn publish(&self, event: &Event) {
        let subscribers = self.audience().subscribers.clone();
        let mut departed = false;
        for subscriber in &subscribers {
            departed |= subscriber.send(event.clone()).await.is_err();
        }
        if departed {
            self.audience().subscribers.retain(|s| !s.is_closed());
        }
    }

    /// Publishes the end, after which nobody can subscribe to output.
    async fn finish(&self, end: EndEvent) {
        let subscribers = {
            let mut audience = self.audience();
            audience.end = Some(end.clone());
            std::mem::take(&mut audience.subscribers)
        };
        self.ended.cancel();
        for subscriber in subscribers {
            // Each has its own pace, and the process is over: nobody waits for anybody.
            let event = Event::End(end.clone());
            if let Err(mpsc::error::TrySendError::Full(event)) = subscriber.try_send(event) {
                tokio::spawn(async move { subscriber.send(event).await });
            }
        }
    }

    /// Signals the process and all it started. Blocks.
    fn signal(&self, signal: rustix::process::Signal) {
        session::signal(&self.reaper, self.pid, signal);
    }

    fn audience(&self) -> MutexGuard<'_, Audience> {
        self.audience.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end event of an exit.
fn end_event(exit: Exit) -> EndEvent {
    let (exit_code, exited, status) = match exit {
        Exit::Code(code) => (code, true, format!("exit status {code}")),
        Exit::Signal(signal) => (-1, false, format!("signal: {}", signal_name(signal))),
    };
    let error = (exit != Exit::Code(0)).then(|| status.clone());
    EndEvent { exit_code, exited, status, error, ..EndEvent::default() }
}

/// The words clients of the E2B daemon know.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGUSR1 => "user defined signal 1",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGUSR2 => "user defined signal 2",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_worded_as_clients_expect() {
        let end = end_event(Exit::Code(0));
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (0, true, "exit status 0"));
        assert_eq!(end.error, None);
        let end = end_event(Exit::Code(3));
        assert_eq!(end.error.as_deref(), Some("exit status 3"));
        let end = end_event(Exit::Signal(9));
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (-1, false, "signal: killed"));
        assert_eq!(end.error.as_deref(), Some("signal: killed"));
    }
}
