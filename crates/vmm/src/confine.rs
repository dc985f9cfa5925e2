//! How a VMM is shut in before its first instruction.
//!
//! The parent prepares everything that allocates: descriptors, C strings, numbers. The child, between `fork` and
//! `exec`, runs [`Confinement::enter`], which makes only system calls, for another thread of the parent may have held
//! any lock at the fork. A step that fails says its name on standard error, which the launcher keeps.
//!
//! 1. own session: the VMM survives its agent and gets no terminal's Ctrl-C;
//! 2. the capsule's cgroup and network namespace;
//! 3. a mount namespace of its own, in which the directories it needs appear at fixed paths below [`VIEW`]: the host's
//!    paths may lie in a directory that is closed to the VMM's user, and a snapshot must find its files again;
//! 4. bounds on what it may open and dump;
//! 5. every descriptor but those named closes at `exec`;
//! 6. the unprivileged user, no supplementary group that is not named, no way back.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::VmmError;

/// Where a VMM sees its directories. It exists, empty, on the host; each VMM has its own mounts over it.
pub(crate) const VIEW: &str = "/run/wrenn/vmm";

/// A VMM has a handful of files and a handful of sockets.
const MAX_FILES: u64 = 1024;

/// What a VMM may do with a directory in its view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    /// Open the device nodes in it.
    Devices,
}

/// A directory or a device node of the host in the VMM's view.
#[derive(Debug)]
struct Mount {
    source: CString,
    target: CString,
    access: Access,
}

/// The user that a VMM becomes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The one supplementary group: that of `/dev/kvm`, where it is used.
    pub(crate) extra_group: Option<u32>,
}

/// All that a child needs to shut itself in.
#[derive(Debug)]
pub(crate) struct Confinement {
    identity: Identity,
    netns: OwnedFd,
    cgroup_procs: Option<OwnedFd>,
    mounts: Vec<Mount>,
    inherited: Vec<RawFd>,
}

impl Confinement {
    pub(crate) fn new(identity: Identity, netns: &Path, cgroup: Option<&Path>) -> Result<Self, VmmError> {
        let netns = open(netns, libc::O_RDONLY).map_err(|error| VmmError::BadPath {
            what: "the network namespace",
            path: netns.to_path_buf(),
            reason: error.to_string(),
        })?;
        let procs = cgroup.map(|path| path.join("cgroup.procs"));
        let cgroup_procs = procs
            .map(|path| open(&path, libc::O_WRONLY).map_err(|source| VmmError::io("open", &path, source)))
            .transpose()?;
        Ok(Self { identity, netns, cgroup_procs, mounts: Vec::new(), inherited: Vec::new() })
    }

    /// Shows the directory `source` under `name` in the view, and says at which path.
    pub(crate) fn show(&mut self, source: &Path, name: &str, access: Access) -> Result<PathBuf, VmmError> {
        let target = Path::new(VIEW).join(name);
        open_way(&target).map_err(|error| VmmError::io("make", &target, error))?;
        self.mount(source, &target, access)?;
        Ok(target)
    }

    /// Shows the directory of the file `path` under `name`, and says at which path the file is then.
    pub(crate) fn show_file(&mut self, path: &Path, name: &str, access: Access) -> Result<PathBuf, VmmError> {
        let bad = || VmmError::BadPath {
            what: "a file",
            path: path.to_path_buf(),
            reason: "it has no name".into(),
        };
        let (dir, file) = (path.parent().ok_or_else(bad)?, path.file_name().ok_or_else(bad)?);
        Ok(self.show(dir, name, access)?.join(file))
    }

    /// Puts a device node of its own in the place of one of the host's.
    pub(crate) fn replace_device(&mut self, node: &Path, target: &Path) -> Result<(), VmmError> {
        self.mount(node, target, Access::Devices)
    }

    fn mount(&mut self, source: &Path, target: &Path, access: Access) -> Result<(), VmmError> {
        let string = |path: &Path| {
            CString::new(path.as_os_str().as_bytes()).map_err(|error| VmmError::io("mount", path, error))
        };
        self.mounts.push(Mount { source: string(source)?, target: string(target)?, access });
        Ok(())
    }

    /// Lets the child keep a descriptor, under its number. The caller keeps it open until the child is started.
    pub(crate) fn inherit(&mut self, fd: &impl AsRawFd) {
        self.inherited.push(fd.as_raw_fd());
    }

    /// Shuts the calling process in. For the child of a fork only; makes system calls and nothing else.
    pub(crate) fn enter(&self) -> io::Result<()> {
        step(c"start a session", own_session())?;
        step(c"join the cgroup", self.join_cgroup())?;
        step(c"enter the network namespace", enter_netns(&self.netns))?;
        step(c"make a mount namespace", own_mounts())?;
        for mount in &self.mounts {
            step(&mount.source, mount.apply())?;
        }
        step(c"set resource limits", limit())?;
        step(c"close descriptors", self.close_others())?;
        step(c"become an unprivileged user", self.identity.assume())
    }

    fn join_cgroup(&self) -> io::Result<()> {
        let Some(procs) = &self.cgroup_procs else { return Ok(()) };
        // SAFETY: the buffer is one byte long and lives throughout the program; the descriptor is open.
        check(unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) } != -1)
    }

    /// Marks everything above standard error close-on-exec, not closed: the standard library reports a failed `exec`
    /// through a descriptor of its own.
    fn close_others(&self) -> io::Result<()> {
        // SAFETY: no pointer is passed; the flag only marks descriptors.
        let marked = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3 as libc::c_uint,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        check(marked == 0)?;
        for fd in &self.inherited {
            // SAFETY: no pointer is passed.
            check(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } == 0)?;
        }
        Ok(())
    }
}

impl Mount {
    fn apply(&self) -> io::Result<()> {
        mount(Some(&self.source), &self.target, libc::MS_BIND)?;
        let access = match self.access {
            Access::Read => libc::MS_NODEV | libc::MS_RDONLY,
            Access::Write => libc::MS_NODEV,
            // What a node's device takes is not a write to the file system that the node is on.
            Access::Devices => libc::MS_RDONLY,
        };
        let safe = libc::MS_NOSUID | libc::MS_NOEXEC;
        mount(None, &self.target, libc::MS_REMOUNT | libc::MS_BIND | safe | access)
    }
}

impl Identity {
    /// The raw system calls: the C library's wrappers would take locks in order to change all threads.
    fn assume(self) -> io::Result<()> {
        let groups = [self.extra_group.unwrap_or_default()];
        let count = usize::from(self.extra_group.is_some());
        // SAFETY: `groups` has room for `count` entries and outlives the call.
        check(unsafe { libc::syscall(libc::SYS_setgroups, count, groups.as_ptr()) } == 0)?;
        // SAFETY: no pointer is passed.
        check(unsafe { libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid) } == 0)?;
        // SAFETY: no pointer is passed.
        check(unsafe { libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid) } == 0)?;
        // SAFETY: no pointer is passed.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0)
    }
}

/// Makes the directory `target` such that every user can walk to it, whatever the umask.
fn open_way(target: &Path) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    for dir in target.ancestors().take_while(|dir| *dir != Path::new("/run")) {
        let mode = std::fs::metadata(dir)?.permissions().mode();
        if mode & 0o111 != 0o111 {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode | 0o111))?;
        }
    }
    Ok(())
}

fn open(path: &Path, access: libc::c_int) -> io::Result<OwnedFd> {
    let (read, write) = (access != libc::O_WRONLY, access == libc::O_WRONLY);
    let file =
        std::fs::OpenOptions::new().read(read).write(write).custom_flags(libc::O_CLOEXEC).open(path)?;
    Ok(file.into())
}

fn check(fine: bool) -> io::Result<()> {
    // Reads `errno`; allocates nothing.
    if fine { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Passes a result through; a failed one is named on standard error first.
fn step(name: &CStr, result: io::Result<()>) -> io::Result<()> {
    if result.is_err() {
        for part in [c"launcher: cannot ".to_bytes(), name.to_bytes(), b"\n"] {
            // SAFETY: the buffer is `part`, of that length; standard error was set up before this code runs. What
            // cannot be written there can be told nowhere.
            unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
        }
    }
    result
}

fn own_session() -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::setsid() } != -1)
}

fn enter_netns(netns: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open; a child of a fork has one thread, so the whole process moves.
    check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } == 0)
}

fn own_mounts() -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0)?;
    mount(None, c"/", libc::MS_REC | libc::MS_PRIVATE)
}

fn mount(source: Option<&CStr>, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let source = source.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: both strings end with a nul and outlive the call; the kernel ignores the null arguments for these flags.
    check(unsafe { libc::mount(source, target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) } == 0)
}

fn limit() -> io::Result<()> {
    for (resource, value) in [(libc::RLIMIT_NOFILE, MAX_FILES), (libc::RLIMIT_CORE, 0)] {
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: `limit` outlives the call, which only reads it.
        check(unsafe { libc::setrlimit(resource, &raw const limit) } == 0)?;
    }
    Ok(())
}
