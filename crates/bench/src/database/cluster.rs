//! A PostgreSQL server of this process: a new cluster with the settings that PostgreSQL has by itself, on a unix socket
//! only, gone with the process.
//!
//! It differs in `fsync`, which is off: what is measured reads, and nothing of it has to survive.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::time::Instant;

/// Where Debian keeps the binaries, one directory for each major version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// How long a start may take.
const START: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// A running server.
#[derive(Debug)]
pub(super) struct Cluster {
    dir: TempDir,
    server: Child,
}

impl Cluster {
    /// Makes and starts a server. Call it on the thread that lasts: the server ends with the one that started it.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let bin = binaries().context("PostgreSQL is not installed; run: apt-get install postgresql-15")?;
        let dir = tempfile::Builder::new().prefix("wrenn-bench-").tempdir()?;
        if is_root()? {
            let given = Command::new("chown").arg("postgres").arg(dir.path()).status()?;
            ensure!(given.success(), "there is no user `postgres`; run: apt-get install postgresql-common");
        }
        let mut making = as_postgres(&bin.join("initdb"), dir.path())?;
        making.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-N", "-D"]);
        making.arg(dir.path().join("data"));
        let made = tokio::process::Command::from(making).output().await.context("cannot run initdb")?;
        ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr).trim());
        let server = as_postgres(&bin.join("postgres"), dir.path())?
            .arg("-D")
            .arg(dir.path().join("data"))
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c"])
            .arg(format!("unix_socket_directories={}", dir.path().display()))
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log"))?)
            .spawn()
            .context("cannot run PostgreSQL")?;
        let mut cluster = Self { dir, server };
        cluster.wait().await?;
        Ok(cluster)
    }

    async fn wait(&mut self) -> anyhow::Result<()> {
        let limit = Instant::now() + START;
        while let Err(error) = self.connect().await {
            if self.server.try_wait()?.is_some() || Instant::now() > limit {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                bail!("PostgreSQL does not start ({error:#}): {}", log.trim());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// A connection of its own.
    pub(super) async fn connect(&self) -> anyhow::Result<PgConnection> {
        let options = PgConnectOptions::new_without_pgpass();
        let options = options.socket(self.dir.path()).username("postgres").database("postgres");
        Ok(PgConnection::connect_with(&options).await?)
    }

    /// The server, for whoever takes a URL.
    pub(super) fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.dir.path().display().to_string().replace('/', "%2F"))
    }

    /// What it says.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // At once, as for a crash; its processes end before their parent does.
        let _ = kill_process(Pid::from_child(&self.server), Signal::QUIT);
        let _ = self.server.wait();
    }
}

/// The directory of the newest installed PostgreSQL's binaries.
fn binaries() -> Option<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS).ok()?;
    let newest = versions
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| Path::new(VERSIONS).join(version.to_string()).join("bin/postgres").exists())
        .max()?;
    Some(Path::new(VERSIONS).join(newest.to_string()).join("bin"))
}

fn is_root() -> anyhow::Result<bool> {
    Ok(std::fs::metadata("/proc/self")?.uid() == 0)
}

/// A program that ends with this thread, and is not root's: PostgreSQL refuses that.
fn as_postgres(program: &Path, dir: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if is_root()? {
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    }
    command.arg(program).current_dir(dir);
    Ok(command)
}
