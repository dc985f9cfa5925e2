//! `wrenn teams members`, `add`, `role` and `remove`.

use clap::{Args, ValueEnum};
use serde_json::json;
use wrenn_client::{Client, Member, TeamId, TeamRole, UserId};
use wrenn_core::timestamp;

use crate::context::Context;
use crate::output;
use crate::person::Person;

/// Whom to add.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// E-mail address of the person's account
    email: String,
    /// The team [default: the one that you are signed in to]
    #[arg(long)]
    team: Option<String>,
}

/// A role that can be given.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    /// Looks after the members, too
    Admin,
    /// Uses what the team has
    Member,
}

/// What to make of whom.
#[derive(Debug, Args)]
pub struct RoleArgs {
    /// The member, by e-mail address or id
    user: String,
    /// What the member becomes
    role: Role,
    /// The team [default: the one that you are signed in to]
    #[arg(long)]
    team: Option<String>,
}

/// Whom to remove.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The member, by e-mail address or id
    user: String,
    /// The team [default: the one that you are signed in to]
    #[arg(long)]
    team: Option<String>,
}

pub(super) async fn list(person: &Person, team: Option<&str>, ctx: &Context) -> anyhow::Result<()> {
    let (client, team) = there(person, team).await?;
    let members = client.list_members(team).await?;
    if ctx.json { output::json(&members) } else { output::line(&table(&members, ctx.colour)) }
}

/// One row for each member.
pub(super) fn table(members: &[Member], colour: bool) -> String {
    let row = |member: &Member| {
        vec![
            output::clean(&member.email),
            output::clean(&member.name),
            member.role.to_string(),
            member.user_id.to_string(),
            timestamp::format(member.joined_at),
        ]
    };
    output::table(&["E-MAIL", "NAME", "ROLE", "ID", "JOINED"], members.iter().map(row).collect(), colour)
}

pub(super) async fn add(person: &Person, args: &AddArgs, ctx: &Context) -> anyhow::Result<()> {
    let (client, team) = there(person, args.team.as_deref()).await?;
    let member = client.add_member(team, args.email.trim()).await?;
    if ctx.json { output::json(&member) } else { output::line(&member.user_id.to_string()) }
}

pub(super) async fn set_role(person: &Person, args: &RoleArgs, ctx: &Context) -> anyhow::Result<()> {
    let (client, team) = there(person, args.team.as_deref()).await?;
    let user = user(&client, team, &args.user).await?;
    let role = match args.role {
        Role::Admin => TeamRole::Admin,
        Role::Member => TeamRole::Member,
    };
    client.set_member_role(team, user, role).await?;
    if ctx.json {
        output::json(&json!({"user_id": user, "role": role}))
    } else {
        output::line(&user.to_string())
    }
}

pub(super) async fn remove(person: &Person, args: &RemoveArgs, ctx: &Context) -> anyhow::Result<()> {
    let (client, team) = there(person, args.team.as_deref()).await?;
    let user = user(&client, team, &args.user).await?;
    client.remove_member(team, user).await?;
    if ctx.json { output::json(&json!({"removed": user})) } else { output::line(&user.to_string()) }
}

/// The team and a client that speaks for it.
async fn there(person: &Person, team: Option<&str>) -> anyhow::Result<(Client, TeamId)> {
    let id = person.team(team).await?;
    Ok((person.in_team(id).await?, id))
}

/// The member that `text` names, by id or address.
async fn user(client: &Client, team: TeamId, text: &str) -> anyhow::Result<UserId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let members = client.list_members(team).await?;
    let found = members.iter().find(|member| member.email.eq_ignore_ascii_case(text.trim()));
    found.map(|member| member.user_id).ok_or_else(|| anyhow::anyhow!("no member has the address `{text}`"))
}
