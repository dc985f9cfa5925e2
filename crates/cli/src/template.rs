//! `wrenn template …`: what capsules are made from.

mod create;
pub(crate) mod list;
mod rm;

use clap::Subcommand;

use crate::context::Context;

/// Commands on templates.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Make a template from a running or paused capsule: its disk, its memory and its processes
    Create(create::CreateArgs),
    /// List the templates of the team and of the platform
    #[command(visible_alias = "list")]
    Ls(list::ListArgs),
    /// Delete templates of the team; capsules made from them are not hurt
    #[command(visible_aliases = ["delete", "remove"])]
    Rm(rm::RmArgs),
}

/// Runs a command and returns the exit code of the program.
///
/// # Errors
/// What [`crate::output::report`] shows; [`crate::output::StdoutClosed`] is no failure.
pub async fn run(command: TemplateCommand, ctx: &Context) -> anyhow::Result<u8> {
    match command {
        TemplateCommand::Create(args) => create::run(args, ctx).await,
        TemplateCommand::Ls(args) => list::run(args, ctx).await,
        TemplateCommand::Rm(args) => rm::run(args, ctx).await,
    }
}
