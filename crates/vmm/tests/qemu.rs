//! The QEMU driver with the real QEMU, confined as in production.

mod common;

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use common::{Bench, Guest, LONG, no_tap, runs, status_field};
use wrenn_vmm::qemu::Qemu;
use wrenn_vmm::{DiskFiles, ExitReason, FileKey, MachineRecord, RunState, Vmm, VmmError, cgroup};

#[tokio::test]
async fn a_guest_boots_pauses_and_goes_on() {
    let bench = Bench::new().await;
    let machine = bench.boot(Guest::Ticks).await;
    bench.console_until(|text| text.contains("hello\n.")).await;
    assert_eq!(machine.status().await.unwrap(), RunState::Running);

    machine.pause().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), RunState::Paused);
    let dots = bench.console().len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.console().len(), dots, "a paused guest prints nothing");

    machine.cont().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), RunState::Running);
    bench.console_until(|text| text.len() > dots).await;
    assert!(machine.cpu_time().unwrap() > Duration::ZERO);
    assert!(machine.resident_bytes().unwrap() > 1 << 20);
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn the_process_is_unprivileged_confined_and_alone() {
    let bench = Bench::new().await;
    let machine = bench.boot(Guest::Halts).await;
    let (pid, uid) = (machine.pid(), bench.uid().to_string());
    assert_eq!(status_field(pid, "Uid"), [&*uid; 4].join(" "));
    assert_eq!(status_field(pid, "Gid"), [&*uid; 4].join(" "));
    assert_eq!(status_field(pid, "Groups"), "");
    assert_eq!(status_field(pid, "CapEff"), "0".repeat(16));
    assert_eq!(status_field(pid, "CapPrm"), "0".repeat(16));
    assert_eq!(status_field(pid, "NoNewPrivs"), "1");
    assert_eq!(status_field(pid, "Seccomp"), "2", "QEMU's sandbox is on");

    let link = |who: &str, name: &str| std::fs::read_link(format!("/proc/{who}/ns/{name}")).unwrap();
    let spec = bench.spec(Guest::Halts);
    assert_eq!(link(&pid.to_string(), "net"), std::fs::read_link(spec.netns).unwrap());
    assert_ne!(link(&pid.to_string(), "net"), link("self", "net"));
    assert_ne!(link(&pid.to_string(), "mnt"), link("self", "mnt"));
    let session =
        rustix::process::getsid(rustix::process::Pid::from_raw(i32::try_from(pid).unwrap())).unwrap();
    assert_eq!(session.as_raw_nonzero().get().unsigned_abs(), pid, "a session of its own");
    if let Some(path) = &machine.record().cgroup {
        let members = std::fs::read_to_string(path.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), pid.to_string());
    }
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn the_vmm_inherits_no_descriptor_but_its_own() {
    let bench = Bench::new().await;
    // Without close-on-exec, as a careless library would leave it.
    let leak = no_tap();
    let machine = bench.boot(Guest::Halts).await;
    let open = std::fs::read_dir(format!("/proc/{}/fd", machine.pid())).unwrap();
    let targets: Vec<_> = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
    assert!(leak.as_raw_fd() > 2 && !targets.iter().any(|path| path.to_string_lossy().contains("no-tap")));
    assert!(targets.iter().any(|path| path == Path::new("/dev/net/tun")), "{targets:?}");
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_kill_leaves_nothing_and_may_be_repeated() {
    let bench = Bench::new().await;
    let machine = bench.boot(Guest::Ticks).await;
    assert!(!bench.leftovers().is_empty());
    machine.kill().await.unwrap();
    machine.kill().await.unwrap();
    assert_eq!(machine.exited().await, ExitReason::Killed);
    assert!(!runs(machine.pid()));
    assert_eq!(bench.leftovers(), Vec::<std::path::PathBuf>::new());
    assert!(matches!(machine.status().await, Err(VmmError::Qmp(_))));
}

#[tokio::test]
async fn a_guest_that_crashes_ends_its_vmm_and_leaves_its_console() {
    let bench = Bench::new().await;
    let machine = bench.boot(Guest::Crashes).await;
    let exit = tokio::time::timeout(LONG, machine.exited()).await.unwrap();
    assert_eq!(exit, ExitReason::Exited { code: 0 });
    assert!(bench.console().contains("hello"));
    machine.kill().await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<std::path::PathBuf>::new());
    assert_eq!(machine.exited().await, exit, "a kill after the end does not rewrite how it ended");
}

#[tokio::test]
async fn a_machine_outlives_its_handle_and_is_adopted_from_its_record() {
    let bench = Bench::new().await;
    let machine = bench.boot(Guest::Ticks).await;
    let text = serde_json::to_string(machine.record()).unwrap();
    drop(machine);
    let record: MachineRecord = serde_json::from_str(&text).unwrap();
    assert!(record.is_alive());

    let other = Qemu::detect(None).await.unwrap();
    let machine = other.adopt(record.clone()).await.unwrap();
    assert_eq!(machine.record(), &record);
    assert_eq!(machine.status().await.unwrap(), RunState::Running);
    machine.kill().await.unwrap();
    assert!(!runs(record.pid) && !record.is_alive());
    assert!(matches!(other.adopt(record.clone()).await, Err(VmmError::Gone { .. })));
    other.discard(&record).await.unwrap();
}

#[tokio::test]
async fn a_record_of_a_recycled_process_id_hits_nobody() {
    let bench = Bench::new().await;
    let mut bystander = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let record = |start_time, boot_id: String| MachineRecord {
        driver: "qemu".into(),
        id: "cl-test".into(),
        pid: bystander.id(),
        start_time,
        boot_id,
        socket: bench.path("no.sock"),
        cgroup: None,
        memory: FileKey { device: 0, inode: 0 },
    };
    for record in [record(1, wrenn_vmm::boot_id().unwrap()), record(1, "an earlier boot".into())] {
        assert!(matches!(bench.qemu.adopt(record.clone()).await, Err(VmmError::Gone { .. })));
        assert!(!record.is_alive());
        bench.qemu.discard(&record).await.unwrap();
    }
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander lives");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test]
async fn discarding_a_record_ends_a_vmm_that_nobody_holds() {
    let bench = Bench::new().await;
    let record = bench.boot(Guest::Ticks).await.record().clone();
    bench.qemu.discard(&record).await.unwrap();
    bench.qemu.discard(&record).await.unwrap();
    assert!(!runs(record.pid));
    assert_eq!(bench.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_sweep_ends_what_no_record_knows_and_spares_the_rest() {
    let bench = Bench::new().await;
    let Some(parent) = bench.spec(Guest::Halts).cgroup_parent else { return };
    let machine = bench.boot(Guest::Halts).await;
    assert_eq!(cgroup::sweep(&parent, |id| id == "cl-test").await.unwrap(), Vec::<String>::new());
    assert_eq!(machine.status().await.unwrap(), RunState::Running);
    assert_eq!(cgroup::sweep(&parent, |_| false).await.unwrap(), ["cl-test"]);
    let exit = tokio::time::timeout(LONG, machine.exited()).await.unwrap();
    assert_eq!(exit, ExitReason::Signalled { signal: 9 });
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_cancelled_launch_leaves_no_vmm() {
    let bench = Bench::new().await;
    let launching = bench.qemu.launch(bench.spec(Guest::Ticks));
    let _ = tokio::time::timeout(Duration::from_millis(15), launching).await.map(drop);
    let gone = async {
        while bench.leftovers().iter().any(|path| path.ends_with("cl-test")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, gone).await.is_ok(), "{:?}", bench.leftovers());
}

#[tokio::test]
async fn a_broken_disk_is_refused_in_the_words_of_qemu() {
    let bench = Bench::new().await;
    std::fs::write(bench.path("disk-1.qcow2"), "this is no disk").unwrap();
    let machine = bench.qemu.launch(bench.spec(Guest::Halts)).await.unwrap();
    let layers = [bench.path("disk-1.qcow2")];
    let disk = DiskFiles { base: &bench.path("base.raw"), layers: &layers };
    let error = machine.attach_disk(disk).await.unwrap_err();
    let VmmError::Qmp(cause) = &error else { panic!("{error}") };
    assert!(cause.to_string().contains("Image is not in qcow2 format"), "{cause}");
    machine.kill().await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_descriptor_that_is_no_tap_is_refused_in_the_words_of_qemu() {
    let bench = Bench::new().await;
    let mut spec = bench.spec(Guest::Halts);
    spec.tap = no_tap();
    let error = bench.qemu.launch(spec).await.unwrap_err();
    assert!(matches!(&error, VmmError::Launch { said, .. } if !said.is_empty()), "{error}");
}

#[tokio::test]
async fn unusable_specifications_are_refused_before_anything_starts() {
    let bench = Bench::new().await;
    let mut root = bench.spec(Guest::Halts);
    root.uid = 0;
    assert!(matches!(bench.qemu.launch(root).await, Err(VmmError::Privileged { .. })));
    let mut dots = bench.spec(Guest::Halts);
    dots.id = "../escape".into();
    assert!(matches!(bench.qemu.launch(dots).await, Err(VmmError::BadId { .. })));
    let missing = bench.restore_spec(&bench.path("nowhere.base"));
    let error = bench.qemu.launch(missing).await.unwrap_err();
    assert!(error.to_string().contains("nowhere.base"), "{error}");
    std::fs::write(bench.path("initrd"), [0; 4097]).unwrap();
    let odd = bench.spec(Guest::Halts);
    let error = bench.qemu.launch(odd).await.unwrap_err();
    assert!(error.to_string().contains("multiple of 4096"), "{error}");
    std::fs::write(bench.path("initrd"), [0; 4096]).unwrap();
    let mut netns = bench.spec(Guest::Halts);
    netns.netns = bench.path("base.raw");
    let error = bench.qemu.launch(netns).await.unwrap_err();
    assert!(error.to_string().contains("cannot enter the network namespace"), "{error}");
    assert_eq!(bench.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_missing_binary_is_named_with_the_command_that_installs_it() {
    let error = Qemu::detect(Some(Path::new("/no/such/qemu"))).await.unwrap_err();
    assert!(error.to_string().contains("apt-get install qemu-system-x86"), "{error}");
}
