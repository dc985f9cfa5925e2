//! A PostgreSQL server for one test: own data directory, unix socket only, gone with the test.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A running server.
pub struct Cluster {
    dir: TempDir,
    server: Child,
}

impl Cluster {
    /// Makes and starts a server. Call it on the thread that runs the test: the server dies with that thread.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("wrenn-pg-").tempdir().unwrap();
        assert!(Command::new("chown").arg("postgres").arg(dir.path()).status().unwrap().success());
        let data = dir.path().join("data");
        let made = as_postgres("initdb", dir.path())
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-N", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success(), "initdb failed");
        let server = as_postgres("postgres", dir.path())
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c"])
            .arg(format!("unix_socket_directories={}", dir.path().display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let cluster = Self { dir, server };
        while !cluster.answers() {
            std::thread::sleep(Duration::from_millis(20));
        }
        cluster
    }

    fn answers(&self) -> bool {
        let mut command = Command::new(format!("{BIN}/pg_isready"));
        command.arg("-q").arg("-h").arg(self.dir.path()).status().unwrap().success()
    }

    /// Where the server is.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.dir.path().display().to_string().replace('/', "%2F"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-QUIT", &self.server.id().to_string()]).status();
        let _ = self.server.wait();
    }
}

fn as_postgres(program: &str, dir: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT", "--reuid=postgres", "--regid=postgres", "--init-groups"]);
    command.arg(format!("{BIN}/{program}")).current_dir(dir);
    command
}
