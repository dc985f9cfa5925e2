//! `wrenn`: a platform that runs untrusted code in microVMs, all its roles and its command line in one program.

pub mod account;
pub mod admin;
pub mod audit;
pub mod capsule;
pub mod completion;
pub mod config;
pub mod context;
pub mod credentials;
pub mod envfile;
pub mod keys;
pub mod ops;
pub mod output;
pub mod person;
pub mod prompt;
pub mod teams;
pub mod template;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::account::{LoginArgs, LogoutArgs};
use crate::admin::AdminCommand;
use crate::audit::AuditArgs;
use crate::capsule::CapsuleCommand;
use crate::config::{Given, SettingFlags, Settings};
use crate::context::{Context, GlobalArgs};
use crate::keys::KeysArgs;
use crate::ops::down::DownArgs;
use crate::ops::roles::{AgentArgs, ControlArgs};
use crate::ops::up::UpArgs;
use crate::output::StdoutClosed;
use crate::teams::TeamsCommand;
use crate::template::TemplateCommand;

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
    /// Start the whole platform on this machine
    Up {
        /// How to run it
        #[command(flatten)]
        args: UpArgs,
        #[command(flatten)]
        flags: Box<SettingFlags>,
    },
    /// Stop the platform on this machine
    Down(DownArgs),
    /// Tell whether the platform runs on this machine (exit code 0: up, 3: not)
    Status,
    /// Report what this machine has and lacks, with the command that mends each lack
    Doctor(Box<SettingFlags>),
    /// Create, use and destroy capsules
    #[command(subcommand, visible_alias = "c")]
    Capsule(CapsuleCommand),
    /// Make, list and delete what capsules are made from
    #[command(subcommand, visible_alias = "t")]
    Template(TemplateCommand),
    /// Sign in, for everything that needs a person
    Login(LoginArgs),
    /// Forget the sign-in
    Logout(LogoutArgs),
    /// Show who is signed in, and in which team
    Whoami,
    /// Make, list and revoke API keys
    ///
    /// Whoever is signed in to the deployment (`wrenn login`) does so through the API, in the team of the sign-in. Where
    /// nobody is, and with --local, it is done on the database of the machine that runs the platform, in the team that
    /// `wrenn up` made.
    Keys(KeysArgs),
    /// Make, use and look after teams
    #[command(subcommand, visible_alias = "team")]
    Teams(TeamsCommand),
    /// Show who did what in the team
    Audit(AuditArgs),
    /// Run the platform: its users, teams and templates
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Run the control plane alone
    ControlPlane {
        /// What only the control plane needs
        #[command(flatten)]
        args: ControlArgs,
        #[command(flatten)]
        flags: Box<SettingFlags>,
    },
    /// Run the host agent alone
    Agent {
        /// What only the agent needs
        #[command(flatten)]
        args: AgentArgs,
        #[command(flatten)]
        flags: Box<SettingFlags>,
    },
    /// Serve the memory of one virtual machine; the agent starts it
    #[command(hide = true)]
    Pager,
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
    if matches!(cli.command, Command::Pager) {
        return match wrenn_vmm::pager::serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                output::report(&error.into());
                ExitCode::FAILURE
            }
        };
    }
    let runtime = match runtime(&cli.command) {
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

/// The supervisor runs on the main thread alone, because its children end with the thread that started them.
fn runtime(command: &Command) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match command {
        Command::Up { .. } => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

async fn run(cli: Cli) -> anyhow::Result<u8> {
    let no_flags = SettingFlags::default();
    let flags = match &cli.command {
        Command::Up { flags, .. } | Command::ControlPlane { flags, .. } | Command::Agent { flags, .. } => {
            flags
        }
        Command::Settings(flags) | Command::Doctor(flags) => flags,
        Command::Completion { shell } => return completion::run(*shell, Cli::command()),
        Command::Capsule(_)
        | Command::Template(_)
        | Command::Login(_)
        | Command::Logout(_)
        | Command::Whoami
        | Command::Keys(_)
        | Command::Teams(_)
        | Command::Audit(_)
        | Command::Admin(_)
        | Command::Down(_)
        | Command::Pager
        | Command::Status => &no_flags,
    };
    let given = Given { config: cli.global.config.as_deref(), dir: cli.global.dir.as_deref(), flags };
    let context = Context::new(cli.global.clone(), Settings::load(given)?);
    let settings = &context.settings;
    match cli.command {
        Command::Capsule(command) => capsule::run(command, &context).await,
        Command::Template(command) => template::run(command, &context).await,
        Command::Login(args) => account::login(args, &context).await,
        Command::Logout(args) => account::logout(&args, &context),
        Command::Whoami => account::whoami(&context).await.map_err(person::explain),
        Command::Keys(args) => keys::run(args, &context).await.map_err(person::explain),
        Command::Teams(command) => teams::run(command, &context).await.map_err(person::explain),
        Command::Audit(args) => audit::run(args, &context).await.map_err(person::explain),
        Command::Admin(command) => admin::run(command, &context).await.map_err(person::explain),
        Command::Status => ops::down::status(settings, context.json),
        Command::Doctor(_) => Ok(ops::doctor::run(settings, context.json)),
        Command::Settings(_) | Command::Completion { .. } | Command::Pager => {
            config::show(settings, context.json, context.colour)
        }
        Command::Up { args, .. } => {
            ops::logging::start(settings, Some("up"))?;
            ops::up::run(settings, &args).await
        }
        Command::Down(args) => {
            ops::logging::start(settings, None)?;
            ops::down::run(settings, &args).await
        }
        Command::ControlPlane { args, .. } => {
            ops::logging::start(settings, Some("control-plane"))?;
            ops::roles::control_plane(settings, &args).await
        }
        Command::Agent { args, .. } => {
            ops::logging::start(settings, Some("agent"))?;
            ops::roles::agent(settings, &args).await
        }
    }
}
