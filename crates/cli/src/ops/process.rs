//! Which process is which: a process id alone may be somebody else's by now.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process by its id and the time it started, which together are unique on a machine until it reboots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub started: u64,
}

impl ProcessId {
    /// This process.
    pub fn own() -> io::Result<Self> {
        let pid = std::process::id();
        start_time(pid)
            .map(|started| Self { pid, started })
            .ok_or_else(|| io::Error::other("no /proc is mounted"))
    }

    /// Whether it is still alive.
    pub fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(self, signal: Signal) {
        if self.is_alive()
            && let Ok(pid) = i32::try_from(self.pid)
        {
            // It may end between the two calls.
            let _gone = kill(Pid::from_raw(pid), signal);
        }
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything, so count from its end.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

/// What a running supervisor tells about itself in `run/up.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunFile {
    /// The supervisor.
    pub process: ProcessId,
    /// Where the API answers.
    pub url: String,
    /// Whether everything has come up.
    pub ready: bool,
}

impl RunFile {
    /// Where it is.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("run").join("up.json")
    }

    /// The supervisor of that data directory, where one is alive.
    pub fn read(dir: &Path) -> Option<Self> {
        let bytes = fs::read(Self::path(dir)).ok()?;
        let file: Self = serde_json::from_slice(&bytes).ok()?;
        file.process.is_alive().then_some(file)
    }

    /// Publishes it.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        wrenn_agent::record::write_atomically(&Self::path(dir), &bytes, 0o644)
    }

    /// Takes it back.
    pub fn remove(dir: &Path) {
        // A run file that stays names a dead process, which readers notice.
        let _stale = fs::remove_file(Self::path(dir));
    }
}

/// Holds a data directory for one supervisor.
#[derive(Debug)]
pub struct DirLock {
    _lock: Flock<File>,
}

impl DirLock {
    /// The lock, or `None` where another supervisor has it.
    pub fn take(dir: &Path) -> io::Result<Option<Self>> {
        let run = dir.join("run");
        fs::create_dir_all(&run)?;
        let file = File::options().create(true).truncate(false).write(true).open(run.join("up.lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self { _lock: lock })),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        assert!(!ProcessId { started: own.started + 1, ..own }.is_alive());
    }

    #[test]
    fn one_supervisor_holds_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirLock::take(dir.path()).unwrap();
        assert!(held.is_some());
        assert!(DirLock::take(dir.path()).unwrap().is_none());
        drop(held);
        assert!(DirLock::take(dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_run_file_of_a_dead_process_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("run")).unwrap();
        let own = ProcessId::own().unwrap();
        let mut file = RunFile { process: own, url: "http://x".into(), ready: true };
        file.write(dir.path()).unwrap();
        assert_eq!(RunFile::read(dir.path()).unwrap().url, "http://x");
        file.process.started += 1;
        file.write(dir.path()).unwrap();
        assert!(RunFile::read(dir.path()).is_none());
    }
}
