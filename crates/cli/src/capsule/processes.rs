//! `wrenn capsule ps` and `wrenn capsule kill`.

use clap::Args;
use wrenn_client::ProcessInfo;

use super::resolve;
use crate::context::Context;
use crate::output;

/// Whose processes to list.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Id of the capsule, or the beginning of one
    id: String,
}

/// Which process to kill.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Id of the capsule, or the beginning of one
    id: String,
    /// Process id or tag, as `ps` shows it
    process: String,
    /// Ask it to end (SIGTERM) instead of killing it
    #[arg(long)]
    term: bool,
}

pub(super) async fn list(args: PsArgs, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.client()?;
    let processes = client.processes(resolve::one(&client, &args.id).await?).await?;
    if ctx.json {
        output::json(&processes)?;
    } else {
        let rows = processes.iter().map(row).collect();
        output::line(&output::table(&["PID", "TAG", "COMMAND"], rows, ctx.colour))?;
    }
    Ok(0)
}

pub(super) async fn kill(args: KillArgs, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.client()?;
    let id = resolve::one(&client, &args.id).await?;
    if args.term {
        client.terminate(id, &args.process).await?;
    } else {
        client.kill(id, &args.process).await?;
    }
    Ok(0)
}

fn row(process: &ProcessInfo) -> Vec<String> {
    let words: Vec<&str> = std::iter::once(&process.cmd).chain(&process.args).map(String::as_str).collect();
    let tag = process.tag.as_deref().unwrap_or("-");
    vec![process.pid.to_string(), output::clean(tag), output::clean(&words.join(" "))]
}
