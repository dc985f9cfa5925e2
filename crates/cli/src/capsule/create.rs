//! `wrenn capsule create`.

use clap::Args;
use wrenn_client::CreateCapsule;

use super::{key_value, list};
use crate::context::Context;
use crate::output;

/// What to create.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Template to start from
    #[arg(default_value = "minimal")]
    template: String,
    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "COUNT")]
    vcpus: Option<u32>,
    /// Memory in MiB [default: 512]
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Disk in MiB [default: 5120]
    #[arg(long, value_name = "MIB")]
    disk: Option<u32>,
    /// Seconds of inactivity after which it is paused, at least 60; 0 for never [default: 0]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Label; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    label: Vec<(String, String)>,
    /// Write the id and nothing else, as when standard output is no terminal
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Do not wait until it runs
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(args: CreateArgs, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.client()?;
    let request = CreateCapsule {
        template: Some(args.template),
        vcpus: args.vcpus,
        memory_mb: args.memory,
        disk_size_mb: args.disk,
        timeout_sec: args.timeout,
        metadata: args.label.into_iter().collect(),
    };
    let capsule =
        if args.no_wait { client.create(&request).await? } else { client.create_running(&request).await? };
    if ctx.json {
        output::json(&capsule)?;
    } else if args.quiet || !ctx.interactive() {
        output::line(&capsule.id.to_string())?;
    } else {
        output::line(&list::capsule_table(&[capsule], ctx.colour))?;
    }
    Ok(0)
}
