//! A host's disk that is full: what cannot be written is refused by that name, and what runs goes on.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use wrenn_agent::capsule::Capsule;
use wrenn_agent::error::CapsuleError;
use wrenn_agent::manager::Manager;
use wrenn_agent::record::{CapsuleSpec, Phase};
use wrenn_agent::recovery::{self, Recovered};
use wrenn_core::CapsuleId;

use crate::audit::{audit, check_guest, destroy_all};
use crate::common::{Host, entries, retire, shell, spec};
use crate::seed::{fill, shape};
use crate::volume::Volume;

/// MiB that hold the base image and a few capsules.
const VOLUME_MB: u64 = 2048;
/// KiB that the guest's own writes need, and no pause does.
const LITTLE: u64 = 8 << 10;

/// A host whose data directory is a file system of its own. It is used up before the volume goes.
fn host_on(volume: &Volume) -> Host {
    Host { dir: tempfile::tempdir_in(volume.root()).unwrap() }
}

async fn boot(manager: &Manager, timeout_sec: u32) -> Capsule {
    let capsule = manager.create(CapsuleSpec { shape: shape(), ..spec(timeout_sec) });
    capsule.booted().await.unwrap();
    busily(&capsule, async {
        fill(&capsule).await;
        // More than is left on the full disk.
        shell(&capsule, "head -c 32M /dev/urandom >/dev/shm/dirt").await;
    })
    .await;
    capsule
}

/// Does something with a capsule that is not idle meanwhile.
async fn busily<T>(capsule: &Capsule, work: impl Future<Output = T>) -> T {
    let touching = async {
        loop {
            capsule.touch();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        biased;
        done = work => done,
        () = touching => unreachable!("it goes on for ever"),
    }
}

fn check_says_full(text: &str) {
    let lower = text.to_lowercase();
    assert!(
        ["no space left", "no space is left", "disk is full"].iter().any(|words| lower.contains(words)),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_finds_the_disk_full_says_so_and_the_capsule_runs_on() {
    let volume = Volume::new(VOLUME_MB);
    let host = host_on(&volume);
    let manager = host.manager().await;
    let capsule = boot(&manager, 0).await;
    for left in [LITTLE, 0] {
        shell(&capsule, "echo round >>/root/rounds").await;
        volume.fill(left);
        let failure = capsule.pause().await.unwrap_err();
        check_says_full(&failure.chain());
        let state = capsule.state();
        assert_eq!(state.phase, Phase::Running);
        // Where not even the guest's own writes find room, that may be what is told last.
        let told = ["pause_failed: ", "disk_full: "].iter().any(|word| state.reason.starts_with(word));
        assert!(told, "{}", state.reason);
        check_says_full(&state.reason);
        assert!(capsule.gate().lease().is_some(), "traffic is let in again");
        if left > 0 {
            check_guest(&capsule).await;
            // The record too is as it was, for the full disk took no more than it gave back.
            audit(&host, &manager).await;
        }
        volume.free();
        check_guest(&capsule).await;
        capsule.pause().await.unwrap();
        audit(&host, &manager).await;
        capsule.resume().await.unwrap();
        check_guest(&capsule).await;
    }
    assert_eq!(shell(&capsule, "cat /root/rounds").await, "round\nround");
    destroy_all(host, &manager).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_capsule_is_not_lost_because_the_disk_is_full() {
    let volume = Volume::new(VOLUME_MB);
    let host = host_on(&volume);
    let manager = host.manager().await;
    let capsule = boot(&manager, 4).await;
    volume.fill(LITTLE);
    let mut watch = capsule.watch();
    let failed = |state: &wrenn_agent::capsule::State| state.reason.starts_with("pause_failed");
    let state = watch.wait_for(failed).await.unwrap().clone();
    check_says_full(&state.reason);
    assert_eq!(state.phase, Phase::Running);
    busily(&capsule, check_guest(&capsule)).await;
    volume.free();
    watch.wait_for(|state| state.phase == Phase::Paused).await.unwrap();
    capsule.resume().await.unwrap();
    busily(&capsule, check_guest(&capsule)).await;
    destroy_all(host, &manager).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_disk_refuses_leaves_nothing_and_can_be_done_later() {
    let volume = Volume::new(VOLUME_MB);
    let host = host_on(&volume);
    let manager = host.manager().await;
    let source = boot(&manager, 0).await;
    let path = Path::new("00000000-0000-0000-0000-000000000001/made");
    let ids = [CapsuleId::random(), CapsuleId::random()];
    volume.fill(LITTLE);
    check_says_full(&manager.fork(&source, &ids).await.unwrap_err().chain());
    check_says_full(&manager.make_template(&source, path, "made").await.unwrap_err().chain());
    assert_eq!(entries(&host.dir.path().join("staging")), Vec::<std::path::PathBuf>::new());
    assert_eq!((manager.all().len(), source.state().phase), (1, Phase::Running));
    check_guest(&source).await;
    audit(&host, &manager).await;
    volume.free();
    source.pause().await.unwrap();
    volume.fill(0);
    check_says_full(&source.resume().await.unwrap_err().chain());
    assert_eq!(source.state().phase, Phase::Paused);
    let refused = manager.make_template(&source, path, "made").await.unwrap_err();
    assert!(!matches!(&*refused, CapsuleError::TemplateExists { .. }), "{refused}");
    volume.free();
    audit(&host, &manager).await;
    source.resume().await.unwrap();
    check_guest(&source).await;
    for clone in manager.fork(&source, &ids).await.unwrap() {
        check_guest(&clone).await;
    }
    manager.make_template(&source, path, "made").await.unwrap();
    audit(&host, &manager).await;
    destroy_all(host, &manager).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_more_than_the_host_has_waits_for_room_and_loses_nothing() {
    let volume = Volume::new(VOLUME_MB);
    let host = host_on(&volume);
    let manager = host.manager().await;
    let capsule = boot(&manager, 0).await;
    let sum = shell(&capsule, "md5sum </dev/shm/dirt").await;
    volume.fill(LITTLE);
    let mut watch = capsule.watch();
    let copying = shell(&capsule, "cp /dev/shm/dirt /root/dirt && sync && md5sum </root/dirt");
    let freeing = async {
        let full = |state: &wrenn_agent::capsule::State| state.reason.starts_with("disk_full");
        check_says_full(&watch.wait_for(full).await.unwrap().reason);
        volume.free();
    };
    let (copied, ()) = tokio::join!(copying, freeing);
    assert_eq!(copied, sum);
    check_guest(&capsule).await;
    // It comes to be told that all is well again.
    watch.wait_for(|state| state.reason.is_empty()).await.unwrap();
    audit(&host, &manager).await;
    destroy_all(host, &manager).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs KVM and Firecracker: run in the lab"]
async fn a_capsule_whose_disk_was_lost_is_ended_and_says_so_and_the_next_one_runs() {
    let volume = Volume::new(VOLUME_MB);
    let host = host_on(&volume);
    let manager = host.manager().await;
    let capsule = boot(&manager, 0).await;
    lose_disk(&host, &volume, &capsule).await;
    tokio::time::timeout(Duration::from_secs(60), capsule.stopped()).await.unwrap();
    let reason = capsule.state().reason;
    assert!(reason.contains("could not write to its disk"), "{reason}");
    volume.free();
    audit(&host, &manager).await;
    // The same while no agent looks.
    let capsule = boot(&manager, 0).await;
    retire(manager).await;
    lose_disk(&host, &volume, &capsule).await;
    volume.free();
    let manager = host.manager().await;
    let recovered = recovery::recover(&manager).await.unwrap();
    assert_eq!(recovered, Recovered { adopted: 0, paused: 0, removed: 1 });
    audit(&host, &manager).await;
    check_guest(&boot(&manager, 0).await).await;
    destroy_all(host, &manager).await;
}

/// Writes more to a capsule's disk than its host has room for, as no guest would be let.
async fn lose_disk(host: &Host, volume: &Volume, capsule: &Capsule) {
    volume.fill(0);
    let device = host.dir.path().join(format!("capsules/{}/run/dev/disk", capsule.id()));
    let written = tokio::task::spawn_blocking(move || {
        let mut device = std::fs::File::options().write(true).open(device).unwrap();
        device.write_all(&vec![1; 128 << 20]).and_then(|()| device.sync_all())
    });
    let failure = written.await.unwrap().unwrap_err();
    assert_eq!(failure.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{failure}");
}
