//! `wrenn capsule shell`.
//!
//! Two loops run side by side, keys and window sizes up, output down, so that neither waits for the other. The
//! terminal in the capsule outlives the connection; when that is lost, the person is told how to come back.

use std::io::IsTerminal;

use anyhow::bail;
use clap::Args;
use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{SignalKind, signal};
use wrenn_client::{CapsuleId, Client, Error, Pty, PtyCommand, PtyEvent, PtyReader, PtyWriter};

use super::terminal::{self, RawMode};
use super::{exec, key_value, resolve, stdin};
use crate::context::Context;
use crate::output;

/// Which terminal to open.
#[derive(Debug, Args)]
#[command(
    after_help = "The exit code is that of the shell. Others: 125 the platform failed or the connection was \
    lost, 255 the shell died of a signal. A shell whose connection was lost goes on; --attach returns to it."
)]
pub struct ShellArgs {
    /// Id of the capsule, or the beginning of one
    id: String,
    /// Return to the terminal with this tag instead of opening a new one
    #[arg(long, value_name = "TAG", conflicts_with_all = ["env", "cwd", "user", "command"])]
    attach: Option<String>,
    /// Set a variable; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// Working directory [default: the user's home]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// User to run as [default: the template's]
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// Command to run instead of a shell
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(args: ShellArgs, ctx: &Context) -> anyhow::Result<u8> {
    exec::platform_failures(session(args, ctx).await)
}

async fn session(args: ShellArgs, ctx: &Context) -> anyhow::Result<u8> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        bail!(output::Hinted::new(
            "a shell needs a terminal on standard input and output".to_owned(),
            "`wrenn capsule exec` runs commands without one",
        ));
    }
    let client = ctx.client()?;
    let id = resolve::one(&client, &args.id).await?;
    let pty = open(&client, id, args).await?;
    let tag = pty.tag.clone();
    let result = {
        let _raw = RawMode::enter()?;
        drive(pty).await
    };
    if let Err(error) = &result
        && matches!(error.downcast_ref(), Some(Error::Disconnected | Error::Socket(_)))
    {
        let tag = output::clean(&tag);
        output::say(&format!(
            "the shell may still run; return with: wrenn capsule shell {id} --attach {tag}"
        ));
    }
    result
}

async fn open(client: &Client, id: CapsuleId, args: ShellArgs) -> Result<Pty, Error> {
    if let Some(tag) = &args.attach {
        return client.pty_attach(id, tag, terminal::size()).await;
    }
    let mut words = args.command.into_iter();
    let mut envs: std::collections::BTreeMap<_, _> = args.env.into_iter().collect();
    if let Ok(term) = std::env::var("TERM") {
        envs.entry("TERM".to_owned()).or_insert(term);
    }
    let command =
        PtyCommand { cmd: words.next(), args: words.collect(), envs, cwd: args.cwd, user: args.user };
    client.pty(id, &command, terminal::size()).await
}

async fn drive(pty: Pty) -> anyhow::Result<u8> {
    let (writer, reader) = pty.split();
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        // An end that has arrived counts more than a key that could not be sent any more.
        biased;
        code = show(reader) => code.map(super::exit_code),
        error = forward(writer) => Err(error),
        _ = hangup.recv() => Ok(129),
        _ = terminate.recv() => Ok(143),
    }
}

/// Shows output until the process ends.
async fn show(mut reader: PtyReader) -> anyhow::Result<i32> {
    let mut stdout = tokio::io::stdout();
    while let Some(event) = reader.next().await {
        match event? {
            PtyEvent::Output(bytes) => {
                stdout.write_all(&bytes).await.map_err(output::stdout_error)?;
                stdout.flush().await.map_err(output::stdout_error)?;
            }
            // Raw mode needs its own carriage return.
            PtyEvent::Notice(text) => output::say(&format!("\r\n{}\r", output::clean(&text))),
            PtyEvent::Exit(code) => return Ok(code),
        }
    }
    Err(Error::Disconnected.into())
}

/// Sends keys and window sizes until that fails.
async fn forward(writer: PtyWriter) -> anyhow::Error {
    let result = async {
        let mut keys = stdin::chunks()?;
        let mut resized = signal(SignalKind::window_change())?;
        // The window may have changed between the first look and the handler.
        writer.resize(terminal::size()).await?;
        loop {
            tokio::select! {
                chunk = keys.recv() => match chunk {
                    Some(chunk) => writer.write(chunk?).await?,
                    None => bail!("the terminal was closed"),
                },
                _ = resized.recv() => writer.resize(terminal::size()).await?,
            }
        }
    };
    match result.await {
        Ok(never) => never,
        Err(error) => error,
    }
}
