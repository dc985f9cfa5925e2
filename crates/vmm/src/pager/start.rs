//! The agent's side: starting a pager, and keeping hold of it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::order::{self, Order, READY};
use crate::process::{self, Process};
use crate::{ExitReason, VmmError, launch};

/// A pager reads the tables of its image's files and nothing else before it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A pager that closed its pipe is at its end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How a pager's process is started: a program that calls [`serve`](super::serve) first thing.
#[derive(Debug, Clone)]
pub struct PagerProgram {
    /// The program's file.
    pub program: PathBuf,
    /// Its arguments, without the name of the program itself.
    pub args: Vec<OsString>,
    /// Its environment. It gets nothing of the agent's, and `WRENN_PAGER` besides this.
    pub env: Vec<(OsString, OsString)>,
}

/// What a pager is to do.
#[derive(Debug)]
pub struct Job<'a> {
    /// Header of the image that holds the guest's memory.
    pub image: &'a Path,
    /// Where the VMM connects, once. Nobody else may be able to.
    pub socket: UnixListener,
    /// A pidfd of the VMM: the pager ends with it.
    pub vmm: BorrowedFd<'a>,
    /// The user that the pager becomes once the image is open, not 0.
    pub uid: u32,
    /// The group that it becomes, not 0.
    pub gid: u32,
    /// The cgroup that it joins: that of the VMM.
    pub cgroup: Option<&'a Path>,
    /// Where it says why it failed, if it does.
    pub stderr: File,
    /// Blocks to fetch before the guest asks for them, the most urgent first. What is beyond the end is left out.
    pub prefetch: Vec<Range<u64>>,
}

/// What must be kept to find a running pager again after the agent was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagerRecord {
    /// Process id.
    pub pid: u32,
    /// Start of the process in clock ticks since boot; with the boot's id it tells a recycled process id.
    pub start_time: u64,
    /// The kernel's id of the boot in which the process was started.
    pub boot_id: String,
}

/// A running pager. Dropping the handle leaves it running: it ends with its VMM.
#[derive(Debug)]
pub struct Pager {
    process: Process,
    boot_id: String,
}

impl Pager {
    /// Starts a pager, and returns when it has the image open and listens. Dropped before, the future takes the process
    /// with it.
    ///
    /// # Errors
    /// [`VmmError::Privileged`] for root, [`VmmError::Pager`] with the pager's own words where it cannot do its job, else
    /// where the program cannot be started. Nothing is left running.
    pub async fn start(program: &PagerProgram, job: Job<'_>) -> Result<Self, VmmError> {
        let (mut starting, ready) = Starting::begin(program, job)?;
        let answer = tokio::time::timeout(START_TIMEOUT, read_all(ready)).await;
        match answer {
            Ok(Ok(said)) if said == READY => starting.finish(),
            Ok(Ok(said)) => Err(starting.give_up(&String::from_utf8_lossy(&said)).await),
            Ok(Err(error)) => Err(starting.give_up(&error.to_string()).await),
            Err(_) => Err(starting.give_up(&format!("nothing within {START_TIMEOUT:?}")).await),
        }
    }

    /// Takes over the pager that an earlier agent started; none if it has ended.
    ///
    /// # Errors
    /// [`VmmError::Io`] where the process runs and cannot be held.
    pub fn adopt(record: &PagerRecord) -> Result<Option<Self>, VmmError> {
        let same = || process::runs(record.pid, record.start_time, &record.boot_id);
        if !same() {
            return Ok(None);
        }
        match Process::open(record.pid) {
            // Looked at again now that the process is held: it may have ended, and its number be another's.
            Ok(process) if process.start_time() == record.start_time && process.try_exit().is_none() => {
                Ok(Some(Self { process, boot_id: record.boot_id.clone() }))
            }
            Ok(_) => Ok(None),
            Err(_) if !same() => Ok(None),
            Err(source) => Err(VmmError::io("hold", &PathBuf::from(format!("/proc/{}", record.pid)), source)),
        }
    }

    /// What to keep in order to adopt it later.
    pub fn record(&self) -> PagerRecord {
        PagerRecord {
            pid: self.process.pid(),
            start_time: self.process.start_time(),
            boot_id: self.boot_id.clone(),
        }
    }

    /// Waits until it has ended. With code 0 its VMM ended; in all other cases the guest waits for pages that nobody
    /// brings.
    pub async fn exited(&self) -> ExitReason {
        self.process.exited().await
    }

    /// Ends it at once and waits until it is gone. Idempotent.
    ///
    /// # Errors
    /// [`VmmError::Unkillable`] where the kernel does not let the process go.
    pub async fn kill(&self) -> Result<(), VmmError> {
        self.process.kill().await
    }
}

/// A process that has not said yet that it is ready. Dropped, it is ended.
struct Starting(Option<Pager>);

impl Starting {
    /// Starts the process; also returns the pipe by which it speaks. Blocks for some milliseconds.
    fn begin(program: &PagerProgram, job: Job<'_>) -> Result<(Self, OwnedFd), VmmError> {
        if job.uid == 0 || job.gid == 0 {
            return Err(VmmError::Privileged { uid: job.uid, gid: job.gid });
        }
        let failed = |source: io::Error| VmmError::io("start the pager", &program.program, source);
        let prefetch = order::write_ranges(&job.prefetch).map_err(failed)?;
        let (ready, told) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| failed(error.into()))?;
        let order = Order {
            image: std::path::absolute(job.image).map_err(failed)?,
            uid: job.uid,
            gid: job.gid,
            socket: job.socket.as_raw_fd(),
            vmm: job.vmm.as_raw_fd(),
            ready: told.as_raw_fd(),
            prefetch: prefetch.as_raw_fd(),
        };
        let cgroup = job.cgroup.map(open_cgroup).transpose()?;
        let kept = [order.socket, order.vmm, order.ready, order.prefetch];
        let mut command = Command::new(&program.program);
        command.args(&program.args).env_clear().envs(program.env.iter().map(|(name, value)| (name, value)));
        command.env(order::VARIABLE, serde_json::to_string(&order).map_err(|error| failed(error.into()))?);
        command.current_dir("/").stdin(Stdio::null());
        command.stdout(job.stderr.try_clone().map_err(failed)?).stderr(job.stderr);
        // SAFETY: between fork and exec the closure makes system calls and nothing else; the descriptors that it names are
        // open until the child is started.
        unsafe { command.pre_exec(move || set_apart(cgroup.as_ref(), &kept)) };
        let boot_id = process::boot_id()?;
        let child = {
            let _forking = launch::forking();
            command.spawn().map_err(failed)?
        };
        let process = launch::hold(child.id(), &program.program)?;
        Ok((Self(Some(Pager { process, boot_id })), ready))
    }

    fn finish(&mut self) -> Result<Pager, VmmError> {
        self.0.take().ok_or_else(|| failure("taken already", ""))
    }

    /// Ends the process, if it has not ended, and says why.
    async fn give_up(&mut self, said: &str) -> VmmError {
        let Some(pager) = self.0.take() else { return failure("taken already", said) };
        let exit = tokio::time::timeout(END_TIMEOUT, pager.exited()).await;
        if let Err(error) = pager.kill().await {
            return error;
        }
        failure(&exit.unwrap_or(ExitReason::Killed).to_string(), said)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let Some(pager) = self.0.take() else { return };
        pager.process.signal_kill();
        // Somebody has to wait for it; without a runtime that is whoever inherits our children.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move { pager.exited().await });
    }
}

fn failure(exit: &str, said: &str) -> VmmError {
    VmmError::Pager { exit: exit.to_owned(), said: said.trim().to_owned() }
}

async fn read_all(pipe: OwnedFd) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    pipe::Receiver::from_owned_fd(pipe)?.read_to_end(&mut said).await?;
    Ok(said)
}

fn open_cgroup(cgroup: &Path) -> Result<OwnedFd, VmmError> {
    let procs = cgroup.join("cgroup.procs");
    let file = File::options().write(true).open(&procs);
    file.map(Into::into).map_err(|source| VmmError::io("open", &procs, source))
}

/// What cannot wait until the pager's own code runs: from its first instruction on it must outlive the agent and be found
/// in its cgroup, and it must not see what else the agent has open. For the child of a fork only.
fn set_apart(cgroup: Option<&OwnedFd>, kept: &[RawFd]) -> io::Result<()> {
    rustix::process::setsid()?;
    if let Some(procs) = cgroup {
        rustix::io::write(procs, b"0")?;
    }
    // By the program's start and not by the pager itself, so that it holds for every thread of whatever program it is.
    rustix::thread::set_no_new_privs(true)?;
    // Marked and not closed: the standard library reports a failed `exec` through a descriptor of its own.
    // SAFETY: no pointer is passed; the flag only marks descriptors.
    let marked = unsafe {
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if marked != 0 {
        return Err(io::Error::last_os_error());
    }
    for number in kept {
        // SAFETY: the parent keeps the descriptor open until the child is started.
        let kept = unsafe { BorrowedFd::borrow_raw(*number) };
        rustix::io::fcntl_setfd(kept, rustix::io::FdFlags::empty())?;
    }
    Ok(())
}
