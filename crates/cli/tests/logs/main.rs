//! Where the lines of the platform's processes go, with a real control plane and a real PostgreSQL.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]
#![expect(unreachable_pub, reason = "a test binary has no outside")]

mod cluster;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::Cluster;

/// A pause between two looks at something that is waited for; the test runner ends a wait that never does.
const LOOK: Duration = Duration::from_millis(20);

/// A running control plane.
struct ControlPlane {
    child: Child,
    address: SocketAddr,
}

impl ControlPlane {
    /// Starts one whose standard output and error go to `output`, and waits until it answers.
    fn start(dir: &Path, database: &Cluster, output: &File) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_wrenn"))
            .arg("control-plane")
            .env_clear()
            .env("WRENN_DIR", dir)
            .env("WRENN_LISTEN", address.to_string())
            .env("DATABASE_URL", database.url())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output.try_clone().unwrap())
            .spawn()
            .unwrap();
        let mut started = Self { child, address };
        while TcpStream::connect(address).is_err() {
            assert!(started.child.try_wait().unwrap().is_none(), "the control plane ended");
            std::thread::sleep(LOOK);
        }
        started
    }

    /// Makes a request, of which the control plane logs one line with this word.
    fn request(&self, word: &str) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(stream, "GET /v1/{word} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }

    fn hang_up(&self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGHUP).unwrap();
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many lines have the word.
fn count(path: &Path, word: &str) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().filter(|line| line.contains(word)).count()
}

fn wait_for(path: &Path, word: &str) {
    while count(path, word) == 0 {
        std::thread::sleep(LOOK);
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> PathBuf {
        self.path("logs/wrenn.log")
    }

    fn appending(&self, path: &Path) -> File {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::options().create(true).append(true).open(path).unwrap()
    }
}

#[test]
fn lines_go_to_the_file_and_to_standard_error_and_a_hangup_changes_the_file() {
    let (database, place) = (Cluster::start(), Place::new());
    let (log, stderr, old) = (place.log(), place.path("stderr"), place.path("logs/wrenn.log.1"));
    let control = ControlPlane::start(place.dir.path(), &database, &place.appending(&stderr));
    control.request("first");
    wait_for(&log, "first");
    wait_for(&stderr, "first");
    let text = fs::read_to_string(&log).unwrap();
    let roles: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(roles.iter().all(|line| line["role"] == "control-plane"), "{text}");

    fs::rename(&log, &old).unwrap();
    control.hang_up();
    wait_for(&log, "anew");
    control.request("second");
    wait_for(&log, "second");
    wait_for(&stderr, "second");
    assert_eq!([count(&old, "first"), count(&old, "second"), count(&log, "first")], [1, 0, 0]);
    assert_eq!([count(&log, "second"), count(&stderr, "second")], [1, 1]);
}

#[test]
fn a_line_stands_once_where_standard_error_is_the_file_and_that_moves_along() {
    let (database, place) = (Cluster::start(), Place::new());
    let (log, old) = (place.log(), place.path("logs/wrenn.log.1"));
    let detached = ControlPlane::start(place.dir.path(), &database, &place.appending(&log));
    let beside = ControlPlane::start(place.dir.path(), &database, &place.appending(&place.path("stderr")));
    for (control, word) in [(&detached, "first"), (&beside, "other")] {
        control.request(word);
        wait_for(&log, word);
        assert_eq!(count(&log, word), 1);
    }

    fs::rename(&log, &old).unwrap();
    detached.hang_up();
    wait_for(&log, "anew");
    detached.request("second");
    wait_for(&log, "second");
    assert_eq!([count(&log, "second"), count(&old, "second")], [1, 0]);
    for stream in [1, 2] {
        let leads_to = fs::read_link(format!("/proc/{}/fd/{stream}", detached.child.id())).unwrap();
        assert_eq!(leads_to, fs::canonicalize(&log).unwrap());
    }
}

#[test]
fn without_a_file_standard_error_has_everything_and_a_hangup_ends_nothing() {
    let (database, place) = (Cluster::start(), Place::new());
    fs::write(place.path("logs"), "in the way").unwrap();
    let stderr = place.path("stderr");
    let mut control = ControlPlane::start(place.dir.path(), &database, &place.appending(&stderr));
    wait_for(&stderr, "the log goes to standard error alone");
    control.hang_up();
    control.request("first");
    wait_for(&stderr, "first");
    assert!(control.child.try_wait().unwrap().is_none());
}

#[test]
fn a_user_command_logs_nothing() {
    let place = Place::new();
    let dir = place.dir.path().to_str().unwrap();
    let args = ["capsule", "ls", "--dir", dir, "--base-url", "http://127.0.0.1:1", "--api-key", "k"];
    let output = Command::new(env!("CARGO_BIN_EXE_wrenn")).args(args).env_clear().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!place.path("logs").exists());
}
