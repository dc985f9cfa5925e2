//! `wrenn capsule rm`.

use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use serde_json::json;
use wrenn_client::{CapsuleId, Client};

use super::resolve;
use crate::context::Context;
use crate::output;

/// How many capsules are destroyed at a time.
const AT_ONCE: usize = 8;
/// How long one may take to be gone: what the platform allows a destroy.
const PATIENCE: Duration = Duration::from_secs(300);

/// What to destroy.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Ids of capsules, or the beginnings of them
    #[arg(required_unless_present = "all", value_name = "ID")]
    ids: Vec<String>,
    /// Destroy every capsule of the key's team
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Do not wait until they are gone
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(args: RmArgs, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.client()?;
    let ids = if args.all {
        client.list().await?.into_iter().map(|c| c.id).collect()
    } else {
        resolve::many(&client, &args.ids).await?
    };
    let results: Vec<_> = futures::stream::iter(ids)
        .map(|id| destroy(&client, id, args.no_wait))
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut destroyed = Vec::new();
    let mut failed = false;
    for (id, result) in results {
        match result {
            Ok(()) => destroyed.push(id),
            Err(error) => {
                failed = true;
                output::report(&error.context(format!("cannot destroy {id}")));
            }
        }
    }
    if ctx.json {
        output::json(&json!({"destroyed": destroyed}))?;
    } else {
        let lines: String = destroyed.iter().map(|id| format!("{id}\n")).collect();
        output::write(lines.as_bytes())?;
    }
    Ok(u8::from(failed))
}

async fn destroy(client: &Client, id: CapsuleId, no_wait: bool) -> (CapsuleId, anyhow::Result<()>) {
    let work = async {
        client.destroy(id).await?;
        if !no_wait {
            client.wait_gone(id, PATIENCE).await?;
        }
        Ok(())
    };
    (id, work.await)
}
