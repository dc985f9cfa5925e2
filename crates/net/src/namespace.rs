//! Network namespaces by name, and threads that live in them.
//!
//! `setns` changes the calling thread only, so it must never run on a thread of tokio: the thread would serve
//! other tasks afterwards, in the wrong namespace. Each visit therefore gets an OS thread of its own, which
//! opens what is wanted (sockets and TAP descriptors stay in the namespace in which they were made), hands the
//! descriptors back and ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::address::NETNS_DIR;

/// `f_type` of a mounted namespace, from `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

type Job = Box<dyn FnOnce() + Send>;

/// A thread inside a namespace that runs what it is sent; it ends when this handle is dropped.
#[derive(Debug)]
pub(crate) struct Resident {
    jobs: mpsc::Sender<Job>,
}

impl Resident {
    /// Makes a namespace, mounts it at `path` and stays in it. Fails with `AlreadyExists` where a namespace has
    /// that name, and leaves nothing behind when it fails.
    pub(crate) async fn create(path: PathBuf) -> io::Result<Self> {
        Self::spawn(move || create_mounted(&path)).await
    }

    /// Goes into the namespace mounted at `path`.
    pub(crate) async fn enter(path: PathBuf) -> io::Result<Self> {
        Self::spawn(move || enter(&path)).await
    }

    async fn spawn(arrive: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (arrived, arrival) = oneshot::channel();
        let runtime = Handle::current();
        thread::Builder::new().name("wrenn-netns".to_owned()).spawn(move || {
            // Sockets made here are registered with the caller's reactor.
            let _runtime = runtime.enter();
            let outcome = arrive();
            let inside = outcome.is_ok();
            if arrived.send(outcome).is_ok() && inside {
                queue.iter().for_each(|job| job());
            }
        })?;
        arrival.await.map_err(|_| thread_lost())??;
        Ok(Self { jobs })
    }

    /// Runs `job` inside the namespace and returns what it made.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let job = Box::new(move || {
            // The caller may have been cancelled; what the job made is then dropped here.
            drop(done.send(job()));
        });
        self.jobs.send(job).map_err(|_| thread_lost())?;
        result.await.map_err(|_| thread_lost())?
    }
}

/// Runs `job` inside the namespace mounted at `path` and waits for it, blocking for well under a millisecond.
pub(crate) fn run_inside<T: Send>(path: &Path, job: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let visit = move || enter(path).and_then(|()| job());
        let visitor = thread::Builder::new().name("wrenn-netns".to_owned()).spawn_scoped(scope, visit)?;
        visitor.join().map_err(|_| thread_lost())?
    })
}

fn thread_lost() -> io::Error {
    io::Error::other("the thread in the network namespace ended early")
}

fn enter(path: &Path) -> io::Result<()> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Makes the directory of named namespaces a shared mount, as iproute2 wants it. If that were left to a later
/// `ip netns add`, it would mount the directory over itself, and names made before could not be removed.
pub(crate) fn prepare_dir() -> io::Result<()> {
    std::fs::create_dir_all(NETNS_DIR)?;
    let nothing = None::<&str>;
    let share = || mount(nothing, NETNS_DIR, nothing, MsFlags::MS_SHARED | MsFlags::MS_REC, nothing);
    if share() == Err(nix::Error::EINVAL) {
        // Not a mount point yet.
        mount(Some(NETNS_DIR), NETNS_DIR, nothing, MsFlags::MS_BIND | MsFlags::MS_REC, nothing)?;
        share()?;
    }
    Ok(())
}

fn create_mounted(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
    unshare_and_mount(path).inspect_err(|_| {
        if let Err(error) = remove(path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove a half-made network namespace");
        }
    })
}

fn unshare_and_mount(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    // Not /proc/self: that is the process's first thread, which stays in the host's namespace.
    let own = "/proc/thread-self/ns/net";
    mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Unmounts and removes the name of a namespace; what is gone already is no error. The namespace itself ends
/// when the last descriptor from it is closed.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a namespace is mounted at `path`.
pub(crate) fn is_mounted(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| u64::try_from(stat.f_type).is_ok_and(|kind| kind == NSFS_MAGIC))
}

/// The kernel settings of a slot's namespace; to be run inside it, before it has links, because links inherit
/// the defaults when they are made.
pub(crate) fn configure_sysctls() -> io::Result<()> {
    let required = [
        ("ipv4/ip_forward", "1"),
        // Strict: a packet whose answer would not leave where it came from is forged.
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
    ];
    for (name, value) in required {
        std::fs::write(Path::new("/proc/sys/net").join(name), value)?;
    }
    disable_ipv6("all")?;
    disable_ipv6("default")
}

/// Turns IPv6 off on one link, or on `all` or `default`; a kernel without IPv6 has nothing to turn off.
pub(crate) fn disable_ipv6(link: &str) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
