//! Two drivers on one host, and what only Firecracker has. Needs KVM, device-mapper and Firecracker.

#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]
#![expect(dead_code, reason = "the tests of one file do not need all of the host")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Host, is_alive, retire, shell, spec};
use wrenn_agent::capsule::Capsule;
use wrenn_agent::config::AgentConfig;
use wrenn_agent::drivers::DriverChoice;
use wrenn_agent::manager::Manager;
use wrenn_agent::record::{CapsuleSpec, Phase, Record};
use wrenn_agent::recovery::{self, Recovered};
use wrenn_image::Image;
use wrenn_vmm::firecracker::Restore;

async fn agent(config: AgentConfig) -> Manager {
    Manager::new(Arc::new(wrenn_agent::open(config).await.unwrap()))
}

fn firecracker(host: &Host) -> AgentConfig {
    AgentConfig { driver: DriverChoice::Firecracker, ..host.config() }
}

fn record(host: &Host, capsule: &Capsule) -> Record {
    Record::read(&host.config().capsules_dir().join(capsule.id().to_string())).unwrap()
}

async fn boot(manager: &Manager) -> Capsule {
    let capsule = manager.create(spec(0));
    capsule.booted().await.unwrap();
    capsule
}

fn template() -> PathBuf {
    Path::new("00000000-0000-0000-0000-000000000001").join("made")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs KVM and Firecracker: run in the lab"]
async fn each_capsule_keeps_its_driver_on_a_host_that_has_both() {
    let host = Host::new();
    let first = agent(firecracker(&host)).await;
    let older = boot(&first).await;
    shell(&older, "echo older >/dev/shm/word").await;
    first.make_template(&older, &template(), "made").await.unwrap();
    older.pause().await.unwrap();
    retire(first).await;

    let second = agent(AgentConfig { driver: DriverChoice::Qemu, ..host.config() }).await;
    let recovered = recovery::recover(&second).await.unwrap();
    assert_eq!(recovered, Recovered { adopted: 0, paused: 1, removed: 0 });
    let newer = boot(&second).await;
    shell(&newer, "echo newer >/dev/shm/word").await;
    let older = second.get(older.id()).unwrap();
    older.resume().await.unwrap();
    let copy = second.create(CapsuleSpec { template_path: template(), ..spec(0) });
    copy.booted().await.unwrap();
    let seen = [(&older, "firecracker", "older"), (&newer, "qemu", "newer"), (&copy, "firecracker", "older")];
    for (capsule, driver, word) in seen {
        assert_eq!(record(&host, capsule).driver, driver);
        assert!(capsule.state().vmm.starts_with(&format!("{driver} ")), "{}", capsule.state().vmm);
        assert_eq!(shell(capsule, "cat /dev/shm/word").await, word);
        capsule.pause().await.unwrap();
        capsule.resume().await.unwrap();
        assert_eq!(shell(capsule, "cat /dev/shm/word").await, word);
    }
    for capsule in second.all() {
        capsule.destroy().await;
    }
    host.check_devices(&[]).await;
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs KVM and Firecracker: run in the lab"]
async fn an_agent_without_the_driver_refuses_by_name_and_touches_nothing_that_runs() {
    let host = Host::new();
    let first = agent(firecracker(&host)).await;
    let (running, paused) = (boot(&first).await, boot(&first).await);
    shell(&running, "echo runs >/dev/shm/word").await;
    shell(&paused, "echo waits >/dev/shm/word").await;
    first.make_template(&running, &template(), "made").await.unwrap();
    paused.pause().await.unwrap();
    let pid = record(&host, &running).machine.unwrap().pid;
    retire(first).await;

    let lacking = Some(PathBuf::from("/nonexistent/firecracker"));
    let second =
        agent(AgentConfig { driver: DriverChoice::Auto, firecracker: lacking, ..host.config() }).await;
    let recovered = recovery::recover(&second).await.unwrap();
    assert_eq!(recovered, Recovered { adopted: 0, paused: 1, removed: 0 });
    assert!(is_alive(pid) && second.get(running.id()).is_none());
    let refused = second.get(paused.id()).unwrap().resume().await.unwrap_err().chain();
    assert!(refused.contains("`firecracker`") && refused.contains("not installed"), "{refused}");
    let copy = second.create(CapsuleSpec { template_path: template(), ..spec(0) });
    let refused = copy.booted().await.unwrap_err().chain();
    assert!(refused.contains("`firecracker`"), "{refused}");
    assert!(boot(&second).await.state().vmm.starts_with("qemu "));
    retire(second).await;

    let third = agent(firecracker(&host)).await;
    let recovered = recovery::recover(&third).await.unwrap();
    assert_eq!(recovered, Recovered { adopted: 2, paused: 1, removed: 0 });
    let (running, paused) = (third.get(running.id()).unwrap(), third.get(paused.id()).unwrap());
    paused.resume().await.unwrap();
    assert_eq!(shell(&running, "cat /dev/shm/word").await, "runs");
    assert_eq!(shell(&paused, "cat /dev/shm/word").await, "waits");
    for capsule in third.all() {
        capsule.destroy().await;
    }
    host.check_devices(&[]).await;
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs KVM and Firecracker: run in the lab"]
async fn a_mapped_memory_comes_back_as_often_as_a_paged_one() {
    let host = Host::new();
    let manager = agent(AgentConfig { restore: Restore::Mapped, ..firecracker(&host) }).await;
    let capsule = boot(&manager).await;
    shell(&capsule, "head -c 8M /dev/urandom >/dev/shm/blob").await;
    let sum = shell(&capsule, "md5sum </dev/shm/blob").await;
    for round in 0..4 {
        shell(&capsule, &format!("echo {round} >>/dev/shm/rounds")).await;
        capsule.pause().await.unwrap();
        capsule.resume().await.unwrap();
        assert_eq!(shell(&capsule, "md5sum </dev/shm/blob").await, sum);
    }
    assert_eq!(shell(&capsule, "cat /dev/shm/rounds").await, "0\n1\n2\n3");
    capsule.destroy().await;
    host.check_devices(&[]).await;
    host.clean_up().await;
}

/// The pager of a running capsule, by the record that its driver keeps.
fn pager_of(host: &Host, capsule: &Capsule) -> Option<u32> {
    let dir = host.config().capsules_dir().join(capsule.id().to_string());
    let text = std::fs::read(dir.join("run/pager.json")).ok()?;
    let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
    Some(u32::try_from(record["pid"].as_u64().unwrap()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs KVM and Firecracker: run in the lab"]
async fn a_memory_in_one_file_is_mapped_and_one_in_layers_is_paged() {
    let host = Host::new();
    let manager = agent(AgentConfig { restore: Restore::Auto, ..firecracker(&host) }).await;
    let capsule = boot(&manager).await;
    let check = |capsule: &Capsule, is_paged: bool| {
        assert_eq!(pager_of(&host, capsule).is_some_and(is_alive), is_paged);
    };
    for is_paged in [false, true, true] {
        shell(&capsule, "echo round >>/dev/shm/rounds").await;
        capsule.pause().await.unwrap();
        capsule.resume().await.unwrap();
        check(&capsule, is_paged);
    }
    // So much is new that a paused one gets a base of its own.
    let sum = shell(&capsule, "head -c 96M /dev/urandom >/dev/shm/blob && md5sum </dev/shm/blob").await;
    capsule.pause().await.unwrap();
    let dir = host.config().capsules_dir().join(capsule.id().to_string());
    let rebased = async {
        // The file that a record names may be replaced before it is opened.
        let layers = || Some(Image::open(&dir.join(record(&host, &capsule).saved?.memory)).ok()?.layers());
        while layers() != Some(0) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), rebased).await.unwrap();
    capsule.resume().await.unwrap();
    check(&capsule, false);
    retire(manager).await;
    let manager = agent(firecracker(&host)).await;
    recovery::recover(&manager).await.unwrap();
    let capsule = manager.get(capsule.id()).unwrap();
    assert_eq!(shell(&capsule, "md5sum </dev/shm/blob").await, sum);
    assert_eq!(shell(&capsule, "cat /dev/shm/rounds").await, "round\nround\nround");
    capsule.destroy().await;
    host.clean_up().await;
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs KVM and Firecracker: run in the lab"]
async fn a_pager_outlives_the_agent_and_ends_with_its_machine_or_takes_it_along() {
    let host = Host::new();
    let paged = || AgentConfig { restore: Restore::Paged, ..firecracker(&host) };
    let first = agent(paged()).await;
    let (one, other) = (boot(&first).await, boot(&first).await);
    for capsule in [&one, &other] {
        shell(capsule, "head -c 4M /dev/urandom >/dev/shm/blob; md5sum </dev/shm/blob >/dev/shm/sum").await;
        capsule.pause().await.unwrap();
        capsule.resume().await.unwrap();
    }
    let pagers = [pager_of(&host, &one).unwrap(), pager_of(&host, &other).unwrap()];
    retire(first).await;
    let second = agent(paged()).await;
    recovery::recover(&second).await.unwrap();
    let (one, other) = (second.get(one.id()).unwrap(), second.get(other.id()).unwrap());
    let check = "md5sum </dev/shm/blob | cmp - /dev/shm/sum && echo same";
    assert_eq!(shell(&one, check).await, "same");
    assert!(pagers.iter().all(|pid| is_alive(*pid)));

    kill(pagers[0]);
    one.stopped().await;
    assert!(one.state().reason.contains("nobody served its memory"), "{}", one.state().reason);
    assert_eq!(shell(&other, check).await, "same");
    other.destroy().await;
    while is_alive(pagers[1]) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    host.check_devices(&[]).await;
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs KVM and Firecracker: run in the lab"]
async fn a_guest_can_ask_who_it_is_and_is_told_anew_after_a_restore() {
    let host = Host::new();
    let manager = agent(firecracker(&host)).await;
    let source = boot(&manager).await;
    let ask = "t=$(curl -sf -X PUT -H 'X-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token) && \
               curl -sf -H \"X-metadata-token: $t\" -H 'Accept: application/json' http://169.254.169.254/";
    let check = async |capsule: &Capsule| {
        let told: serde_json::Value = serde_json::from_str(&shell(capsule, ask).await).unwrap();
        assert_eq!(told["capsule_id"], capsule.id().to_string());
        assert_eq!(told["template_id"], "minimal");
    };
    check(&source).await;
    let copy = manager.fork(&source, &[wrenn_core::CapsuleId::random()]).await.unwrap().remove(0);
    check(&copy).await;
    copy.pause().await.unwrap();
    copy.resume().await.unwrap();
    check(&copy).await;
    check(&source).await;
    for capsule in [source, copy] {
        capsule.destroy().await;
    }
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs KVM and Firecracker: run in the lab"]
async fn a_guest_sends_no_faster_than_it_may_and_a_restored_one_neither() {
    const RATE: u64 = 512 << 10;
    let host = Host::new();
    let unlimited = agent(firecracker(&host)).await;
    let capsule = boot(&unlimited).await;
    capsule.pause().await.unwrap();
    retire(unlimited).await;
    let limited = agent(AgentConfig { egress_bytes_per_second: Some(RATE), ..firecracker(&host) }).await;
    recovery::recover(&limited).await.unwrap();
    let restored = limited.get(capsule.id()).unwrap();
    restored.resume().await.unwrap();
    for capsule in [restored, boot(&limited).await] {
        let begun = Instant::now();
        let sent = shell(&capsule, "head -c 3000000 /dev/zero | tr '\\0' a").await;
        assert_eq!(sent.len(), 3_000_000);
        // The bucket is full at the beginning. The time is what the limit demands, not what a machine may take.
        let least = Duration::from_secs((3_000_000 - RATE) / RATE);
        assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
        capsule.destroy().await;
    }
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs KVM and Firecracker: run in the lab"]
async fn a_firecracker_is_shut_in() {
    let host = Host::new();
    let manager = agent(firecracker(&host)).await;
    let capsule = boot(&manager).await;
    let record = record(&host, &capsule);
    let machine = record.machine.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.pid)).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let uid = (1_900_000_000 + u32::from(record.slot.unwrap().get())).to_string();
    assert_eq!(field("Uid:"), [&*uid; 4].join(" "));
    assert_eq!(field("Gid:"), [&*uid; 4].join(" "));
    assert_eq!(
        (&*field("Groups:"), &*field("CapEff:"), &*field("NoNewPrivs:")),
        ("", "0000000000000000", "1")
    );
    assert_eq!(field("Seccomp:"), "2");
    for kind in ["net", "mnt"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(of(&machine.pid.to_string()), of("self"), "{kind}");
    }
    let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", machine.pid)).unwrap();
    assert!(cgroup.contains(&machine.id), "{cgroup}");
    assert_eq!(capsule.state().phase, Phase::Running);
    capsule.destroy().await;
    host.clean_up().await;
}
