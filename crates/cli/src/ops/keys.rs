//! `wrenn keys`: API keys, on the machine that runs the platform.

use anyhow::Context;
use wrenn_control::{Store, admin};
use wrenn_core::ApiKeyId;

use super::postgres::Cluster;
use crate::config::Settings;
use crate::output;

/// What to do with API keys.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum KeysCommand {
    /// Make a key; it is shown once
    Create {
        /// What the key is for
        #[arg(default_value = "Unnamed API Key")]
        name: String,
    },
    /// List the keys, without their secrets
    Ls,
    /// Revoke a key
    Rm {
        /// The key's id (`key-…`)
        id: ApiKeyId,
    },
}

/// Runs one of the commands against the deployment's database.
///
/// # Errors
/// Where the database cannot be reached or refuses.
pub async fn run(settings: &Settings, command: KeysCommand, json: bool) -> anyhow::Result<u8> {
    let url = match &settings.database_url.value {
        Some(given) => given.expose().to_owned(),
        None => Cluster::open(&settings.dir.value)?.url()?,
    };
    let store = Store::connect(&url)
        .await
        .context("cannot reach the database; is the platform running? start it with `wrenn up`")?;
    match command {
        KeysCommand::Create { name } => create(&store, &name, json).await?,
        KeysCommand::Ls => list(&store, json).await?,
        KeysCommand::Rm { id } => admin::revoke_key(&store, id).await?,
    }
    Ok(0)
}

async fn create(store: &Store, name: &str, json: bool) -> anyhow::Result<()> {
    let new = admin::create_key(store, name).await?;
    if json {
        let value =
            serde_json::json!({ "id": new.id, "name": new.name, "team_id": new.team, "key": new.key });
        return output::json(&value);
    }
    output::line(&new.key)
}

async fn list(store: &Store, json: bool) -> anyhow::Result<()> {
    let keys = admin::list_keys(store).await?;
    if json {
        let rows: Vec<_> = keys
            .iter()
            .map(|key| {
                serde_json::json!({
                    "id": key.id,
                    "name": key.name,
                    "key_prefix": key.prefix,
                    "created_at": wrenn_core::timestamp::format(key.created_at),
                    "last_used": key.last_used.map(wrenn_core::timestamp::format),
                })
            })
            .collect();
        return output::json(&rows);
    }
    let rows = keys
        .into_iter()
        .map(|key| {
            let used = key.last_used.map_or_else(|| "never".to_owned(), wrenn_core::timestamp::format);
            let created = wrenn_core::timestamp::format(key.created_at);
            vec![key.id.to_string(), key.name, format!("{}…", key.prefix), created, used]
        })
        .collect();
    output::line(&output::table(&["ID", "NAME", "PREFIX", "CREATED", "LAST USED"], rows, false))
}
