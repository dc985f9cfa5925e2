//! A machine of its own for each test: private network and mount namespaces, with an empty `/run`.
//!
//! What the crate does to "the host" happens there, so tests neither see each other nor the real machine, and
//! the kernel removes everything when the last thread has ended, however the test went.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Where claims are on the test's machine.
pub(crate) const STATE_DIR: &str = "/run/wrenn/slots";

/// Runs a test on a machine of its own.
pub(crate) fn on_own_machine<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    std::thread::scope(|scope| {
        let run = || {
            // Threads of the runtime are started from this one and live where it lives.
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("tests run as root");
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .expect("mounts become private");
            empty_run();
            shell("ip link set lo up");
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            runtime.worker_threads(2).enable_all().build().expect("runtime").block_on(test());
        };
        if let Err(panic) = scope.spawn(run).join() {
            resume_unwind(panic);
        }
    });
}

/// Covers `/run`, with the real machine's mounts in it taken away first: one of those would disappear here too, in the
/// middle of a test, when what it is mounted on is removed there.
fn empty_run() {
    for path in mounts_in_run().iter().rev() {
        match umount2(path.as_str(), MntFlags::MNT_DETACH) {
            // Gone in just that way by now.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => panic!("{path} stays mounted: {error}"),
        }
    }
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("empty /run");
}

fn mounts_in_run() -> Vec<String> {
    let mounts = shell("cat /proc/self/mounts");
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    paths.filter(|path| *path == "/run" || path.starts_with("/run/")).map(str::to_owned).collect()
}

/// Runs commands, which must succeed, and returns what they print.
pub(crate) fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().expect("sh runs");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Everything on the machine that a slot adds to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Census {
    namespaces: BTreeSet<String>,
    links: BTreeSet<String>,
    routes: BTreeSet<String>,
    claims: BTreeSet<String>,
    mounts: Vec<String>,
}

/// Counts what is on the machine now.
pub(crate) fn census() -> Census {
    let lines = |script: &str| shell(script).lines().map(|line| line.trim().to_owned()).collect();
    Census {
        namespaces: lines("ls /run/netns 2>/dev/null || true"),
        links: lines("ip -o link | cut -d: -f2 | cut -d@ -f1"),
        routes: lines("ip -4 route show table all"),
        claims: lines(&format!("ls {STATE_DIR} 2>/dev/null || true")),
        mounts: mounts_in_run(),
    }
}

/// Whether `addr` has a route of its own, as guests have.
pub(crate) fn has_route(addr: Ipv4Addr) -> bool {
    shell("ip -4 route").lines().any(|line| line.starts_with(&format!("{addr} ")))
}
