//! Capsules that are paused, resumed, forked and turned into templates, with real VMs and without a control plane.

#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]
#![expect(dead_code, reason = "the tests of one file do not need all of the host")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Host, retire, run, shell, spec};
use wrenn_agent::capsule::Capsule;
use wrenn_agent::manager::Manager;
use wrenn_agent::record::{CapsuleSpec, Phase, Record};
use wrenn_agent::recovery::{self, Recovered};
use wrenn_core::{CapsuleId, Shape};

async fn boot(manager: &Manager) -> Capsule {
    let capsule = manager.create(spec(0));
    capsule.booted().await.unwrap();
    capsule
}

/// The names of the files in a capsule's directory, sorted.
fn files(host: &Host, capsule: &Capsule) -> Vec<String> {
    let dir = host.config().capsules_dir().join(capsule.id().to_string());
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn template_path(name: &str) -> PathBuf {
    Path::new("00000000-0000-0000-0000-000000000001").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_capsule_comes_back_with_its_memory_processes_and_files() {
    let host = Host::new();
    let manager = host.manager().await;
    let capsule = boot(&manager).await;
    shell(
        &capsule,
        "(while :; do echo >>/dev/shm/beats; sleep 0.05; done) >/dev/null 2>&1 & echo $! >/dev/shm/pid",
    )
    .await;
    shell(
        &capsule,
        "dd if=/dev/urandom of=/dev/shm/blob bs=1M count=8 2>/dev/null; cp /dev/shm/blob /root/blob",
    )
    .await;
    let sum = shell(&capsule, "md5sum </dev/shm/blob").await;
    let boot_id = shell(&capsule, "cat /proc/sys/kernel/random/boot_id").await;
    for round in 0..12 {
        shell(&capsule, &format!("echo {round} >>/root/rounds; echo {round} >/dev/shm/round")).await;
        let before: u64 = shell(&capsule, "wc -l </dev/shm/beats").await.parse().unwrap();
        let paused = capsule.pause().await.unwrap();
        assert_eq!(paused.phase, Phase::Paused);
        assert!(capsule.endpoint().is_none() && capsule.gate().lease().is_none());
        assert_eq!(
            capsule.pause().await.unwrap().generation,
            paused.generation,
            "pausing again changes nothing"
        );
        let resumed = capsule.resume().await.unwrap();
        assert_eq!(resumed.phase, Phase::Running);
        assert_eq!(capsule.resume().await.unwrap().generation, resumed.generation);
        assert_eq!(
            shell(&capsule, "cat /dev/shm/round; tail -n1 /root/rounds").await,
            format!("{round}\n{round}")
        );
        let after: u64 = shell(&capsule, "sleep 0.2; wc -l </dev/shm/beats").await.parse().unwrap();
        assert!(after > before, "the background job goes on: {before} {after}");
    }
    assert_eq!(shell(&capsule, "md5sum </dev/shm/blob").await, sum);
    assert_eq!(shell(&capsule, "md5sum </root/blob").await, sum);
    assert_eq!(shell(&capsule, "cat /proc/sys/kernel/random/boot_id").await, boot_id);
    assert_eq!(shell(&capsule, "kill -0 $(cat /dev/shm/pid) && echo alive").await, "alive");
    assert_eq!(shell(&capsule, "wc -l </root/rounds").await, "12");
    let skew = shell(&capsule, "date +%s").await.parse::<i64>().unwrap() - time_now();
    assert!(skew.abs() <= 2, "the clock is {skew} s off");
    capsule.destroy().await;
    host.clean_up().await;
}

fn time_now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_capsule_outlives_its_agent_and_is_destroyed_to_the_last_file() {
    let host = Host::new();
    let first = host.manager().await;
    let capsule = boot(&first).await;
    shell(&capsule, "echo kept >/dev/shm/word").await;
    capsule.pause().await.unwrap();
    retire(first).await;
    let second = host.manager().await;
    let recovered = recovery::recover(&second).await.unwrap();
    assert_eq!(recovered, Recovered { adopted: 0, paused: 1, removed: 0 });
    let capsule = second.get(capsule.id()).unwrap();
    capsule.resume().await.unwrap();
    assert_eq!(shell(&capsule, "cat /dev/shm/word").await, "kept");
    capsule.pause().await.unwrap();
    capsule.destroy().await;
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_share_what_was_and_nothing_of_what_comes() {
    let host = Host::new();
    let manager = host.manager().await;
    let source = boot(&manager).await;
    shell(&source, "echo before >/dev/shm/memory; echo before >/root/disk").await;
    let ids = [CapsuleId::random(), CapsuleId::random(), CapsuleId::random()];
    let clones = manager.fork(&source, &ids).await.unwrap();
    let all: Vec<&Capsule> = clones.iter().chain([&source]).collect();
    let mut random = Vec::new();
    for (index, capsule) in all.iter().enumerate() {
        assert_eq!(shell(capsule, "cat /dev/shm/memory /root/disk").await, "before\nbefore");
        shell(capsule, &format!("echo {index} >/dev/shm/memory; echo {index} >/root/disk; sync")).await;
        random.push(shell(capsule, "head -c 32 /dev/urandom | od -An -tx1").await);
        assert_eq!(
            shell(capsule, "hostname; echo $WRENN_SANDBOX_ID").await,
            format!("{0}\n{0}", capsule.id())
        );
    }
    for (index, capsule) in all.iter().enumerate() {
        assert_eq!(shell(capsule, "cat /dev/shm/memory /root/disk").await, format!("{index}\n{index}"));
    }
    random.sort();
    random.dedup();
    assert_eq!(random.len(), all.len(), "each has random numbers of its own");
    for capsule in all {
        capsule.destroy().await;
    }
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_of_running_and_paused_capsules_outlive_them_and_may_go_before_their_copies() {
    let host = Host::new();
    let manager = host.manager().await;
    let source = boot(&manager).await;
    shell(&source, "echo running >/dev/shm/word").await;
    let made = manager.make_template(&source, &template_path("a"), "a").await.unwrap();
    assert_eq!(made.shape, source.spec().shape);
    assert!(made.size_bytes > 10 << 20, "{made:?}");
    shell(&source, "echo paused >/dev/shm/word").await;
    source.pause().await.unwrap();
    manager.make_template(&source, &template_path("b"), "b").await.unwrap();
    let taken = manager.make_template(&source, &template_path("b"), "b").await.unwrap_err();
    assert!(taken.to_string().contains("exist already"), "{taken}");
    assert_eq!(source.state().phase, Phase::Paused);
    source.resume().await.unwrap();
    assert_eq!(shell(&source, "cat /dev/shm/word").await, "paused");
    source.destroy().await;

    for (template, word) in [("a", "running"), ("b", "paused")] {
        let shape = Shape { disk_mb: 3072, ..made.shape };
        let spec = CapsuleSpec { template_path: template_path(template), shape, ..spec(0) };
        let copy = manager.create(spec);
        copy.booted().await.unwrap();
        assert_eq!(shell(&copy, "cat /dev/shm/word").await, word);
        let env = manager.env().clone();
        let path = template_path(template);
        env.templates.remove(&path, &env.staging).unwrap();
        assert!(
            manager.create(CapsuleSpec { template_path: path, ..common::spec(0) }).booted().await.is_err()
        );
        let grown = "for i in $(seq 100); do s=$(df -m / | awk 'END { print $2 }'); [ $s -gt 2500 ] && break; sleep 0.1; done; echo $s";
        assert!(shell(&copy, grown).await.parse::<u32>().unwrap() > 2500, "the disk grows");
        copy.pause().await.unwrap();
        copy.resume().await.unwrap();
        assert_eq!(shell(&copy, "cat /dev/shm/word").await, word);
        copy.destroy().await;
    }
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_capsule_is_paused_and_keeps_its_clock() {
    let host = Host::new();
    let manager = host.manager().await;
    let capsule = manager.create(spec(3));
    capsule.booted().await.unwrap();
    let mut watch = capsule.watch();
    let paused = watch.wait_for(|state| state.phase == Phase::Paused).await.unwrap().clone();
    assert_eq!(paused.reason, "ttl_expired");
    capsule.resume().await.unwrap();
    let paused = watch.wait_for(|state| state.phase == Phase::Paused).await.unwrap().clone();
    assert_eq!(paused.reason, "ttl_expired");
    capsule.destroy().await;
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_each_file_is_named_and_the_rest_is_unharmed() {
    let host = Host::new();
    let manager = host.manager().await;
    let (capsule, other) = (boot(&manager).await, boot(&manager).await);
    shell(&capsule, "echo 1 >/dev/shm/x").await;
    capsule.pause().await.unwrap();
    capsule.resume().await.unwrap();
    shell(&capsule, "echo 2 >/dev/shm/x").await;
    capsule.pause().await.unwrap();
    let dir = host.config().capsules_dir().join(capsule.id().to_string());
    let names: Vec<String> = files(&host, &capsule)
        .into_iter()
        .filter(|name| ["memory-", "devices-", "disk-"].iter().any(|kind| name.starts_with(kind)))
        .collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        let path = dir.join(&name);
        let aside = dir.join("aside");
        // The base of the disk is shared with the template, whose file must not be touched.
        std::fs::rename(&path, &aside).unwrap();
        for (damage, word) in [("missing", "missing"), ("cut", ""), ("changed", "")] {
            if damage != "missing" {
                std::fs::copy(&aside, &path).unwrap();
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                let bytes = file.metadata().unwrap().len();
                if damage == "cut" {
                    file.set_len(bytes / 2).unwrap();
                } else {
                    std::os::unix::fs::FileExt::write_all_at(&file, &[0xa5; 64], bytes / 2).unwrap();
                }
            }
            let failure = capsule.resume().await.unwrap_err();
            let text = failure.chain();
            assert!(text.contains(&name) && text.contains(word), "{name} {damage}: {text}");
            assert_eq!(capsule.state().phase, Phase::Paused);
            let _missing = std::fs::remove_file(&path);
        }
        std::fs::rename(&aside, &path).unwrap();
    }
    capsule.resume().await.unwrap();
    assert_eq!(shell(&capsule, "cat /dev/shm/x").await, "2");
    assert_eq!(run(&other, "true").await.0, 0);
    capsule.destroy().await;
    other.destroy().await;
    host.clean_up().await;
}

/// Has the description at `path` say another value of what its saved machine fits, and returns the former one.
fn make_unfit(path: &Path, field: &str, value: &str) -> String {
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let former = text["saved"]["fits"][field].as_str().unwrap().to_owned();
    text["saved"]["fits"][field] = value.into();
    std::fs::write(path, text.to_string()).unwrap();
    former
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_elsewhere_is_refused_with_both_names_and_waits_for_its_own_kind() {
    let host = Host::new();
    let mut manager = host.manager().await;
    let id = boot(&manager).await.id();
    shell(&manager.get(id).unwrap(), "echo kept >/dev/shm/word").await;
    manager.make_template(&manager.get(id).unwrap(), &template_path("a"), "a").await.unwrap();
    manager.get(id).unwrap().pause().await.unwrap();
    let record = host.config().capsules_dir().join(id.to_string()).join("capsule.json");
    let snapshot = host.dir.path().join("templates").join(template_path("a")).join("snapshot.json");
    let driver = manager.env().drivers.default().name;
    let others = [("cpu", "kvm on Another/6/1/1/1".to_owned()), ("vmm", format!("{driver} 0.0.1"))];
    for (field, other) in others {
        let former = make_unfit(&record, field, &other);
        make_unfit(&snapshot, field, &other);
        manager = next_agent(&host, manager).await;
        let capsule = manager.get(id).unwrap();
        let copy = manager.create(CapsuleSpec { template_path: template_path("a"), ..spec(0) });
        let refusals = [copy.booted().await.unwrap_err(), capsule.resume().await.unwrap_err()];
        for text in refusals.map(|failure| failure.chain()) {
            assert!(text.contains(&other) && text.contains(&former), "{text}");
        }
        assert_eq!(capsule.state().phase, Phase::Paused);
        copy.stopped().await;
        make_unfit(&record, field, &former);
        make_unfit(&snapshot, field, &former);
    }
    manager = next_agent(&host, manager).await;
    let capsule = manager.get(id).unwrap();
    capsule.resume().await.unwrap();
    let copy = manager.create(CapsuleSpec { template_path: template_path("a"), ..spec(0) });
    copy.booted().await.unwrap();
    for capsule in [capsule, copy] {
        assert_eq!(shell(&capsule, "cat /dev/shm/word").await, "kept");
        capsule.destroy().await;
    }
    host.clean_up().await;
}

async fn next_agent(host: &Host, before: Manager) -> Manager {
    retire(before).await;
    let manager = host.manager().await;
    recovery::recover(&manager).await.unwrap();
    manager
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_every_kind_at_once_leave_a_legal_state() {
    let host = Host::new();
    let manager = Arc::new(host.manager().await);
    let capsule = boot(&manager).await;
    let calls = (0..4).map(|_| async {
        let _one_of_them = tokio::join!(capsule.pause(), capsule.resume());
    });
    futures::future::join_all(calls).await;
    assert!(matches!(capsule.state().phase, Phase::Running | Phase::Paused));
    capsule.resume().await.unwrap();
    assert_eq!(shell(&capsule, "echo fine").await, "fine");
    let (paused, ()) = tokio::join!(capsule.pause(), capsule.destroy());
    drop(paused);
    assert!(capsule.pause().await.is_err() && capsule.resume().await.is_err());
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    host.clean_up().await;
}

/// Creates two capsules at once, of which the one gets the spare and the other the VMM that waits, until that is so: it may
/// not be ready yet, or be for another shape. All are restored.
async fn get_the_blank(host: &Host, manager: &Manager, shape: Shape) {
    let capsules = host.config().capsules_dir();
    for _ in 0..20 {
        let blanks =
            common::entries(&capsules).into_iter().filter(|dir| dir.join("memory-blank.base").exists());
        let pids: Vec<u32> =
            blanks.filter_map(|dir| Record::read(&dir).ok()?.machine.map(|machine| machine.pid)).collect();
        let two = [0, 1].map(|_| manager.create(CapsuleSpec { shape, ..spec(0) }));
        let mut got = false;
        for capsule in two {
            capsule.booted().await.unwrap();
            let record = Record::read(&capsules.join(capsule.id().to_string())).unwrap();
            assert!(record.saved.is_some());
            got |= pids.contains(&record.machine.unwrap().pid);
            shell(&capsule, "true").await;
            capsule.destroy().await;
        }
        if got {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    }
    panic!("no capsule got a VMM that was waiting");
}

#[tokio::test(flavor = "multi_thread")]
async fn later_capsules_of_a_shape_are_made_from_the_first_boot_of_it() {
    let host = Host::new();
    let mut env = host.environment().await;
    env.warm = Arc::new(wrenn_agent::warm::Warm::new(4096, 1));
    let manager = Manager::new(Arc::new(env));
    wrenn_agent::warm::begin(manager.env()).await;
    let shape = Shape { disk_mb: 6144, ..spec(0).shape };
    let is_restored = |capsule: &Capsule| {
        let dir = host.config().capsules_dir().join(capsule.id().to_string());
        Record::read(&dir).unwrap().saved.is_some()
    };
    let first = manager.create(CapsuleSpec { shape, ..spec(0) });
    first.booted().await.unwrap();
    assert!(!is_restored(&first));
    let warm = host.dir.path().join("templates").join(&spec(0).template_path).join("warm");
    let named = format!("{}x{}x", shape.vcpus, shape.memory_mb);
    let made = || {
        common::entries(&warm)
            .iter()
            .any(|path| path.file_name().unwrap().to_string_lossy().starts_with(&named))
    };
    while !made() {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    for _ in 0..4 {
        let capsule = manager.create(CapsuleSpec { shape, ..spec(0) });
        capsule.booted().await.unwrap();
        assert_eq!(
            shell(&capsule, "hostname; echo $WRENN_SANDBOX_ID").await,
            format!("{0}\n{0}", capsule.id())
        );
        assert!(is_restored(&capsule));
        let processes = capsule.endpoint().unwrap().processes(None).unwrap();
        assert_eq!(processes.run("/bin/sh", &["-c", "exit 3"]).await.unwrap(), 3);
        let refused = processes.run("/bin/nothing", &[]).await.unwrap_err();
        assert!(refused.to_string().contains("/bin/nothing"), "{refused}");
        shell(&capsule, "echo own >/root/own").await;
        capsule.pause().await.unwrap();
        capsule.resume().await.unwrap();
        assert_eq!(shell(&capsule, "cat /root/own").await, "own");
        // Long enough for the pool to make a spare for the next one, which is not waited for.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
    get_the_blank(&host, &manager, shape).await;
    assert!(made(), "a capsule that cannot be made from it takes it away");
    futures::future::join_all(
        manager.all().into_iter().map(|capsule| async move { capsule.destroy().await }),
    )
    .await;
    retire(manager).await;
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    host.clean_up().await;
}
