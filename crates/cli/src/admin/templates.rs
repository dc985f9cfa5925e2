//! `wrenn admin templates …`.

use clap::Subcommand;
use serde_json::json;
use wrenn_client::{AdminTemplate, Client, TeamId};
use wrenn_core::timestamp;

use crate::context::Context;
use crate::output;
use crate::person;
use crate::template::list;

/// Commands on all templates.
#[derive(Debug, Subcommand)]
pub enum TemplatesCommand {
    /// List the templates of the platform and of all teams
    #[command(visible_alias = "list")]
    Ls,
    /// Delete templates of the platform; capsules made from them are not hurt
    #[command(visible_alias = "delete")]
    Rm {
        /// Names of templates
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

pub(super) async fn run(command: TemplatesCommand, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.person()?.client;
    match command {
        TemplatesCommand::Ls => show(&client, ctx).await.map(|()| 0),
        TemplatesCommand::Rm { names } => remove(&client, names, ctx).await,
    }
}

async fn show(client: &Client, ctx: &Context) -> anyhow::Result<()> {
    let templates = client.admin_templates().await?;
    if ctx.json {
        return output::json(&templates);
    }
    let platform = format!("{}{}", TeamId::PREFIX, "0".repeat(wrenn_core::id::ENCODED_LEN));
    let row = |template: &AdminTemplate| {
        let owner = template.team_id.to_string();
        vec![
            output::clean(&template.name),
            template.kind.as_str().to_owned(),
            list::size(template.size_bytes),
            if owner == platform { "platform".to_owned() } else { owner },
            if template.protected { "yes" } else { "no" }.to_owned(),
            timestamp::format(template.created_at),
        ]
    };
    let header = ["NAME", "TYPE", "SIZE", "OWNER", "PROTECTED", "CREATED"];
    output::line(&output::table(&header, templates.iter().map(row).collect(), ctx.colour))
}

async fn remove(client: &Client, names: Vec<String>, ctx: &Context) -> anyhow::Result<u8> {
    let mut deleted = Vec::new();
    let mut failed = false;
    for name in names {
        match client.admin_delete_template(&name).await {
            Ok(()) => deleted.push(name),
            Err(error) => {
                failed = true;
                let error = anyhow::Error::new(error).context(format!("cannot delete {name}"));
                output::report(&person::explain(error));
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
