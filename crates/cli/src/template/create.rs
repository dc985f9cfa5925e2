//! `wrenn template create`.

use clap::Args;
use wrenn_client::CreateSnapshot;

use super::list;
use crate::capsule::resolve;
use crate::context::Context;
use crate::output;

/// What to make a template from.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Id of the capsule, or the beginning of one
    capsule: String,
    /// Name of the template [default: one that the platform makes up]
    #[arg(long)]
    name: Option<String>,
    /// Replace the team's template of that name when the new one is ready
    #[arg(long, requires = "name")]
    overwrite: bool,
    /// Write the name and nothing else, as when standard output is no terminal
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Do not wait until it is ready
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(args: CreateArgs, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.client()?;
    let capsule = resolve::one(&client, &args.capsule).await?;
    let request = CreateSnapshot { capsule, name: args.name, overwrite: args.overwrite };
    if args.no_wait {
        let asked = client.create_snapshot(&request).await?;
        return if ctx.json { output::json(&asked) } else { output::line(&asked.name) }.map(|()| 0);
    }
    let made = client.create_snapshot_and_wait(&request).await?;
    if ctx.json {
        output::json(&made)?;
    } else if args.quiet || !ctx.interactive() {
        output::line(&made.name)?;
    } else {
        output::line(&list::template_table(&[made], ctx.colour))?;
    }
    Ok(0)
}
