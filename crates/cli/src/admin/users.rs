//! `wrenn admin users …`.

use clap::{Args, Subcommand};
use serde_json::json;
use wrenn_client::{AdminUser, Client, UserId};
use wrenn_core::timestamp;

use super::{PageArgs, tell_of_more};
use crate::context::Context;
use crate::output;

/// Commands on users.
#[derive(Debug, Subcommand)]
pub enum UsersCommand {
    /// List the users of the platform
    #[command(visible_alias = "list")]
    Ls(PageArgs),
    /// Let a user in again
    Activate(OneArgs),
    /// Shut a user out: removes the keys they made, destroys the capsules of the teams they own
    Deactivate(OneArgs),
    /// Make a user one of those who run the platform
    Grant(OneArgs),
    /// Make a user no longer one of those who run the platform
    Revoke(OneArgs),
}

/// Which user.
#[derive(Debug, Args)]
pub struct OneArgs {
    /// The user, by e-mail address or id
    user: String,
}

pub(super) async fn run(command: UsersCommand, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.person()?.client;
    match command {
        UsersCommand::Ls(args) => list(&client, &args, ctx).await?,
        UsersCommand::Activate(args) => {
            let user = find(&client, &args.user).await?;
            client.admin_set_user_active(user, true).await?;
            tell(ctx, "activated", user)?;
        }
        UsersCommand::Deactivate(args) => {
            let user = find(&client, &args.user).await?;
            client.admin_set_user_active(user, false).await?;
            tell(ctx, "deactivated", user)?;
        }
        UsersCommand::Grant(args) => {
            let user = find(&client, &args.user).await?;
            client.admin_set_user_admin(user, true).await?;
            tell(ctx, "granted", user)?;
        }
        UsersCommand::Revoke(args) => {
            let user = find(&client, &args.user).await?;
            client.admin_set_user_admin(user, false).await?;
            tell(ctx, "revoked", user)?;
        }
    }
    Ok(0)
}

async fn list(client: &Client, args: &PageArgs, ctx: &Context) -> anyhow::Result<()> {
    let page = client.admin_users(args.page).await?;
    if ctx.json {
        return output::json(&page);
    }
    let row = |user: &AdminUser| {
        vec![
            output::clean(&user.email),
            output::clean(&user.name),
            output::clean(&user.status),
            if user.is_admin { "yes" } else { "no" }.to_owned(),
            format!("{} ({} owned)", user.teams_joined, user.teams_owned),
            user.id.to_string(),
            timestamp::format(user.created_at),
        ]
    };
    let header = ["E-MAIL", "NAME", "STATUS", "ADMIN", "TEAMS", "ID", "CREATED"];
    output::line(&output::table(&header, page.items.iter().map(row).collect(), ctx.colour))?;
    tell_of_more(&page);
    Ok(())
}

/// The user that `text` names, by id or address.
async fn find(client: &Client, text: &str) -> anyhow::Result<UserId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let mut number = 1;
    loop {
        let page = client.admin_users(number).await?;
        if let Some(user) = page.items.iter().find(|user| user.email.eq_ignore_ascii_case(text.trim())) {
            return Ok(user.id);
        }
        if page.items.is_empty() || number >= page.total_pages {
            anyhow::bail!("no user has the address `{text}`");
        }
        number += 1;
    }
}

fn tell(ctx: &Context, done: &str, user: UserId) -> anyhow::Result<()> {
    if ctx.json { output::json(&json!({ done: user })) } else { output::line(&user.to_string()) }
}
