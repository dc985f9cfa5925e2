//! `wrenn keys` on the database of the machine that runs the platform, where no person is signed in.

use wrenn_control::{Store, admin};

use super::people;
use crate::config::Settings;
use crate::keys::{KeyRow, KeysCommand, table};
use crate::output;

/// Runs one of the commands against the deployment's database.
///
/// # Errors
/// Where the database cannot be reached or refuses.
pub async fn run(settings: &Settings, command: KeysCommand, json: bool) -> anyhow::Result<u8> {
    let store = people::store(settings).await?;
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
    let rows = keys.into_iter().map(|key| KeyRow {
        id: key.id,
        name: key.name,
        prefix: key.prefix,
        created_at: key.created_at,
        last_used: key.last_used,
    });
    output::line(&table(rows))
}
