//! `make bench`: what must be fast, as ratios of two measurements of one run.
//!
//! Absolute numbers say little on machines that differ, so each line holds the platform against the bare part beneath
//! it. The two are measured in turn, which makes both see the same machine. A missed goal is told, and is no failure.

mod bare;
mod boot;
mod burst;
mod clones;
mod create;
mod database;
mod exec;
mod fork;
mod lab;
mod log;
mod memory;
mod pager;
mod pairs;
mod parts;
mod pause;
mod report;
mod setup;
mod stats;
mod terminal;
mod transfer;
mod warm;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use wrenn_vmm::qemu::Qemu;
use wrenn_vmm::{Accelerator, AcceleratorChoice};

use crate::database::Sizes;
use crate::lab::Lab;
use crate::parts::Run;
use crate::report::Line;

/// Measures a running platform on this machine, and restarts it for what wants other settings
#[derive(Debug, Parser)]
struct Args {
    /// The platform's data directory; the parts `pager` and `database` need no platform
    #[arg(long, env = "WRENN_DIR")]
    dir: Option<PathBuf>,
    /// Its URL
    #[arg(long, env = "WRENN_BASE_URL")]
    url: Option<String>,
    /// A key for it
    #[arg(long, env = "WRENN_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// The platform's program; the file `wrenn` beside this one where absent
    #[arg(long)]
    wrenn: Option<PathBuf>,
    /// What to measure; everything where none is named
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Idle capsules in the measurement of memory
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,
    /// Size of a transfer in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=512))]
    mib: u32,
    /// Repetitions of each transfer
    #[arg(long, default_value_t = 5, value_parser = repetitions)]
    transfers: usize,
    /// Repetitions of each boot
    #[arg(long, default_value_t = 12, value_parser = repetitions)]
    boots: usize,
    /// Repetitions of each create from a warm template and of each resume
    #[arg(long, default_value_t = 50, value_parser = repetitions)]
    restores: usize,
    /// Repetitions of each pause
    #[arg(long, default_value_t = 12, value_parser = repetitions)]
    pauses: usize,
    /// Creates at once
    #[arg(long, default_value_t = 20, value_parser = repetitions)]
    burst: usize,
    /// Repetitions of the creates at once
    #[arg(long, default_value_t = 3, value_parser = repetitions)]
    bursts: usize,
    /// Repetitions of each fork
    #[arg(long, default_value_t = 12, value_parser = repetitions)]
    forks: usize,
    /// Repetitions of each restore by a pager
    #[arg(long, default_value_t = 12, value_parser = repetitions)]
    pagers: usize,
    /// Clones in the measurement of their memory
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    clones: u32,
    #[command(flatten)]
    database: Sizes,
}

fn repetitions(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or_else(|| "must be a number above 0".to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Memory,
    Exec,
    Terminal,
    Transfer,
    Boot,
    Create,
    Resume,
    Pause,
    Burst,
    Fork,
    Clones,
    Pool,
    Pager,
    Database,
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// Whether something is to be measured of a running platform.
    fn wants_platform(&self) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| !matches!(part, Part::Database | Part::Pager))
    }

    /// The running platform.
    fn lab(&self) -> anyhow::Result<Lab> {
        let missing =
            "is not set, and says where the platform is; only the parts `pager` and `database` need none";
        let dir = self.dir.as_deref().with_context(|| format!("WRENN_DIR {missing}"))?;
        let url = self.url.as_deref().with_context(|| format!("WRENN_BASE_URL {missing}"))?;
        let key = self.key.as_deref().with_context(|| format!("WRENN_API_KEY {missing}"))?;
        Lab::open(dir, self.wrenn()?, url, key)
    }

    fn wrenn(&self) -> anyhow::Result<PathBuf> {
        match &self.wrenn {
            Some(path) => Ok(path.canonicalize()?),
            None => Ok(std::env::current_exe()?.with_file_name("wrenn")),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match measure(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints, whether or not everything went well.
async fn measure(args: &Args) -> anyhow::Result<()> {
    let lab = args.wants_platform().then(|| args.lab()).transpose()?;
    println!("{}\n", machine(lab.is_some()).await?);
    let mut lines = Vec::new();
    let outcome = match lab {
        Some(lab) => of_platform(args, lab, &mut lines).await,
        None => Ok(()),
    };
    let outcome = match outcome {
        Ok(()) if args.wants(Part::Database) => of_database(args, &mut lines).await,
        outcome => outcome,
    };
    // Last, for not every kernel has what it needs.
    let outcome = match outcome {
        Ok(()) if args.wants(Part::Pager) => of_pager(args, &mut lines).await,
        outcome => outcome,
    };
    if !lines.is_empty() {
        println!("{}", report::table(&lines));
    }
    outcome
}

/// Measures a running platform, and releases everything whether or not that went well.
async fn of_platform(args: &Args, lab: Lab, lines: &mut Vec<Line>) -> anyhow::Result<()> {
    let run = Run::new(args, &lab);
    let outcome = tokio::select! {
        outcome = run.all(lines) => outcome,
        outcome = interrupted() => outcome,
    };
    let closed = run.close().await;
    let released = lab.close().await;
    outcome.and(closed).and(released)
}

/// Measures a pager whose VMM is this process.
async fn of_pager(args: &Args, lines: &mut Vec<Line>) -> anyhow::Result<()> {
    eprintln!("memory that a pager serves");
    let wrenn = args.wrenn()?;
    let measured = tokio::select! {
        measured = pager::run(&wrenn, args.pagers) => measured?,
        outcome = interrupted() => return outcome,
    };
    lines.extend(measured);
    Ok(())
}

/// Measures pages over a database of its own.
async fn of_database(args: &Args, lines: &mut Vec<Line>) -> anyhow::Result<()> {
    eprintln!("pages over a large database");
    let sizes = args.database.clone();
    // Neither side of a comparison changes threads.
    let on_one_thread = move || {
        Builder::new_current_thread().enable_all().build()?.block_on(async {
            tokio::select! {
                measured = database::run(&sizes) => measured,
                outcome = interrupted() => outcome.map(|()| Vec::new()),
            }
        })
    };
    lines.extend(spawn_blocking(on_one_thread).await??);
    Ok(())
}

/// The machine, in a line.
async fn machine(with_vms: bool) -> anyhow::Result<String> {
    let cpus = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown CPU", |(_, name)| name);
    let vmm = if with_vms {
        let qemu = Qemu::detect(None).await?.version();
        format!(", QEMU {qemu} ({})", Accelerator::detect(AcceleratorChoice::Auto)?)
    } else {
        String::new()
    };
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    Ok(format!("{cpus} CPUs ({model}), Linux {}{vmm}, {build} build", kernel.trim()))
}

/// Resolves to an error when somebody wants this to end.
async fn interrupted() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    bail!("interrupted");
}
