//! A PostgreSQL server for one test process: own data directory, unix socket only, gone with the process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use wrenn_control::Store;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A running server.
pub struct Cluster {
    dir: TempDir,
    server: Option<Child>,
}

impl Cluster {
    /// Makes and starts a server. Call it on the thread that runs the test: the server dies with that thread.
    pub async fn start() -> Self {
        let dir = directory();
        let copied =
            Command::new("cp").arg("-a").arg(template()).arg(dir.path().join("data")).status().unwrap();
        assert!(copied.success(), "cannot copy a data directory");
        let mut cluster = Self { dir, server: None };
        cluster.resume().await;
        cluster
    }

    /// Starts the server again and waits until it answers.
    pub async fn resume(&mut self) {
        let dir = self.dir.path();
        let server = as_postgres(&format!("{BIN}/postgres"), dir)
            .arg("-D")
            .arg(dir.join("data"))
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c"])
            .arg(format!("unix_socket_directories={}", dir.display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.server = Some(server);
        while Store::connect(&self.url()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the server at once, as a crash would.
    pub fn stop(&mut self) {
        self.thaw();
        let Some(mut server) = self.server.take() else { return };
        let _ = Command::new("kill").args(["-QUIT", &server.id().to_string()]).status();
        let _ = server.wait();
    }

    /// Lets the server and its processes stand still.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let Some(server) = &self.server else { return };
        let pid = server.id().to_string();
        let children = Command::new("ps").args(["-o", "pid=", "--ppid", &pid]).output().unwrap().stdout;
        let children = String::from_utf8(children).unwrap();
        let all = children.split_whitespace().chain([pid.as_str()]);
        // One that has ended meanwhile is no matter.
        let _ = Command::new("kill").arg(signal).args(all).stderr(Stdio::null()).status();
    }

    /// Where the server is.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.dir.path().display().to_string().replace('/', "%2F"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A directory that the server may use.
fn directory() -> TempDir {
    let dir = tempfile::Builder::new().prefix("wrenn-pg-").tempdir().unwrap();
    if is_root() {
        assert!(Command::new("chown").arg("postgres").arg(dir.path()).status().unwrap().success());
    }
    dir
}

/// A data directory to copy: making one takes seconds, and every test has its own.
fn template() -> PathBuf {
    let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wrenn-control-postgres-15");
    if template.exists() {
        return template;
    }
    let dir = directory();
    let made = as_postgres(&format!("{BIN}/initdb"), dir.path())
        .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-N", "-D"])
        .arg(dir.path().join("data"))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success(), "initdb failed");
    let own = template.with_extension(std::process::id().to_string());
    let copied = Command::new("cp").arg("-a").arg(dir.path().join("data")).arg(&own).status().unwrap();
    assert!(copied.success(), "cannot keep a data directory");
    // Another test may have been faster; its directory is as good.
    if std::fs::rename(&own, &template).is_err() {
        std::fs::remove_dir_all(&own).unwrap();
    }
    template
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

fn as_postgres(program: &str, dir: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    }
    command.arg(program).current_dir(dir);
    command
}
