//! What a process writes, read until its end and handed to the subscribers chunk by chunk.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use tokio::io::AsyncReadExt as _;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use super::{Event, Process, Stream};

/// Largest chunk of a pipe, bytes.
const PIPE_CHUNK: usize = 32 * 1024;
/// Largest chunk of a terminal, bytes.
const PTY_CHUNK: usize = 16 * 1024;

/// The reading ends of a process.
#[derive(Debug)]
pub(super) enum Output {
    /// Two pipes.
    Pipes {
        /// Descriptor 1.
        stdout: pipe::Receiver,
        /// Descriptor 2.
        stderr: pipe::Receiver,
    },
    /// One terminal.
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

impl Output {
    /// Publishes everything until every writer is gone. With no subscriber it is read and dropped.
    pub(super) async fn pump(self, process: &Process) {
        match self {
            Self::Pipes { stdout, stderr } => {
                tokio::join!(
                    pump_pipe(stdout, Stream::Stdout, process),
                    pump_pipe(stderr, Stream::Stderr, process)
                );
            }
            Self::Terminal(terminal) => pump_terminal(&terminal, process).await,
        }
    }
}

async fn pump_pipe(mut pipe: pipe::Receiver, stream: Stream, process: &Process) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIPE_CHUNK);
        let mut chunk = (&mut pipe).take(PIPE_CHUNK as u64);
        match chunk.read_buf(&mut buffer).await {
            // A pipe that cannot be read has ended as well.
            Ok(0) | Err(_) => return,
            Ok(_) => process.publish(&Event::Output(stream, buffer.split().freeze())).await,
        }
    }
}

async fn pump_terminal(terminal: &AsyncFd<OwnedFd>, process: &Process) {
    while let Ok(Some(bytes)) = read_terminal(terminal).await {
        process.publish(&Event::Output(Stream::Pty, bytes)).await;
    }
}

/// The next chunk, or `None` when the last process has let go of the terminal, which Linux reports as EIO.
async fn read_terminal(terminal: &AsyncFd<OwnedFd>) -> io::Result<Option<Bytes>> {
    loop {
        let mut ready = terminal.readable().await?;
        let mut buffer = Vec::with_capacity(PTY_CHUNK);
        let read = ready.try_io(|fd| Ok(rustix::io::read(fd, rustix::buffer::spare_capacity(&mut buffer))?));
        match read {
            Err(_would_block) => {}
            Ok(Ok(0)) => return Ok(None),
            Ok(Ok(_)) => return Ok(Some(Bytes::from(buffer))),
            Ok(Err(error)) if Errno::from_io_error(&error) == Some(Errno::IO) => return Ok(None),
            Ok(Err(error)) => return Err(error),
        }
    }
}
