//! The kernel's file systems, before and after the root switch.

use std::ffi::CStr;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::{InitError, Step};

/// A file system to mount.
struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: Option<&'static CStr>,
}

const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

const EARLY: [Mount; 3] = [
    Mount { kind: "proc", target: "/proc", flags: QUIET, options: None },
    Mount { kind: "sysfs", target: "/sys", flags: QUIET, options: None },
    Mount { kind: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, options: Some(c"mode=0755") },
];

const LATE: [Mount; 4] = [
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: Some(c"mode=0620,ptmxmode=0666,gid=5"),
    },
    Mount {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: Some(c"mode=1777"),
    },
    Mount {
        kind: "tmpfs",
        target: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: Some(c"mode=0755"),
    },
    Mount { kind: "cgroup2", target: "/sys/fs/cgroup", flags: QUIET, options: None },
];

/// Links that programs expect in `/dev` and that devtmpfs does not make.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what the initramfs needs, and opens the console if the kernel could not.
pub(super) fn early() -> Result<(), InitError> {
    for mount in &EARLY {
        mount.mount()?;
    }
    open_console();
    Ok(())
}

/// Mounts the rest on the new root and makes the directories programs count on.
pub(super) fn late() -> Result<(), InitError> {
    for mount in &LATE {
        mount.mount()?;
    }
    for (target, link) in LINKS {
        // The kernel may have made it, which is as good.
        let _ = rustix::fs::symlink(target, link);
    }
    let _ = rustix::fs::unlink("/dev/ptmx");
    let _ = rustix::fs::symlink("pts/ptmx", "/dev/ptmx");
    for (directory, mode) in [("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/root", 0o700), ("/run/lock", 0o1777)]
    {
        make_directory(directory, mode);
    }
    Ok(())
}

impl Mount {
    fn mount(&self) -> Result<(), InitError> {
        make_directory(self.target, 0o755);
        match rustix::mount::mount(self.kind, self.target, self.kind, self.flags, self.options) {
            // A kernel without control groups still makes a machine.
            Err(Errno::NODEV) if self.kind == "cgroup2" => Ok(()),
            // The kernel may have mounted devtmpfs by itself.
            Err(Errno::BUSY) => Ok(()),
            result => result.step(format!("mount {} on {}", self.kind, self.target)),
        }
    }
}

/// Makes a directory of that very mode, and leaves an existing one alone. What cannot be made shows when it is used.
pub(super) fn make_directory(path: &str, mode: u32) {
    if !Path::new(path).exists() {
        let made = std::fs::create_dir_all(path);
        if made.is_ok() {
            let _ = rustix::fs::chmod(path, Mode::from_raw_mode(mode));
        }
    }
}

/// Gives the program its three descriptors: an initramfs without `/dev/console` starts it without any, and the first
/// files it opened would end up as somebody's standard output.
fn open_console() {
    loop {
        let console = rustix::fs::openat(CWD, "/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
            .or_else(|_| rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR, Mode::empty()));
        match console {
            // Kept open on purpose: these are descriptors 0 to 2 of the program.
            Ok(fd) if std::os::fd::AsRawFd::as_raw_fd(&fd) <= 2 => std::mem::forget(fd),
            _ => return,
        }
    }
}
