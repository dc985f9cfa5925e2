//! `wrenn capsule exec`.
//!
//! Three ways to run a command: streamed (the default), which shows text live; `--exact`, which waits and shows the
//! very bytes; `--background`, which only starts it.

use clap::Args;
use serde_json::json;
use wrenn_client::{CapsuleId, Client, Command};

use super::{attach, key_value, resolve};
use crate::context::Context;
use crate::output::{self, StdoutClosed};

/// Exit code for a failure of the platform, so that it is not taken for one of the command.
const PLATFORM_FAILURE: u8 = 125;

/// What to run. The program's exit code is that of the command; 125 where the platform failed, 130 after Ctrl-C,
/// which kills the command; 255 where the command died of a signal.
#[derive(Debug, Args)]
#[command(
    after_help = "The exit code is that of the command. Others: 125 the platform failed, 130 Ctrl-C (which \
    kills the command), 255 the command died of a signal.\n\nLive output is text: bytes that are not UTF-8 are \
    replaced. Use --exact for binary output. The command has no standard input."
)]
pub struct ExecArgs {
    /// Id of the capsule, or the beginning of one
    id: String,
    /// Set a variable; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// Working directory [default: the user's home]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Kill the command after this time [default: none; 30 with --exact]
    #[arg(long, value_name = "SECONDS", conflicts_with = "background", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
    /// Wait for the end, then write the exact bytes of the output (at most 64 MiB)
    #[arg(long, conflicts_with = "background")]
    exact: bool,
    /// Start the command, write its process id and tag, and do not wait
    #[arg(short, long)]
    background: bool,
    /// Name for a background command [default: made up]
    #[arg(long, value_name = "TAG", requires = "background")]
    tag: Option<String>,
    /// The command and its arguments, passed on as they are, without a shell
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(args: ExecArgs, ctx: &Context) -> anyhow::Result<u8> {
    platform_failures(execute(args, ctx).await)
}

/// Reports a failure here, because the exit code 1 would mean that the command failed.
pub(super) fn platform_failures(result: anyhow::Result<u8>) -> anyhow::Result<u8> {
    match result {
        Err(error) if !error.is::<StdoutClosed>() => {
            output::report(&error);
            Ok(PLATFORM_FAILURE)
        }
        other => other,
    }
}

async fn execute(args: ExecArgs, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.client()?;
    let id = resolve::one(&client, &args.id).await?;
    let mut words = args.command.into_iter();
    let command = Command {
        cmd: words.next().unwrap_or_default(),
        args: words.collect(),
        envs: args.env.into_iter().collect(),
        cwd: args.cwd,
        timeout_sec: args.timeout,
    };
    if args.background {
        background(&client, id, &command, args.tag.as_deref(), ctx.json).await
    } else if args.exact {
        exact(&client, id, &command, ctx.json).await
    } else {
        let mut stream = client.exec_stream(id, &command).await?;
        attach::follow_or_stop(&mut stream, ctx.json).await
    }
}

async fn background(
    client: &Client,
    id: CapsuleId,
    command: &Command,
    tag: Option<&str>,
    json: bool,
) -> anyhow::Result<u8> {
    let started = client.spawn(id, command, tag).await?;
    if json {
        output::json(&started)?;
    } else {
        output::line(&format!("{} {}", started.pid, output::clean(&started.tag)))?;
    }
    Ok(0)
}

async fn exact(client: &Client, id: CapsuleId, command: &Command, json: bool) -> anyhow::Result<u8> {
    let mut interrupts = attach::Interrupts::new()?;
    let result = tokio::select! {
        result = client.exec(id, command) => result?,
        // Hanging up makes the server kill the command.
        code = interrupts.next() => return Ok(code),
    };
    if json {
        output::json(&json!({
            "stdout": result.stdout_text(),
            "stderr": result.stderr_text(),
            "exit_code": result.exit_code,
            "duration_ms": u64::try_from(result.duration.as_millis())?,
        }))?;
    } else {
        // What the command said about a failure matters more than an early end of a pipe.
        let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), &result.stderr);
        output::write(&result.stdout)?;
    }
    Ok(super::exit_code(result.exit_code))
}
