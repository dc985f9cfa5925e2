//! Output of a remote process on the local streams, and what Ctrl-C does meanwhile.

use std::time::Duration;

use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use wrenn_client::{Error, ProcessEvent, ProcessStream};

use crate::output;

/// How long a process that was told to stop may take to be gone.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// SIGINT and SIGTERM, for as long as this lives.
#[derive(Debug)]
pub(super) struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? })
    }

    /// The exit code of a program that the next signal ends: 130 or 143.
    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.int.recv() => 130,
            _ = self.term.recv() => 143,
        }
    }
}

/// Shows the output of a process until it ends, and returns its exit code. With `json`, events are written as they
/// came, one on a line.
pub(super) async fn follow(stream: &mut ProcessStream, json: bool) -> anyhow::Result<i32> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(event) = stream.next().await {
        let event = event?;
        if json {
            let line = format!("{}\n", serde_json::to_string(&event)?);
            stdout.write_all(line.as_bytes()).await.map_err(output::stdout_error)?;
            stdout.flush().await.map_err(output::stdout_error)?;
        }
        match event {
            ProcessEvent::Exit { exit_code } => return Ok(exit_code),
            ProcessEvent::Stdout { data } if !json => {
                stdout.write_all(data.as_bytes()).await.map_err(output::stdout_error)?;
                stdout.flush().await.map_err(output::stdout_error)?;
            }
            ProcessEvent::Stderr { data } if !json => {
                // A closed standard error ends neither the process nor its output.
                let _ = stderr.write_all(data.as_bytes()).await;
                let _ = stderr.flush().await;
            }
            _ => {}
        }
    }
    Err(Error::Disconnected.into())
}

/// [`follow`], except that a signal kills the remote process; a second one does not wait for its end.
pub(super) async fn follow_or_stop(stream: &mut ProcessStream, json: bool) -> anyhow::Result<u8> {
    let mut interrupts = Interrupts::new()?;
    let interrupted = tokio::select! {
        code = follow(stream, json) => return code.map(super::exit_code),
        interrupted = interrupts.next() => interrupted,
    };
    let end = async {
        stream.stop().await?;
        follow(stream, json).await
    };
    tokio::select! {
        // However it ends, closing the connection afterwards makes sure of it.
        _ = tokio::time::timeout(STOP_LIMIT, end) => {}
        _ = interrupts.next() => {}
    }
    Ok(interrupted)
}
