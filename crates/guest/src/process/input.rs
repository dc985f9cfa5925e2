//! What is written to a process. One writer at a time, in the order the calls came; a process that does not read holds
//! up its own writers only, and only until it ends.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::termios::Winsize;
use tokio::io::AsyncWriteExt as _;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};

/// The writing end towards a process.
#[derive(Debug)]
pub(super) enum Input {
    /// A pipe, until it is closed.
    Pipe(Mutex<Option<pipe::Sender>>),
    /// A terminal; the lock orders the writers.
    Terminal(Arc<AsyncFd<OwnedFd>>, Mutex<()>),
    /// Nothing: the process reads from `/dev/null`.
    Nothing,
}

/// What a caller wants written.
#[derive(Debug)]
pub(super) enum Data {
    /// For a pipe.
    Stdin(Vec<u8>),
    /// For a terminal.
    Pty(Vec<u8>),
}

impl Input {
    /// Writes all of `data`, or gives up when the process ends.
    pub(super) async fn write(&self, data: &Data, ended: &CancellationToken) -> Result<()> {
        let writing = async {
            match (self, data) {
                (Self::Pipe(pipe), Data::Stdin(bytes)) => write_pipe(pipe, bytes).await,
                (Self::Terminal(terminal, order), Data::Pty(bytes)) => {
                    let _turn = order.lock().await;
                    write_terminal(terminal, bytes).await.map_err(|e| broken(&e))
                }
                (Self::Terminal(..), Data::Stdin(_)) => Err(mismatch("has a terminal: send pty input")),
                (Self::Pipe(_), Data::Pty(_)) => Err(mismatch("has no terminal: send stdin")),
                (Self::Nothing, _) => Err(mismatch("was started without stdin")),
            }
        };
        tokio::select! {
            biased;
            result = writing => result,
            () = ended.cancelled() => Err(Error::not_found("the process has ended")),
        }
    }

    /// Closes the pipe, after what is being written. Closing twice is fine.
    pub(super) async fn close(&self, ended: &CancellationToken) -> Result<()> {
        match self {
            Self::Pipe(pipe) => {
                tokio::select! {
                    mut pipe = pipe.lock() => drop(pipe.take()),
                    () = ended.cancelled() => {}
                }
                Ok(())
            }
            Self::Terminal(..) => Err(mismatch("has a terminal, which has no end of file: send byte 4")),
            Self::Nothing => Ok(()),
        }
    }

    /// Sets the size of the terminal.
    pub(super) fn resize(&self, cols: u16, rows: u16) -> Result<()> {
        match self {
            Self::Terminal(terminal, _) => rustix::termios::tcsetwinsize(terminal, window(cols, rows))
                .map_err(|errno| Error::path("terminal", errno)),
            _ => Err(Error::invalid("the process has no terminal to resize")),
        }
    }
}

/// A terminal size in characters.
pub(super) fn window(cols: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

fn mismatch(what: &str) -> Error {
    Error::new(Kind::Internal, format!("the process {what}"))
}

fn broken(error: &io::Error) -> Error {
    Error::new(Kind::Internal, format!("the process does not take input: {error}"))
}

async fn write_pipe(pipe: &Mutex<Option<pipe::Sender>>, bytes: &[u8]) -> Result<()> {
    match pipe.lock().await.as_mut() {
        Some(pipe) => pipe.write_all(bytes).await.map_err(|e| broken(&e)),
        None => Err(mismatch("has had its stdin closed")),
    }
}

async fn write_terminal(terminal: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = terminal.writable().await?;
        match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
            Ok(written) => bytes = &bytes[written?..],
            Err(_would_block) => {}
        }
    }
    Ok(())
}
