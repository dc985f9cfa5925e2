//! `wrenn capsule pause` and `wrenn capsule resume`.

use clap::Args;
use futures::StreamExt;
use serde_json::json;
use wrenn_client::{CapsuleId, Client};

use super::resolve;
use crate::context::Context;
use crate::output;

/// How many capsules are turned at a time.
const AT_ONCE: usize = 8;

/// Which capsules.
#[derive(Debug, Args)]
pub struct TurnArgs {
    /// Ids of capsules, or the beginnings of them
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Do not wait until it is done
    #[arg(long)]
    no_wait: bool,
}

/// The two directions.
#[derive(Debug, Clone, Copy)]
pub(super) enum Turn {
    Pause,
    Resume,
}

impl Turn {
    const fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Resume => "resumed",
        }
    }
}

pub(super) async fn run(turn: Turn, args: TurnArgs, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.client()?;
    let ids = resolve::many(&client, &args.ids).await?;
    let results: Vec<_> = futures::stream::iter(ids)
        .map(|id| one(&client, turn, id, args.no_wait))
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut turned = Vec::new();
    let mut failed = false;
    for (id, result) in results {
        match result {
            Ok(()) => turned.push(id),
            Err(error) => {
                failed = true;
                output::report(&error.context(format!("cannot {} {id}", turn.name())));
            }
        }
    }
    if ctx.json {
        output::json(&json!({ turn.done(): turned }))?;
    } else {
        let lines: String = turned.iter().map(|id| format!("{id}\n")).collect();
        output::write(lines.as_bytes())?;
    }
    Ok(u8::from(failed))
}

async fn one(client: &Client, turn: Turn, id: CapsuleId, no_wait: bool) -> (CapsuleId, anyhow::Result<()>) {
    let result = match (turn, no_wait) {
        (Turn::Pause, false) => client.pause_and_wait(id).await,
        (Turn::Pause, true) => client.pause(id).await,
        (Turn::Resume, false) => client.resume_and_wait(id).await,
        (Turn::Resume, true) => client.resume(id).await,
    };
    (id, result.map(drop).map_err(Into::into))
}
