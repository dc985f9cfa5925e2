//! `wrenn`: a platform that runs untrusted code in microVMs, all its roles and its command line in one program.

pub mod capsule;
pub mod completion;
pub mod config;
pub mod context;
pub mod envfile;
pub mod output;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::capsule::CapsuleCommand;
use crate::config::{Given, SettingFlags, Settings};
use crate::context::{Context, GlobalArgs};
use crate::output::StdoutClosed;

/// Run untrusted code in microVMs
#[derive(Debug, Parser)]
#[command(name = "wrenn", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create, use and destroy capsules
    #[command(subcommand, visible_alias = "c")]
    Capsule(CapsuleCommand),
    /// Show the settings in force and where each comes from
    Settings(Box<SettingFlags>),
    /// Write a completion script for a shell, for example: wrenn completion bash > /etc/bash_completion.d/wrenn
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Another provider cannot have been installed before the first line of the program.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::report(&anyhow::Error::new(error).context("cannot start the runtime"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(cli));
    // A write to a stalled pipe cannot be cancelled; do not wait for it.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            output::report(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<u8> {
    let no_flags = SettingFlags::default();
    let flags = match &cli.command {
        Command::Settings(flags) => flags,
        Command::Completion { shell } => return completion::run(*shell, Cli::command()),
        Command::Capsule(_) => &no_flags,
    };
    let given = Given { config: cli.global.config.as_deref(), dir: cli.global.dir.as_deref(), flags };
    let context = Context::new(cli.global.clone(), Settings::load(given)?);
    match cli.command {
        Command::Capsule(command) => capsule::run(command, &context).await,
        _ => config::show(&context.settings, context.json, context.colour),
    }
}
