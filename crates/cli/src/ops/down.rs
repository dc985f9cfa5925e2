//! `wrenn down` and `wrenn status`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use nix::sys::signal::Signal;
use serde::Serialize;
use wrenn_agent::record::{Phase, Record};

use super::process::{ProcessId, RunFile};
use super::roles;
use crate::config::Settings;

/// How long the platform may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// Options of `wrenn down`.
#[derive(Debug, Clone, clap::Args)]
pub struct DownArgs {
    /// Remove the capsules too; without this they keep running until the next `wrenn up`
    #[arg(long)]
    pub destroy_capsules: bool,
}

/// Stops the platform of this data directory; none running is no error.
///
/// # Errors
/// Where it does not stop.
pub async fn run(settings: &Settings, args: &DownArgs) -> anyhow::Result<u8> {
    let dir = &settings.dir.value;
    match RunFile::read(dir) {
        Some(running) => {
            running.process.signal(Signal::SIGTERM);
            let limit = Instant::now() + STOP_LIMIT;
            while running.process.is_alive() {
                if Instant::now() > limit {
                    bail!("process {} has not stopped after {} s", running.process.pid, STOP_LIMIT.as_secs());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            println!("Stopped.");
        }
        None => println!("Nothing is running in {}.", dir.display()),
    }
    let left = running_capsules(dir);
    if args.destroy_capsules {
        let removed = wrenn_agent::remains::remove_all(&roles::agent_config(settings, None)?).await?;
        println!("Removed {removed} capsule(s).");
    } else if left > 0 {
        println!(
            "{left} capsule(s) keep running; `wrenn up` takes them over, `wrenn down --destroy-capsules` removes them."
        );
    }
    Ok(0)
}

/// How many capsules of a data directory have a live VMM.
pub(super) fn running_capsules(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir.join("capsules")) else { return 0 };
    entries
        .filter_map(|entry| Record::read(&entry.ok()?.path()).ok())
        .filter(|record| record.phase == Phase::Running)
        .filter_map(|record| record.machine)
        .filter(|machine| ProcessId { pid: machine.pid, started: machine.start_time }.is_alive())
        .count()
}

/// What `wrenn status` tells.
#[derive(Debug, Serialize)]
struct Status {
    running: bool,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    capsules: usize,
    directory: String,
}

/// Tells whether the platform of this data directory runs: exit code 0 where it is up, 3 where it is not.
///
/// # Errors
/// Where nothing can be printed.
pub fn status(settings: &Settings, json: bool) -> anyhow::Result<u8> {
    let dir = &settings.dir.value;
    let running = RunFile::read(dir);
    let status = Status {
        running: running.is_some(),
        ready: running.as_ref().is_some_and(|file| file.ready),
        pid: running.as_ref().map(|file| file.process.pid),
        url: running.map(|file| file.url),
        capsules: running_capsules(dir),
        directory: dir.display().to_string(),
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        let state = match (status.running, status.ready) {
            (true, true) => "running",
            (true, false) => "starting",
            _ => "stopped",
        };
        println!("Platform   {state}");
        if let (Some(pid), Some(url)) = (status.pid, &status.url) {
            println!("Process    {pid}\nAPI        {url}");
        }
        println!("Capsules   {} running\nDirectory  {}", status.capsules, status.directory);
    }
    Ok(if status.ready { 0 } else { 3 })
}
