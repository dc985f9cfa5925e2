//! `make bench`: what must be fast, as ratios of two measurements of one run.
//!
//! Absolute numbers say little on machines that differ, so each line holds the platform against the bare part beneath
//! it. The two are measured in turn, which makes both see the same machine. A missed goal is told, and is no failure.

mod bare;
mod boot;
mod exec;
mod lab;
mod memory;
mod report;
mod stats;
mod terminal;
mod transfer;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::bail;
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use wrenn_vmm::qemu::Qemu;
use wrenn_vmm::{Accelerator, AcceleratorChoice};

use crate::bare::Bare;
use crate::lab::Lab;
use crate::report::Line;

/// Memory in MiB of the capsule that is measured: the files of the transfers fit into its page cache.
const SUBJECT_MEMORY_MB: u32 = 1024;

/// Measures a running platform on this machine
#[derive(Debug, Parser)]
struct Args {
    /// The platform's data directory
    #[arg(long, env = "WRENN_DIR")]
    dir: PathBuf,
    /// Its URL
    #[arg(long, env = "WRENN_BASE_URL")]
    url: String,
    /// A key for it
    #[arg(long, env = "WRENN_API_KEY", hide_env_values = true)]
    key: String,
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
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
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

/// Measures, prints, and releases everything whether or not that went well.
async fn measure(args: &Args) -> anyhow::Result<()> {
    let lab = Lab::open(&args.dir, &args.url, &args.key)?;
    println!("{}\n", machine().await?);
    let (mut lines, bare) = (Vec::new(), OnceLock::new());
    let outcome = tokio::select! {
        outcome = parts(args, &lab, &bare, &mut lines) => outcome,
        outcome = interrupted() => outcome,
    };
    let closed = match bare.get() {
        Some(bare) => bare.close().await,
        None => Ok(()),
    };
    let released = lab.release().await;
    if !lines.is_empty() {
        println!("{}", report::table(&lines));
    }
    outcome.and(closed).and(released)
}

/// The machine, in a line.
async fn machine() -> anyhow::Result<String> {
    let cpus = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown CPU", |(_, name)| name);
    let qemu = Qemu::detect(None).await?.version();
    let accel = Accelerator::detect(AcceleratorChoice::Auto)?;
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    Ok(format!("{cpus} CPUs ({model}), Linux {}, QEMU {qemu} ({accel}), {build} build", kernel.trim()))
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

async fn parts(args: &Args, lab: &Lab, held: &OnceLock<Bare>, lines: &mut Vec<Line>) -> anyhow::Result<()> {
    if args.wants(Part::Memory) {
        eprintln!("memory of the agent with {} idle capsules", args.idle);
        lines.extend(memory::run(lab, args.idle).await?);
    }
    let subject = lab.subject(SUBJECT_MEMORY_MB).await?;
    if args.wants(Part::Exec) {
        eprintln!("round trip of a command");
        lines.extend(exec::run(lab, &subject).await?);
    }
    if args.wants(Part::Terminal) {
        eprintln!("echo of a keystroke");
        lines.extend(terminal::run(lab, &subject).await?);
    }
    if args.wants(Part::Transfer) {
        eprintln!("transfers of {} MiB", args.mib);
        lines.extend(transfer::run(lab, &subject, args.mib, args.transfers).await?);
    }
    lab.destroy(subject.id).await?;
    if args.wants(Part::Boot) {
        eprintln!("boots");
        let dir = lab.dir.join("bench");
        let bare = Bare::open(&lab.dir, &subject.record, dir).await?;
        lines.extend(boot::run(lab, held.get_or_init(|| bare), args.boots).await?);
    }
    Ok(())
}
