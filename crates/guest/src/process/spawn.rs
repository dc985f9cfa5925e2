//! Starts a process: a child that shares the daemon's memory until it executes, as `vfork` does, so that a start costs
//! no copy of page tables however large the daemon is.
//!
//! Everything the child needs is laid out before. In the child there is nothing but raw system calls: no allocation, no
//! lock, and none of the C library's wrappers that would change ids in all threads of the (shared) program.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use wrenn_protocol::guest::SpawnError;

use crate::accounts::User;
use crate::error::{Error, Result, describe};

/// Room for the child's few calls before it executes.
const STACK_BYTES: usize = 64 * 1024;

/// The signals the daemon (or Rust's runtime, for SIGPIPE) treats in its own way.
const HANDLED: [libc::c_int; 5] = [libc::SIGPIPE, libc::SIGTERM, libc::SIGINT, libc::SIGCHLD, libc::SIGHUP];

/// A process to be.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// Executable: a path, or a name looked up in the `PATH` of `env`.
    pub(super) command: &'a str,
    /// Arguments after the name.
    pub(super) arguments: &'a [String],
    /// The whole environment.
    pub(super) env: &'a BTreeMap<String, String>,
    /// Working directory.
    pub(super) cwd: &'a str,
    /// Whose process it is.
    pub(super) user: &'a User,
    /// What becomes descriptors 0, 1 and 2.
    pub(super) stdio: [BorrowedFd<'a>; 3],
    /// Whether descriptor 0 becomes the controlling terminal.
    pub(super) terminal: bool,
}

/// Where the child failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Stage {
    Descriptors = 1,
    Terminal,
    Identity,
    Directory,
    Execute,
}

/// What the child reads and the one place it writes to. Only numbers and pointers into vectors that the parent keeps.
struct Child {
    candidates: *const *const libc::c_char,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    cwd: *const libc::c_char,
    uid: u32,
    gid: u32,
    groups: *const u32,
    group_count: usize,
    switch_user: bool,
    stdio: [RawFd; 3],
    terminal: bool,
    raised: bool,
    failed_stage: i32,
    failed_errno: i32,
}

impl Plan<'_> {
    /// Starts the process, as the leader of a session of its own, and returns its id once it executes.
    pub(super) fn start(&self) -> Result<i32> {
        let arguments = self.arguments()?;
        let env = self.environment()?;
        let candidates = self.candidates()?;
        let cwd = c_string(self.cwd)?;
        let (argv, envp, paths) = (pointers(&arguments), pointers(&env), pointers(&candidates));
        let mut child = Child {
            candidates: paths.as_ptr(),
            argv: argv.as_ptr(),
            envp: envp.as_ptr(),
            cwd: cwd.as_ptr(),
            uid: self.user.uid,
            gid: self.user.gid,
            groups: self.user.groups.as_ptr(),
            group_count: self.user.groups.len(),
            switch_user: rustix::process::geteuid().is_root(),
            stdio: self.stdio.map(|fd| fd.as_raw_fd()),
            terminal: self.terminal,
            raised: rustix::process::getpriority_process(None).is_ok_and(|priority| priority < 0),
            failed_stage: 0,
            failed_errno: 0,
        };
        let pid = clone_and_execute(&mut child).map_err(|errno| Error::path(self.command, errno))?;
        if child.failed_stage == 0 {
            return Ok(pid);
        }
        collect_failed(pid);
        Err(self.failure(child.failed_stage, Errno::from_raw_os_error(child.failed_errno)))
    }

    fn arguments(&self) -> Result<Vec<CString>> {
        let mut arguments = vec![c_string(self.command)?];
        for argument in self.arguments {
            arguments.push(c_string(argument)?);
        }
        Ok(arguments)
    }

    fn environment(&self) -> Result<Vec<CString>> {
        self.env.iter().map(|(name, value)| c_string(&format!("{name}={value}"))).collect()
    }

    fn candidates(&self) -> Result<Vec<CString>> {
        if self.command.is_empty() {
            return Err(Error::spawn(SpawnError::NotFound, "the command is empty"));
        }
        if self.command.contains('/') {
            return Ok(vec![c_string(self.command)?]);
        }
        let path = self.env.get("PATH").map_or("", String::as_str);
        path.split(':').map(|directory| c_string(&search(directory, self.command))).collect()
    }

    fn failure(&self, stage: i32, errno: Errno) -> Error {
        let command = self.command;
        let reason = describe(errno);
        if stage == Stage::Directory as i32 {
            return Error::spawn(SpawnError::BadCwd, format!("cwd {}: {reason}", self.cwd));
        }
        if stage != Stage::Execute as i32 {
            return Error::invalid(format!("{command}: cannot be set up: {reason}"));
        }
        match errno {
            Errno::NOENT | Errno::NOTDIR => {
                Error::spawn(SpawnError::NotFound, format!("{command}: executable file not found"))
            }
            Errno::ACCESS | Errno::NOEXEC | Errno::ISDIR | Errno::PERM | Errno::LIBBAD => {
                Error::spawn(SpawnError::NotExecutable, format!("{command}: {reason}"))
            }
            _ => Error::invalid(format!("{command}: {reason}")),
        }
    }
}

/// An empty element of `PATH` means the working directory.
fn search(directory: &str, command: &str) -> String {
    if directory.is_empty() { format!("./{command}") } else { format!("{directory}/{command}") }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid(format!("{text:?} contains a zero byte")))
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// A child that failed before it executed is nobody's process yet: it is collected here.
fn collect_failed(pid: i32) {
    // SAFETY: a null status pointer is allowed.
    unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) };
}

fn clone_and_execute(child: &mut Child) -> Result<i32, Errno> {
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    let mask = block_signals();
    // SAFETY: the child runs `in_child` on its own stack in our memory, while this thread is suspended until it
    // executes or exits (CLONE_VFORK): `child` and `stack` outlive it, and nobody else touches them meanwhile.
    let pid = unsafe {
        libc::clone(
            in_child,
            top.cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            ptr::from_mut(child).cast(),
        )
    };
    let result = if pid < 0 { Err(last_errno()) } else { Ok(pid) };
    restore_signals(&mask);
    result
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// No handler of the daemon may run in the child, which shares its memory.
fn block_signals() -> libc::sigset_t {
    // SAFETY: both sets are valid places; sigfillset initialises the first, pthread_sigmask the second.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: `mask` came from block_signals.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
}

extern "C" fn in_child(argument: *mut libc::c_void) -> libc::c_int {
    let child = argument.cast::<Child>();
    // SAFETY: `argument` is the `Child` of clone_and_execute, whose thread is suspended.
    let child = unsafe { &mut *child };
    // SAFETY: the pointers in `child` lead into vectors that the suspended parent keeps.
    let (stage, errno) = unsafe { child.become_process() };
    child.failed_stage = stage as i32;
    child.failed_errno = errno;
    // SAFETY: ends only the child, without running handlers of the shared program.
    unsafe { libc::_exit(127) }
}

/// Makes a raw system call and leaves the function with `stage` if it fails.
macro_rules! attempt {
    ($stage:expr, $number:expr $(, $argument:expr)*) => {
        if libc::syscall($number $(, $argument)*) < 0 {
            return ($stage, *libc::__errno_location());
        }
    };
}

impl Child {
    /// # Safety
    /// Only in a child between clone and execute, with valid null-terminated pointer arrays. Returns only on failure.
    unsafe fn become_process(&self) -> (Stage, i32) {
        // SAFETY: raw calls with valid pointers, as the caller promises.
        unsafe {
            default_signals();
            attempt!(Stage::Terminal, libc::SYS_setsid);
            if self.raised {
                attempt!(Stage::Identity, libc::SYS_setpriority, libc::PRIO_PROCESS, 0, 0);
            }
            let failed = self.place_descriptors();
            if failed != 0 {
                return (Stage::Descriptors, failed);
            }
            if self.terminal {
                attempt!(Stage::Terminal, libc::SYS_ioctl, 0, libc::TIOCSCTTY, 0);
            }
            if self.switch_user {
                attempt!(Stage::Identity, libc::SYS_setgroups, self.group_count, self.groups);
                attempt!(Stage::Identity, libc::SYS_setresgid, self.gid, self.gid, self.gid);
                attempt!(Stage::Identity, libc::SYS_setresuid, self.uid, self.uid, self.uid);
            }
            attempt!(Stage::Directory, libc::SYS_chdir, self.cwd);
            (Stage::Execute, self.execute())
        }
    }

    /// The three descriptors are all above 2 (the parent sees to that), so none is overwritten before it is copied.
    unsafe fn place_descriptors(&self) -> i32 {
        for (target, fd) in (0..).zip(self.stdio) {
            // SAFETY: plain numbers.
            unsafe {
                if libc::syscall(libc::SYS_dup3, fd, target, 0) < 0 {
                    return *libc::__errno_location();
                }
            }
        }
        0
    }

    /// Tries every candidate; a file that may not be executed is reported before one that is not there.
    unsafe fn execute(&self) -> i32 {
        let mut worst = libc::ENOENT;
        let mut next = self.candidates;
        // SAFETY: `candidates` ends with null, and so do the arrays handed to the kernel.
        unsafe {
            while !(*next).is_null() {
                libc::syscall(libc::SYS_execve, *next, self.argv, self.envp);
                match *libc::__errno_location() {
                    libc::ENOENT | libc::ENOTDIR => {}
                    libc::EACCES => worst = libc::EACCES,
                    other => return other,
                }
                next = next.add(1);
            }
        }
        worst
    }
}

/// Handlers fall away with execution, but ignored signals and the mask would be inherited.
unsafe fn default_signals() {
    // SAFETY: the child has a copy of the handler table, so the daemon's own stays as it is.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        for signal in HANDLED {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}
