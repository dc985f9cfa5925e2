//! What the machine has and lacks, each lack with the command that mends it.

mod machines;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::postgres;
use crate::config::Settings;

/// Free memory below which a capsule is unlikely to fit, in MiB.
const LEAST_MEMORY_MB: u64 = 1024;
/// Free disk below which images or capsules are unlikely to fit, in MiB.
const LEAST_DISK_MB: u64 = 4096;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// There.
    Ok,
    /// Works, but not as well as it could.
    Warning,
    /// Essential and not there.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What, in a word or two.
    pub name: &'static str,
    /// How it came out.
    pub level: Level,
    /// What was found.
    pub detail: String,
    /// The command that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, detail: detail.into(), cure: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, level: Level::Warning, detail: detail.into(), cure: Some(cure.into()) }
    }

    fn missing(name: &'static str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, level: Level::Missing, detail: detail.into(), cure: Some(cure.into()) }
    }
}

/// Everything that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In the order of looking.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether something essential is missing.
    pub fn is_fatal(&self) -> bool {
        self.checks.iter().any(|check| check.level == Level::Missing)
    }
}

/// Prints the report: exit code 0 where nothing essential is missing.
pub fn run(settings: &Settings, json: bool) -> u8 {
    u8::from(!super::print_report(&examine(settings), settings, json))
}

/// Looks at the machine. Acquires nothing and changes nothing.
pub fn examine(settings: &Settings) -> Report {
    let dir = settings.dir.value.as_path();
    let mut checks = vec![root()];
    checks.extend(machines::examine(settings));
    checks.extend([
        network_part("tun", wrenn_net::doctor::check_tun()),
        network_part("namespaces", wrenn_net::doctor::check_netns()),
        network_part("nftables", wrenn_net::doctor::check_nft()),
        forwarding(),
        cgroup(),
        data_directory(dir),
        memory(),
        disk(dir),
        database(settings),
    ]);
    checks.extend(image_tools(dir));
    if super::process::RunFile::read(dir).is_none() {
        checks.push(port("api port", settings.listen.value));
        checks.push(port("agent port", settings.agent_listen.value));
    }
    Report { checks }
}

fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::ok("root", "running as root")
    } else {
        Check::missing("root", "network namespaces, TAPs and cgroups need root", "sudo wrenn …")
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn program(name: &'static str, file: &str, cure: &str) -> Check {
    match find_program(file) {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => Check::missing(name, format!("{file} is not installed"), cure),
    }
}

fn network_part(name: &'static str, found: Result<(), wrenn_net::doctor::Deficiency>) -> Check {
    match found {
        Ok(()) => Check::ok(name, "works"),
        Err(lack) => Check::missing(name, lack.what, lack.mend),
    }
}

/// Capsules run all the same, without the internet.
fn forwarding() -> Check {
    match wrenn_net::doctor::check_forwarding() {
        Ok(()) => Check::ok("forwarding", "no firewall is seen to drop what guests send"),
        Err(lack) => Check::warning("forwarding", lack.what, lack.mend),
    }
}

fn cgroup() -> Check {
    match wrenn_vmm::cgroup::root() {
        Some(dir) => Check::ok("cgroup v2", dir.display().to_string()),
        None => Check::warning(
            "cgroup v2",
            "not mounted: VMMs get no cgroup of their own",
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
    }
}

fn data_directory(dir: &Path) -> Check {
    let shown = dir.display();
    let made = fs::create_dir_all(dir).and_then(|()| tempfile::tempfile_in(dir));
    match made {
        Ok(_) => Check::ok("data directory", shown.to_string()),
        Err(error) => Check::missing(
            "data directory",
            format!("{shown}: {error}"),
            "set WRENN_DIR to a directory on a local disk",
        ),
    }
}

fn memory() -> Check {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    let mib = kib / 1024;
    if mib >= LEAST_MEMORY_MB {
        Check::ok("memory", format!("{mib} MiB available"))
    } else {
        Check::warning("memory", format!("only {mib} MiB available"), "stop other programs or add memory")
    }
}

fn disk(dir: &Path) -> Check {
    let free = rustix::fs::statvfs(dir).map_or(0, |fs| fs.f_bavail * fs.f_frsize) / (1 << 20);
    let detail = format!("{free} MiB free in {}", dir.display());
    if free >= LEAST_DISK_MB {
        Check::ok("disk", detail)
    } else {
        Check::warning("disk", detail, "free some space, or set WRENN_DIR to a larger disk")
    }
}

fn database(settings: &Settings) -> Check {
    if settings.database_url.value.is_some() {
        return Check::ok("database", "DATABASE_URL is set");
    }
    match postgres::find_binaries() {
        Some(dir) => Check::ok("database", format!("private cluster with {}", dir.display())),
        None => Check::missing(
            "database",
            "neither DATABASE_URL nor an installed PostgreSQL",
            "apt-get install postgresql-15",
        ),
    }
}

/// What making the base image needs, where it has not been made yet.
fn image_tools(dir: &Path) -> Vec<Check> {
    if wrenn_agent::images::are_built(dir) {
        return vec![Check::ok("base image", "made")];
    }
    vec![
        program("mmdebstrap", "mmdebstrap", "apt-get install mmdebstrap"),
        program("mke2fs", "mke2fs", "apt-get install e2fsprogs"),
    ]
}

fn port(name: &'static str, addr: SocketAddr) -> Check {
    match TcpListener::bind(addr) {
        Ok(_) => Check::ok(name, format!("{addr} is free")),
        Err(error) => {
            let variable = if name == "api port" { "WRENN_LISTEN" } else { "WRENN_AGENT_LISTEN" };
            Check::missing(name, format!("{addr}: {error}"), format!("set {variable} to a free address"))
        }
    }
}
