//! What a host must look like: all that lies and runs there belongs to a capsule that lives.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wrenn_agent::capsule::Capsule;
use wrenn_agent::manager::Manager;
use wrenn_agent::record::{Phase, Record};
use wrenn_agent::recovery;
use wrenn_core::CapsuleId;

use crate::common::{Host, entries, shell};

/// Plays the agent that comes after a dead one.
pub(crate) async fn next_agent(host: &Host) -> Manager {
    let manager = host.manager().await;
    assert_eq!(entries(&host.dir.path().join("staging")), Vec::<PathBuf>::new(), "the staging directory");
    recovery::recover(&manager).await.unwrap();
    audit(host, &manager).await;
    manager
}

/// Every directory, slot, cgroup, process and file is one that a living capsule needs, and none is missing.
pub(crate) async fn audit(host: &Host, manager: &Manager) {
    let dir = host.config().capsules_dir();
    let all = manager.all();
    let ids: BTreeSet<PathBuf> = all.iter().map(|capsule| dir.join(capsule.id().to_string())).collect();
    assert_eq!(entries(&dir).into_iter().collect::<BTreeSet<_>>(), ids, "the capsules' directories");
    let mut remains: BTreeSet<PathBuf> = host.remains().into_iter().collect();
    let mut machines = Vec::new();
    for capsule in &all {
        let own = dir.join(capsule.id().to_string());
        remains.remove(&own);
        let record = Record::read(&own).unwrap();
        let phase = capsule.state().phase;
        assert_eq!(record.phase, phase, "{}", capsule.id());
        let runs = phase == Phase::Running;
        assert!(runs || phase == Phase::Paused, "{} is {phase:?}", capsule.id());
        assert_eq!(record.slot.is_some() && record.machine.is_some(), runs, "{record:?}");
        assert_eq!(processes_of(capsule.id()).len(), usize::from(runs), "{}", capsule.id());
        if let Some(slot) = record.slot {
            let claim = Path::new("/run/wrenn/slots").join(slot.to_string());
            assert!(remains.remove(&claim), "{} has the slot {slot}", capsule.id());
        }
        if let Some(cgroup) = record.machine.as_ref().and_then(|machine| machine.cgroup.as_ref()) {
            assert!(remains.remove(cgroup), "{} has the cgroup {}", capsule.id(), cgroup.display());
        }
        check_files(manager, &own).await;
        machines.extend(record.machine.map(|machine| machine.id));
    }
    host.check_devices(&machines).await;
    assert!(remains.is_empty(), "nobody's: {remains:?}");
    check_namespaces();
}

/// The directory comes to hold what the record names, and nothing of an attempt that failed. A paused capsule's files may
/// be in the middle of being tidied.
async fn check_files(manager: &Manager, dir: &Path) {
    let mut last = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..600 {
        let wanted = wanted_files(manager, dir, &Record::read(dir).unwrap()).await;
        if let Some(wanted) = wanted {
            last = (found_files(dir), wanted);
            if last.0 == last.1 {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} has {:?} in place of {:?}", dir.display(), last.0, last.1);
}

fn found_files(dir: &Path) -> BTreeSet<String> {
    let kinds = ["memory-", "devices-", "disk-"];
    let names = entries(dir).into_iter().map(|path| name(&path));
    let scraps = |name: &String| name.ends_with(".new") || name.ends_with(".partial");
    names.filter(|name| kinds.iter().any(|kind| name.starts_with(kind)) || scraps(name)).collect()
}

/// None where the record has been replaced meanwhile.
async fn wanted_files(manager: &Manager, dir: &Path, record: &Record) -> Option<BTreeSet<String>> {
    let disks = &manager.env().drivers.get(&record.driver).ok()?.disks;
    let disk = disks.open(dir, record.disk.as_ref()?).await.ok()?;
    let mut wanted: BTreeSet<String> = disk.files().map(|path| name(path)).collect();
    if let Some(saved) = &record.saved {
        let image = wrenn_image::Image::open(&dir.join(&saved.memory)).ok()?;
        wanted.extend(image.files().iter().map(|path| name(path)));
        wanted.insert(saved.devices.clone());
    }
    Some(wanted)
}

/// A namespace without a claim belongs to nobody and would never be removed.
fn check_namespaces() {
    for path in entries(Path::new("/run/netns")) {
        let name = name(&path);
        let Some(slot) = name.strip_prefix("wrenn-").filter(|slot| slot.parse::<u16>().is_ok()) else {
            continue;
        };
        // Others on this machine come and go.
        let claimed = Path::new("/run/wrenn/slots").join(slot).exists();
        assert!(claimed || !path.exists(), "the namespace {name} is claimed by nobody");
    }
}

/// Process ids of the VMMs of a capsule.
pub(crate) fn processes_of(id: CapsuleId) -> Vec<String> {
    // QEMU is told a name, Firecracker the id itself.
    let wanted = [format!("guest={id}"), id.to_string()];
    let is_vmm = |path: &PathBuf| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| wanted.iter().any(|name| argument == name.as_bytes()))
    };
    entries(Path::new("/proc")).into_iter().filter(is_vmm).map(|path| name(&path)).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What every descendant of a seed has: words in memory and on disk, and a process that goes on.
pub(crate) async fn check_guest(capsule: &Capsule) {
    let seen =
        shell(capsule, "cat /dev/shm/word /root/word; kill -0 $(cat /dev/shm/pid) && echo alive").await;
    assert_eq!(seen, "memory\ndisk\nalive");
    let moves = "a=$(cat /dev/shm/count); for i in $(seq 600); do sleep 0.05; [ \"$(cat /dev/shm/count)\" != \"$a\" ] && break; done; [ \"$(cat /dev/shm/count)\" != \"$a\" ]";
    shell(capsule, moves).await;
}

/// Removes everything, and looks whether it went.
pub(crate) async fn destroy_all(host: Host, manager: &Manager) {
    let all = manager.all();
    futures::future::join_all(all.iter().map(Capsule::destroy)).await;
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    for capsule in &all {
        assert_eq!(processes_of(capsule.id()), Vec::<String>::new(), "{}", capsule.id());
    }
    assert_eq!(entries(&host.dir.path().join("staging")), Vec::<PathBuf>::new());
    host.check_devices(&[]).await;
    check_namespaces();
    host.clean_up().await;
}
