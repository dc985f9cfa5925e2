//! `wrenn teams …`: a person's teams and who is in them.

mod members;

use clap::{Args, Subcommand};
use serde_json::json;
use wrenn_client::{Team, TeamId};
use wrenn_core::timestamp;

use crate::context::Context;
use crate::output;
use crate::person::Person;
use crate::prompt;

/// Commands on teams. A team is named by its id, its slug, or its name where no other team of yours has it.
#[derive(Debug, Subcommand)]
pub enum TeamsCommand {
    /// List the teams that you are in; an asterisk marks the one that you are signed in to
    #[command(visible_alias = "list")]
    Ls,
    /// Make a team that you own
    Create {
        /// Its name
        name: String,
    },
    /// Show a team and its members
    Show(OneArgs),
    /// Rename a team
    Rename {
        /// The team
        team: String,
        /// Its new name
        name: String,
    },
    /// Delete a team that you own, with its capsules, keys and templates
    #[command(visible_alias = "delete")]
    Rm {
        /// The team
        team: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Work in another team from now on
    Switch {
        /// The team
        team: String,
    },
    /// List the members of a team
    Members(OneArgs),
    /// Add somebody who has an account to a team
    Add(members::AddArgs),
    /// Make a member an admin of a team, or a plain member again
    Role(members::RoleArgs),
    /// Remove a member from a team
    Remove(members::RemoveArgs),
    /// Leave a team
    Leave {
        /// The team
        team: String,
    },
}

/// Which team.
#[derive(Debug, Args)]
pub struct OneArgs {
    /// The team [default: the one that you are signed in to]
    team: Option<String>,
}

/// Runs a command and returns the exit code of the program.
///
/// # Errors
/// What [`crate::output::report`] shows; [`crate::output::StdoutClosed`] is no failure.
pub async fn run(command: TeamsCommand, ctx: &Context) -> anyhow::Result<u8> {
    let person = ctx.person()?;
    match command {
        TeamsCommand::Ls => list(&person, ctx).await?,
        TeamsCommand::Create { name } => create(&person, &name, ctx).await?,
        TeamsCommand::Show(args) => show(&person, args.team.as_deref(), ctx).await?,
        TeamsCommand::Rename { team, name } => rename(&person, &team, &name, ctx).await?,
        TeamsCommand::Rm { team, yes } => remove(&person, &team, yes, ctx).await?,
        TeamsCommand::Switch { team } => switch(&person, &team, ctx).await?,
        TeamsCommand::Members(args) => members::list(&person, args.team.as_deref(), ctx).await?,
        TeamsCommand::Add(args) => members::add(&person, &args, ctx).await?,
        TeamsCommand::Role(args) => members::set_role(&person, &args, ctx).await?,
        TeamsCommand::Remove(args) => members::remove(&person, &args, ctx).await?,
        TeamsCommand::Leave { team } => leave(&person, &team, ctx).await?,
    }
    Ok(0)
}

async fn list(person: &Person, ctx: &Context) -> anyhow::Result<()> {
    let teams = person.client.list_teams().await?;
    if ctx.json {
        return output::json(&teams);
    }
    output::line(&team_table(&teams, person.login.team_id, ctx.colour))
}

fn team_table(teams: &[Team], current: TeamId, colour: bool) -> String {
    let row = |team: &Team| {
        vec![
            if team.id == current { "*" } else { "" }.to_owned(),
            output::clean(&team.name),
            output::clean(&team.slug),
            team.role.map_or_else(|| "-".to_owned(), |role| role.to_string()),
            team.id.to_string(),
            timestamp::format(team.created_at),
        ]
    };
    let header = ["", "NAME", "SLUG", "ROLE", "ID", "CREATED"];
    output::table(&header, teams.iter().map(row).collect(), colour)
}

async fn create(person: &Person, name: &str, ctx: &Context) -> anyhow::Result<()> {
    let team = person.client.create_team(name).await?;
    if ctx.json {
        output::json(&team)
    } else if ctx.interactive() {
        output::line(&team_table(&[team], person.login.team_id, ctx.colour))
    } else {
        output::line(&team.id.to_string())
    }
}

async fn show(person: &Person, team: Option<&str>, ctx: &Context) -> anyhow::Result<()> {
    let id = person.team(team).await?;
    let details = person.in_team(id).await?.team(id).await?;
    if ctx.json {
        return output::json(&details);
    }
    let team = &details.team;
    output::line(&format!(
        "Name      {}\nSlug      {}\nId        {}\nCreated   {}\nHosts     {}\n",
        output::clean(&team.name),
        output::clean(&team.slug),
        team.id,
        timestamp::format(team.created_at),
        if team.is_byoc { "may bring its own" } else { "the platform's" },
    ))?;
    output::line(&members::table(&details.members, ctx.colour))
}

async fn rename(person: &Person, team: &str, name: &str, ctx: &Context) -> anyhow::Result<()> {
    let id = person.team(Some(team)).await?;
    person.in_team(id).await?.rename_team(id, name).await?;
    tell(ctx, "renamed", id)
}

async fn switch(person: &Person, team: &str, ctx: &Context) -> anyhow::Result<()> {
    let id = person.team(Some(team)).await?;
    person.switch(id).await?;
    tell(ctx, "team_id", id)
}

async fn remove(person: &Person, team: &str, yes: bool, ctx: &Context) -> anyhow::Result<()> {
    let id = person.team(Some(team)).await?;
    prompt::confirm(yes, &format!("Delete the team {team} with its capsules, keys and templates?")).await?;
    person.in_team(id).await?.delete_team(id).await?;
    move_on(person, id).await;
    tell(ctx, "deleted", id)
}

async fn leave(person: &Person, team: &str, ctx: &Context) -> anyhow::Result<()> {
    let id = person.team(Some(team)).await?;
    person.in_team(id).await?.leave_team(id).await?;
    move_on(person, id).await;
    tell(ctx, "left", id)
}

/// Puts a person whose team of the sign-in is gone into the oldest of the others. What was asked for is done in any case.
async fn move_on(person: &Person, gone: TeamId) {
    if person.login.team_id != gone {
        return;
    }
    let next = async {
        let teams = person.client.list_teams().await?;
        let Some(next) = teams.into_iter().find(|team| team.id != gone) else { return Ok(None) };
        person.switch(next.id).await?;
        anyhow::Ok(Some(next))
    };
    match next.await {
        Ok(Some(next)) => output::say(&format!("You are in the team {} now.", output::clean(&next.name))),
        Ok(None) => output::say("You are in no team now; the next `wrenn login` makes you one."),
        Err(error) => {
            output::warn(&format!("sign in again with `wrenn login` to work in another team: {error:#}"));
        }
    }
}

/// The id of the team that something was done to.
fn tell(ctx: &Context, done: &str, id: TeamId) -> anyhow::Result<()> {
    if ctx.json { output::json(&json!({ done: id })) } else { output::line(&id.to_string()) }
}
