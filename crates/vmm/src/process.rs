//! One process, held by a pidfd: it may be our child, or the child of an agent that was killed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{ExitReason, VmmError};

/// SIGKILL takes effect within milliseconds; only a process stuck in the kernel needs this long.
const KILL_TIMEOUT: Duration = Duration::from_secs(60);

/// The kernel's id of the current boot.
///
/// # Errors
/// [`VmmError::Io`] where `/proc` is not mounted.
pub fn boot_id() -> Result<String, VmmError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(|source| VmmError::io("read", path, source))?;
    Ok(text.trim().to_owned())
}

/// Whether the process `pid` runs that was started at `start_time` in that boot. One that has ended but was not waited
/// for does not.
pub(crate) fn runs(pid: u32, start_time: u64, boot: &str) -> bool {
    let same = |stat: Stat| stat.start_time == start_time && !stat.ended;
    boot_id().is_ok_and(|id| id == boot) && Stat::read(pid).is_ok_and(same)
}

#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    start_time: u64,
    fd: AsyncFd<OwnedFd>,
    killed: AtomicBool,
    exit: Mutex<Option<ExitReason>>,
}

impl Process {
    /// Opens the process `pid`, which is our child and has not been waited for, or else may end at any moment.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let fd = rustix::process::pidfd_open(raw, PidfdFlags::empty())?;
        // Read after the pidfd is held: if both belong to different processes, the record's start time tells.
        let start_time = Stat::read(pid)?.start_time;
        // SAFETY: the descriptor is owned, keeps its number, and is closed by the AsyncFd after it is deregistered.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { pid, start_time, fd, killed: AtomicBool::new(false), exit: Mutex::new(None) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Its pidfd.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }

    /// Clock ticks since boot at which the process started.
    pub(crate) fn start_time(&self) -> u64 {
        self.start_time
    }

    /// How it ended, if it has.
    pub(crate) fn try_exit(&self) -> Option<ExitReason> {
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if exit.is_none() && has_ended(self.fd.get_ref().as_fd()) {
            *exit = Some(self.reap());
        }
        *exit
    }

    /// Waits for its end and reaps it if it is our child.
    pub(crate) async fn exited(&self) -> ExitReason {
        loop {
            if let Some(reason) = self.try_exit() {
                return reason;
            }
            // A pidfd stays readable, so a lost race costs one more turn and never a hang.
            if let Ok(mut ready) = self.fd.readable().await
                && !has_ended(self.fd.get_ref().as_fd())
            {
                ready.clear_ready();
            }
        }
    }

    /// Sends SIGKILL, unless it has ended.
    pub(crate) fn signal_kill(&self) {
        if self.try_exit().is_none() {
            self.killed.store(true, Ordering::SeqCst);
            // The one possible refusal is that it has just ended.
            let _ = rustix::process::pidfd_send_signal(self.fd.get_ref(), Signal::KILL);
        }
    }

    /// SIGKILL, then wait.
    pub(crate) async fn kill(&self) -> Result<(), VmmError> {
        self.signal_kill();
        tokio::time::timeout(KILL_TIMEOUT, self.exited())
            .await
            .map(drop)
            .map_err(|_| VmmError::Unkillable { pid: self.pid, after: KILL_TIMEOUT })
    }

    fn reap(&self) -> ExitReason {
        let status = rustix::process::waitid(
            WaitId::PidFd(self.fd.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        match status {
            _ if self.killed.load(Ordering::SeqCst) => ExitReason::Killed,
            Ok(Some(status)) => reason(&status),
            Ok(None) | Err(_) => ExitReason::Unobserved,
        }
    }

    pub(crate) fn cpu_time(&self) -> io::Result<Duration> {
        let ticks = Stat::read(self.pid)?.ticks;
        let per_second = system(libc::_SC_CLK_TCK)?;
        Ok(Duration::from_millis(ticks.saturating_mul(1000) / per_second))
    }

    pub(crate) fn resident_bytes(&self) -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid))?;
        let pages: Option<u64> = text.split_whitespace().nth(1).and_then(|field| field.parse().ok());
        let page_size = system(libc::_SC_PAGESIZE)?;
        pages.map(|pages| pages * page_size).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

fn reason(status: &WaitIdStatus) -> ExitReason {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitReason::Exited { code },
        (None, Some(signal)) => ExitReason::Signalled { signal },
        (None, None) => ExitReason::Unobserved,
    }
}

/// A constant of the running system, above zero.
fn system(name: libc::c_int) -> io::Result<u64> {
    // SAFETY: no pointer is passed.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).ok().filter(|value| *value > 0).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    // SAFETY: `fds` is one initialised pollfd that outlives the call, and the timeout of 0 makes it return at once.
    unsafe { libc::poll(fds.as_mut_ptr(), 1, 0) == 1 && fds[0].revents & libc::POLLIN != 0 }
}

/// The fields of `/proc/PID/stat` in use.
struct Stat {
    /// User and system time in clock ticks.
    ticks: u64,
    start_time: u64,
    /// It only waits for its parent to take its status.
    ended: bool,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The name, which may hold spaces and brackets, ends at the last bracket; field 3 follows it.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ended = matches!(*fields.first()?, "Z" | "X");
        Some(Self { ticks: number(14)? + number(15)?, start_time: number(22)?, ended })
    }
}

#[cfg(test)]
#[expect(clippy::zombie_processes, reason = "the process under test does the waiting")]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 1 0 4242 1 1 1";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.ticks, stat.start_time), (42, 4242));
        assert!(Stat::parse("7 (x) S 1").is_none() && Stat::parse("").is_none());
    }

    #[tokio::test]
    async fn an_exit_code_and_a_foreign_signal_are_told_apart_from_a_kill() {
        for (script, reason) in [
            ("exit 3", ExitReason::Exited { code: 3 }),
            ("kill -TERM $$", ExitReason::Signalled { signal: 15 }),
        ] {
            let child = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
            let process = Process::open(child.id()).unwrap();
            assert_eq!(process.exited().await, reason);
            assert_eq!(process.exited().await, reason, "a second wait has the same answer");
        }
    }

    #[tokio::test]
    async fn killing_twice_is_one_kill() {
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert_eq!(process.try_exit(), None);
        process.kill().await.unwrap();
        process.kill().await.unwrap();
        assert_eq!(process.exited().await, ExitReason::Killed);
        assert!(!Path::new(&format!("/proc/{}", child.id())).exists(), "reaped");
    }
}
