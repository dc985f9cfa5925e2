//! `wrenn capsule fork`.

use clap::Args;
use wrenn_client::ForkCapsule;

use super::{key_value, list, resolve};
use crate::context::Context;
use crate::output;

/// What to fork.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// Id of the capsule, or the beginning of one
    id: String,
    /// Number of copies, at most 100
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    count: u32,
    /// Label of the copies instead of those of the source; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    label: Vec<(String, String)>,
    /// Write the ids and nothing else, as when standard output is no terminal
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Do not wait until the copies run
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(args: ForkArgs, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.client()?;
    let id = resolve::one(&client, &args.id).await?;
    let request = ForkCapsule { count: Some(args.count), metadata: args.label.into_iter().collect() };
    let copies = if args.no_wait {
        client.fork(id, &request).await?
    } else {
        client.fork_and_wait(id, &request).await?
    };
    if ctx.json {
        output::json(&copies)?;
    } else if args.quiet || !ctx.interactive() {
        let ids: String = copies.iter().map(|copy| format!("{}\n", copy.id)).collect();
        output::write(ids.as_bytes())?;
    } else {
        output::line(&list::capsule_table(&copies, ctx.colour))?;
    }
    Ok(0)
}
