//! `wrenn admin teams …`.

use clap::Subcommand;
use serde_json::json;
use wrenn_client::{AdminTeam, Client, TeamId};
use wrenn_core::timestamp;

use super::{PageArgs, tell_of_more};
use crate::context::Context;
use crate::output;
use crate::person;
use crate::prompt;

/// Commands on all teams. A team is named by its id, its slug, or its name where no other team has it.
#[derive(Debug, Subcommand)]
pub enum TeamsCommand {
    /// List the teams of the platform
    #[command(visible_alias = "list")]
    Ls(PageArgs),
    /// Let a team bring hosts of its own, for good
    Byoc {
        /// The team
        team: String,
    },
    /// Delete a team with its capsules, keys and templates
    #[command(visible_alias = "delete")]
    Rm {
        /// The team
        team: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

pub(super) async fn run(command: TeamsCommand, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.person()?.client;
    match command {
        TeamsCommand::Ls(args) => list(&client, &args, ctx).await?,
        TeamsCommand::Byoc { team } => {
            let id = find(&client, &team).await?;
            client.admin_enable_byoc(id).await?;
            tell(ctx, "enabled", id)?;
        }
        TeamsCommand::Rm { team, yes } => {
            let id = find(&client, &team).await?;
            prompt::confirm(yes, &format!("Delete the team {team} with its capsules, keys and templates?"))
                .await?;
            client.admin_delete_team(id).await?;
            tell(ctx, "deleted", id)?;
        }
    }
    Ok(0)
}

async fn list(client: &Client, args: &PageArgs, ctx: &Context) -> anyhow::Result<()> {
    let page = client.admin_teams(args.page).await?;
    if ctx.json {
        return output::json(&page);
    }
    let row = |team: &AdminTeam| {
        vec![
            output::clean(&team.name),
            output::clean(&team.slug),
            team.owner_email.as_deref().map_or_else(|| "-".to_owned(), output::clean),
            team.member_count.to_string(),
            format!(
                "{} ({} vCPUs, {} MiB)",
                team.active_sandbox_count, team.running_vcpus, team.running_memory_mb
            ),
            if team.is_byoc { "own" } else { "shared" }.to_owned(),
            team.id.to_string(),
            timestamp::format(team.created_at),
            team.deleted_at.map_or_else(|| "-".to_owned(), timestamp::format),
        ]
    };
    let header = ["NAME", "SLUG", "OWNER", "MEMBERS", "CAPSULES", "HOSTS", "ID", "CREATED", "DELETED"];
    output::line(&output::table(&header, page.items.iter().map(row).collect(), ctx.colour))?;
    tell_of_more(&page);
    Ok(())
}

/// The team that `text` names, by id, or by slug or name among those that were not deleted.
async fn find(client: &Client, text: &str) -> anyhow::Result<TeamId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let mut teams: Vec<AdminTeam> = Vec::new();
    let mut number = 1;
    loop {
        let page = client.admin_teams(number).await?;
        let last = page.items.is_empty() || number >= page.total_pages;
        teams.extend(page.items.into_iter().filter(|team| team.deleted_at.is_none()));
        if last {
            break;
        }
        number += 1;
    }
    Ok(person::find(&teams, text, |team| (&team.slug, &team.name))?.id)
}

fn tell(ctx: &Context, done: &str, team: TeamId) -> anyhow::Result<()> {
    if ctx.json { output::json(&json!({ done: team })) } else { output::line(&team.to_string()) }
}
