//! `wrenn admin …`: running the platform.

mod teams;
mod templates;
mod users;

use clap::{Args, Subcommand};
use wrenn_client::Page;

use crate::audit::{self, AuditArgs, Log};
use crate::context::Context;
use crate::ops::people::{self, CreateUserArgs, SecretsCommand};
use crate::output;

/// Commands for those who run the platform.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// List users, shut them out, let them in, and say who runs the platform
    #[command(subcommand)]
    Users(users::UsersCommand),
    /// List and delete teams, and let them bring hosts of their own
    #[command(subcommand)]
    Teams(teams::TeamsCommand),
    /// List the templates of all teams, and delete the platform's
    #[command(subcommand)]
    Templates(templates::TemplatesCommand),
    /// Show who did what to the platform
    Audit(AuditArgs),
    /// Make an account without any mail, on the machine that runs the platform; the password is asked for
    CreateUser(CreateUserArgs),
    /// Replace a forgotten password, on the machine that runs the platform; the new one is asked for
    SetPassword {
        /// Address of the account
        email: String,
    },
    /// Replace the key that seals secrets in the database, on the machine that runs the platform
    #[command(subcommand)]
    Secrets(SecretsCommand),
}

/// Which part of a long list.
#[derive(Debug, Args)]
pub struct PageArgs {
    /// Which page of the list
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    page: u32,
}

/// Runs a command and returns the exit code of the program.
///
/// # Errors
/// What [`crate::output::report`] shows; [`crate::output::StdoutClosed`] is no failure.
pub async fn run(command: AdminCommand, ctx: &Context) -> anyhow::Result<u8> {
    match command {
        AdminCommand::Users(command) => users::run(command, ctx).await,
        AdminCommand::Teams(command) => teams::run(command, ctx).await,
        AdminCommand::Templates(command) => templates::run(command, ctx).await,
        AdminCommand::Audit(args) => {
            let client = ctx.person()?.client;
            audit::show(&client, args, Log::Platform, ctx).await
        }
        AdminCommand::CreateUser(args) => people::create_user(&ctx.settings, args, ctx.json).await,
        AdminCommand::SetPassword { email } => people::set_password(&ctx.settings, &email).await,
        AdminCommand::Secrets(command) => people::secrets(&ctx.settings, command, ctx.json).await,
    }
}

/// Says on standard error that a list goes on.
fn tell_of_more<T>(page: &Page<T>) {
    if page.page < page.total_pages {
        let (at, last, total) = (page.page, page.total_pages, page.total);
        output::say(&format!("page {at} of {last} ({total} in all); --page {} shows the next", at + 1));
    }
}
