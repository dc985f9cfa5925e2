//! `wrenn capsule …`: what people do with capsules. Everything but the console log goes through the public API.

mod attach;
mod cp;
mod create;
mod exec;
mod fork;
mod list;
mod logs;
mod processes;
pub mod resolve;
mod rm;
mod shell;
mod stdin;
mod terminal;
mod turn;

use clap::Subcommand;

use crate::context::Context;

/// Commands on capsules. Ids may be shortened to any beginning that only one capsule has, with or without `cl-`.
#[derive(Debug, Subcommand)]
pub enum CapsuleCommand {
    /// Create a capsule and wait until it runs
    Create(create::CreateArgs),
    /// List the capsules that are not gone
    #[command(visible_alias = "list")]
    Ls(list::ListArgs),
    /// Show everything about a capsule
    #[command(visible_alias = "inspect")]
    Info(list::InfoArgs),
    /// Run a command in a capsule and show its output live
    Exec(exec::ExecArgs),
    /// Open a terminal in a capsule
    #[command(visible_alias = "sh")]
    Shell(shell::ShellArgs),
    /// Copy files between this machine and a capsule
    Cp(cp::CpArgs),
    /// Follow a background process, or show the console of a capsule on this machine
    Logs(logs::LogsArgs),
    /// List the processes of a capsule that were started through the API
    Ps(processes::PsArgs),
    /// Kill a process of a capsule
    Kill(processes::KillArgs),
    /// Pause capsules: their memory goes to disk, their processes stand still
    Pause(turn::TurnArgs),
    /// Resume paused capsules, processes and all
    #[command(visible_alias = "unpause")]
    Resume(turn::TurnArgs),
    /// Make running copies of a running capsule, memory and processes included
    Fork(fork::ForkArgs),
    /// Destroy capsules
    #[command(visible_aliases = ["destroy", "remove"])]
    Rm(rm::RmArgs),
}

/// Runs a command and returns the exit code of the program.
///
/// # Errors
/// What [`crate::output::report`] shows; [`crate::output::StdoutClosed`] is no failure.
pub async fn run(command: CapsuleCommand, ctx: &Context) -> anyhow::Result<u8> {
    match command {
        CapsuleCommand::Create(args) => create::run(args, ctx).await,
        CapsuleCommand::Ls(args) => list::list(args, ctx).await,
        CapsuleCommand::Info(args) => list::info(args, ctx).await,
        CapsuleCommand::Exec(args) => exec::run(args, ctx).await,
        CapsuleCommand::Shell(args) => shell::run(args, ctx).await,
        CapsuleCommand::Cp(args) => cp::run(args, ctx).await,
        CapsuleCommand::Logs(args) => logs::run(args, ctx).await,
        CapsuleCommand::Ps(args) => processes::list(args, ctx).await,
        CapsuleCommand::Kill(args) => processes::kill(args, ctx).await,
        CapsuleCommand::Pause(args) => turn::run(turn::Turn::Pause, args, ctx).await,
        CapsuleCommand::Resume(args) => turn::run(turn::Turn::Resume, args, ctx).await,
        CapsuleCommand::Fork(args) => fork::run(args, ctx).await,
        CapsuleCommand::Rm(args) => rm::run(args, ctx).await,
    }
}

/// Parses `KEY=VALUE` for flags that take pairs.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// The exit code of this program for that of a remote process, which is -1 after death by a signal.
fn exit_code(remote: i32) -> u8 {
    u8::try_from(remote).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_keep_every_equals_sign_but_the_first() {
        assert_eq!(key_value("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(key_value("A="), Ok(("A".into(), String::new())));
        assert!(key_value("A").is_err() && key_value("=b").is_err());
    }

    #[test]
    fn remote_exit_codes_pass_and_signals_become_255() {
        assert_eq!([0, 7, 255, -1, 300].map(exit_code), [0, 7, 255, 255, 255]);
    }
}
