//! `wrenn keys`: API keys, through the API for whoever is signed in, else on the machine's own database.

use clap::{Args, Subcommand};
use serde_json::json;
use time::OffsetDateTime;
use wrenn_client::ApiKeyId;
use wrenn_core::timestamp;

use crate::context::Context;
use crate::ops;
use crate::output;
use crate::person::Person;

/// What to do with API keys, and where.
#[derive(Debug, Args)]
pub struct KeysArgs {
    /// Use this machine's database even where somebody is signed in
    #[arg(long, global = true)]
    local: bool,
    #[command(subcommand)]
    command: KeysCommand,
}

/// What to do with API keys.
#[derive(Debug, Clone, Subcommand)]
pub enum KeysCommand {
    /// Make a key; it is shown once
    Create {
        /// What the key is for
        #[arg(default_value = "Unnamed API Key")]
        name: String,
    },
    /// List the keys, without their secrets
    #[command(visible_alias = "list")]
    Ls,
    /// Revoke a key
    #[command(visible_alias = "revoke")]
    Rm {
        /// The key's id (`key-…`)
        id: ApiKeyId,
    },
}

/// A key as the list shows it.
#[derive(Debug)]
pub struct KeyRow {
    /// Its id.
    pub id: ApiKeyId,
    /// What it is for.
    pub name: String,
    /// Its first characters.
    pub prefix: String,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it was last used.
    pub last_used: Option<OffsetDateTime>,
}

/// Runs one of the commands.
///
/// # Errors
/// Where the API or the database refuses or is away.
pub async fn run(args: KeysArgs, ctx: &Context) -> anyhow::Result<u8> {
    if !args.local {
        if let Some(person) = ctx.person_if_any()? {
            return through_api(&person, args.command, ctx).await;
        }
        if !ctx.is_own_deployment()? {
            // The machine's own database belongs to another deployment.
            ctx.person()?;
        }
    }
    ops::keys::run(&ctx.settings, args.command, ctx.json).await
}

async fn through_api(person: &Person, command: KeysCommand, ctx: &Context) -> anyhow::Result<u8> {
    let client = &person.client;
    match command {
        KeysCommand::Create { name } => {
            let made = client.create_api_key(&name).await?;
            if ctx.json {
                output::json(&made)?;
            } else {
                output::line(made.key.as_deref().unwrap_or_default())?;
            }
        }
        KeysCommand::Ls => {
            let keys = client.list_api_keys().await?;
            if ctx.json {
                output::json(&keys)?;
            } else {
                let rows = keys.into_iter().map(|key| KeyRow {
                    id: key.id,
                    name: key.name,
                    prefix: key.key_prefix,
                    created_at: key.created_at,
                    last_used: key.last_used,
                });
                output::line(&table(rows))?;
            }
        }
        KeysCommand::Rm { id } => {
            client.delete_api_key(id).await?;
            if ctx.json {
                output::json(&json!({"revoked": id}))?;
            }
        }
    }
    Ok(0)
}

/// One row for each key.
pub fn table(keys: impl Iterator<Item = KeyRow>) -> String {
    let row = |key: KeyRow| {
        let used = key.last_used.map_or_else(|| "never".to_owned(), timestamp::format);
        let (name, prefix) = (output::clean(&key.name), format!("{}…", output::clean(&key.prefix)));
        vec![key.id.to_string(), name, prefix, timestamp::format(key.created_at), used]
    };
    output::table(&["ID", "NAME", "PREFIX", "CREATED", "LAST USED"], keys.map(row).collect(), false)
}
