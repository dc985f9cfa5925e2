//! `wrenn template rm`.

use clap::Args;
use serde_json::json;
use wrenn_client::Client;

use crate::context::Context;
use crate::output::{self, Hinted};

/// What to delete.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names of templates
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(super) async fn run(args: RmArgs, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.client()?;
    let mut deleted = Vec::new();
    let mut failed = false;
    for name in args.names {
        match delete(&client, &name).await {
            Ok(()) => deleted.push(name),
            Err(error) => {
                failed = true;
                output::report(&error.context(format!("cannot delete {name}")));
            }
        }
    }
    if ctx.json {
        output::json(&json!({"deleted": deleted}))?;
    } else {
        let lines: String = deleted.iter().map(|name| format!("{name}\n")).collect();
        output::write(lines.as_bytes())?;
    }
    Ok(u8::from(failed))
}

async fn delete(client: &Client, name: &str) -> anyhow::Result<()> {
    match client.delete_template(name).await {
        // The hint for what is unknown speaks of capsules.
        Err(error) if error.is_not_found() => {
            Err(Hinted::new(error.to_string(), "`wrenn template ls` shows the templates that exist").into())
        }
        result => Ok(result?),
    }
}
