//! How a pager is started, what it may do, and what it outlives.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal};
use wrenn_vmm::pager::{Job, Pager, PagerProgram, PagerRecord};
use wrenn_vmm::{ExitReason, VmmError, cgroup};

use crate::bench::{Bench, LONG, Running, eventually, program, refused};
use crate::vmm::{Do, Vmm};

fn myself() -> OwnedFd {
    rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap()
}

/// The words behind a name in `/proc/PID/status`.
fn status<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().split_whitespace().collect()
}

#[tokio::test]
async fn a_pager_has_no_privileges_and_no_descriptor_but_its_own() {
    let bench = Bench::new(10);
    let vmm = myself();
    // One that is left open over an exec, as another thread of an agent may have at any moment.
    let foreign = std::fs::File::open("/dev/urandom").unwrap();
    rustix::io::fcntl_setfd(&foreign, rustix::io::FdFlags::empty()).unwrap();
    let pager = bench.pager(&vmm, &[]).await;
    let (uid, gid) = (["1100000"; 4], ["1100001"; 4]);
    for task in std::fs::read_dir(format!("/proc/{}/task", pager.pid())).unwrap() {
        let text = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert_eq!((status(&text, "Uid"), status(&text, "Gid")), (uid.to_vec(), gid.to_vec()));
        assert_eq!(status(&text, "Groups"), [""; 0]);
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(&text, set), ["0000000000000000"], "{set}");
        }
        assert_eq!(status(&text, "NoNewPrivs"), ["1"]);
    }
    let limits = pager.proc("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let link = |entry: std::io::Result<std::fs::DirEntry>| {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap();
        let text = target.to_str().unwrap();
        let text = if text.starts_with("socket:") { "socket" } else { text };
        text.replace(bench.dir.path().to_str().unwrap(), "")
    };
    let open: BTreeSet<String> =
        std::fs::read_dir(format!("/proc/{}/fd", pager.pid())).unwrap().map(link).collect();
    let expected = ["/dev/null", "/stderr", "/base", "/layer-0", "/layer-1", "socket"];
    let rest: Vec<_> = open.iter().filter(|name| !expected.contains(&name.as_str())).collect();
    assert!(open.len() == 7 && rest.iter().all(|name| name.contains("pidfd")), "{open:?}");
}

/// A cgroup that goes with the test.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel takes a moment to see that the last process is gone.
        eventually("the cgroup is empty", || std::fs::remove_dir(&self.0).is_ok());
    }
}

#[tokio::test]
async fn a_pager_joins_the_cgroup_that_it_is_given() {
    let Some(root) = cgroup::root() else { return };
    let name = format!("wrenn-test-pager-{}", std::process::id());
    let cgroup = Cgroup(root.join(&name));
    std::fs::create_dir(&cgroup.0).unwrap();
    let (bench, vmm) = (Bench::new(10), myself());
    let image = bench.path("image");
    let job = Job { cgroup: Some(&cgroup.0), ..bench.job(&image, &vmm) };
    let pager = Running::new(Pager::start(&program(), job).await.unwrap());
    assert!(pager.proc("cgroup").lines().any(|line| line.ends_with(&format!("/{name}"))));
    drop(pager);
    drop(cgroup);
    assert!(!root.join(&name).exists());
}

#[tokio::test]
async fn a_pager_that_cannot_start_says_why_and_leaves_nothing_running() {
    let (bench, vmm) = (Bench::new(10), myself());
    // Not at once: the child of another test's fork has everything open until its exec.
    let gone = || eventually("nobody listens", || UnixStream::connect(bench.path("socket")).is_err());
    let error = refused(&program(), bench.job(Path::new("/nowhere/image"), &vmm)).await;
    assert!(
        matches!(&error, VmmError::Pager { said, exit } if said.contains("/nowhere/image") && exit.contains("code")),
        "{error}"
    );
    gone();
    assert!(bench.said().contains("/nowhere/image"));
    let image = bench.path("image");
    for (uid, gid) in [(0, 1), (1, 0)] {
        let error = refused(&program(), Job { uid, gid, ..bench.job(&image, &vmm) }).await;
        assert!(matches!(error, VmmError::Privileged { .. }), "{error}");
        gone();
    }
    let missing = PagerProgram { program: PathBuf::from("/nowhere/pager"), ..program() };
    let error = refused(&missing, bench.job(&image, &vmm)).await;
    assert!(matches!(&error, VmmError::Io { path, .. } if path == &missing.program), "{error}");
    gone();
    let other = PagerProgram { program: PathBuf::from("/bin/true"), args: Vec::new(), env: Vec::new() };
    let error = refused(&other, bench.job(&image, &vmm)).await;
    assert!(matches!(&error, VmmError::Pager { said, .. } if said.is_empty()), "{error}");
    gone();
    bench.damage("image", 20);
    let error = refused(&program(), bench.job(&image, &vmm)).await;
    assert!(matches!(&error, VmmError::Pager { said, .. } if said.contains("damaged")), "{error}");
    gone();
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_any_more_leaves_nothing_running() {
    let (bench, vmm) = (Bench::new(10), myself());
    let image = bench.path("image");
    let silent =
        PagerProgram { program: PathBuf::from("/bin/sleep"), args: vec!["600".into()], env: Vec::new() };
    tokio::select! {
        biased;
        _ = Pager::start(&silent, bench.job(&image, &vmm)) => panic!("it says nothing"),
        () = std::future::ready(()) => {}
    }
    // The process was the last to have the socket open.
    eventually("the process is gone", || UnixStream::connect(bench.path("socket")).is_err());
}

/// Starts the pager of a VMM, as an agent does that dies afterwards.
pub(crate) fn be_agent() {
    let Ok(order) = std::env::var("WRENN_TEST_AGENT") else { return };
    let (dir, vmm): (PathBuf, i32) = serde_json::from_str(&order).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
        let vmm = rustix::process::pidfd_open(Pid::from_raw(vmm).unwrap(), PidfdFlags::empty()).unwrap();
        let job = Job {
            image: &dir.join("image"),
            socket: std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap(),
            vmm: std::os::fd::AsFd::as_fd(&vmm),
            uid: 1_100_000,
            gid: 1_100_000,
            cgroup: None,
            stderr: std::fs::File::create(dir.join("stderr")).unwrap(),
            prefetch: Vec::new(),
        };
        let pager = Pager::start(&program(), job).await.unwrap();
        std::fs::write(dir.join("record.part"), serde_json::to_vec(&pager.record()).unwrap()).unwrap();
        std::fs::rename(dir.join("record.part"), dir.join("record")).unwrap();
        std::future::pending::<()>().await;
    });
}

#[tokio::test]
async fn a_pager_outlives_its_agent_and_is_adopted_by_the_next() {
    let bench = Bench::new(500);
    let mut vmm = Vmm::start(&bench.path("socket"), &[300, 200]);
    let order = serde_json::to_string(&(bench.dir.path(), vmm.pid())).unwrap();
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "be_agent", "--ignored", "--nocapture"])
        .env("WRENN_TEST_AGENT", order)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // The agent dies with this thread; its pager with the VMM.
    eventually("the agent has a pager", || {
        bench.path("record").exists() || agent.try_wait().unwrap().is_some()
    });
    agent.kill().unwrap();
    agent.wait().unwrap();
    let record: PagerRecord = serde_json::from_slice(&std::fs::read(bench.path("record")).unwrap()).unwrap();
    let pager = Running::new(Pager::adopt(&record).unwrap().expect("it runs"));
    assert_eq!(pager.record(), record);
    let pid = Pid::from_raw(i32::try_from(record.pid).unwrap()).unwrap();
    assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid, "a session of its own");
    vmm.run(Do::Connect);
    vmm.run(Do::Walk(4));
    assert!(vmm.run(Do::Read(0, 500)) == bench.model);
    vmm.kill();
    assert_eq!(pager.end().await, ExitReason::Unobserved, "its parent is another process");
    assert!(Pager::adopt(&record).unwrap().is_none());
}

#[tokio::test]
async fn a_record_of_another_process_or_boot_finds_no_pager() {
    let bench = Bench::new(10);
    let pager = bench.pager(&myself(), &[]).await;
    let record = pager.record();
    let other = PagerRecord { start_time: record.start_time + 1, ..record.clone() };
    assert!(Pager::adopt(&other).unwrap().is_none());
    let other = PagerRecord { boot_id: "another".into(), ..record.clone() };
    assert!(Pager::adopt(&other).unwrap().is_none());
    assert!(Pager::adopt(&record).unwrap().is_some());
    tokio::time::timeout(LONG, pager.kill()).await.unwrap().unwrap();
    pager.kill().await.unwrap();
    assert_eq!(pager.end().await, ExitReason::Killed);
    assert!(Pager::adopt(&record).unwrap().is_none());
}
