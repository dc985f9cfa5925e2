//! Capsules from their first file to their last, with real VMs and without a control plane.

#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]
#![expect(dead_code, reason = "the tests of one file do not need all of the host")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{Host, is_alive, spec};
use wrenn_agent::error::CapsuleError;
use wrenn_agent::manager::Manager;
use wrenn_agent::record::{CapsuleSpec, Phase};
use wrenn_agent::recovery::{self, Recovered};
use wrenn_core::Shape;

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_outlives_its_agent_and_leaves_nothing_when_it_is_destroyed() {
    let host = Host::new();
    let first = host.manager().await;
    let capsule = first.create(spec(0));
    let state = capsule.booted().await.unwrap();
    assert!(state.guest.is_some_and(|guest| !guest.kernel.is_empty()));
    let again = first.create(capsule.spec().clone());
    assert_eq!(again.state().generation, capsule.state().generation, "a repeated create joins the first");
    first.env().detach.cancel();
    drop((first, again));
    tokio::time::sleep(Duration::from_millis(200)).await;

    let second = host.manager().await;
    let recovered = recovery::recover(&second).await.unwrap();
    assert_eq!(recovered, Recovered { adopted: 1, paused: 0, removed: 0 });
    let adopted = second.get(capsule.id()).unwrap();
    assert!(adopted.state().generation > state.generation, "a take-over is a newer report");
    adopted.endpoint().unwrap().wait_until_healthy().await;
    tokio::join!(adopted.destroy(), adopted.destroy());
    assert_eq!(adopted.state().phase, Phase::Stopped);
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_over_is_removed() {
    let host = Host::new();
    let first = host.manager().await;
    let capsule = first.create(spec(0));
    capsule.booted().await.unwrap();
    first.env().detach.cancel();
    drop(first);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let dir = host.config().capsules_dir().join(capsule.id().to_string());
    let pid = wrenn_agent::record::Record::read(&dir).unwrap().machine.unwrap().pid;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();

    let second = host.manager().await;
    let recovered = recovery::recover(&second).await.unwrap();
    assert_eq!(recovered, Recovered { adopted: 0, paused: 0, removed: 1 });
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_panics_at_boot_is_reported_with_its_console_and_removed() {
    let host = Host::new();
    let mut env = host.environment().await;
    env.kernel.cmdline.push_str(" rdinit=/nothing-here");
    let manager = Manager::new(Arc::new(env));
    let failure = manager.create(spec(0)).booted().await.unwrap_err();
    let CapsuleError::GuestDied { console, .. } = &*failure else { panic!("{failure:?}") };
    assert!(console.contains("Kernel panic"), "{console}");
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_answer_in_time_is_reported_and_removed() {
    let host = Host::new();
    let mut env = host.environment().await;
    env.config.boot_timeout = Duration::from_millis(500);
    let manager = Manager::new(Arc::new(env));
    let failure = manager.create(spec(0)).booted().await.unwrap_err();
    assert!(matches!(&*failure, CapsuleError::BootTimeout { .. }), "{failure:?}");
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroy_cancels_a_boot_at_any_moment() {
    let host = Host::new();
    let manager = host.manager().await;
    for millis in [0, 5, 20, 60, 150, 600] {
        let capsule = manager.create(spec(0));
        tokio::time::sleep(Duration::from_millis(millis)).await;
        capsule.destroy().await;
        let failure = capsule.booted().await.unwrap_err();
        assert!(matches!(&*failure, CapsuleError::Stopping(_)), "{failure:?}");
        assert_eq!(host.remains(), Vec::<PathBuf>::new(), "after {millis} ms");
    }
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_killed_takes_its_capsule_along() {
    let host = Host::new();
    let manager = host.manager().await;
    let capsule = manager.create(spec(0));
    capsule.booted().await.unwrap();
    let dir = host.config().capsules_dir().join(capsule.id().to_string());
    let pid = wrenn_agent::record::Record::read(&dir).unwrap().machine.unwrap().pid;
    let lease = capsule.gate().lease().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    lease.revoked().await;
    capsule.stopped().await;
    assert!(capsule.state().reason.starts_with("vm_died"), "{}", capsule.state().reason);
    assert!(!is_alive(pid));
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    host.clean_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_that_are_missing_or_too_large_are_refused_before_anything_is_made() {
    let host = Host::new();
    let manager = host.manager().await;
    let unknown = CapsuleSpec { template_path: "no/such".into(), ..spec(0) };
    let failure = manager.create(unknown).booted().await.unwrap_err();
    assert!(matches!(&*failure, CapsuleError::Template { .. }), "{failure:?}");
    let small = CapsuleSpec { shape: Shape { vcpus: 1, memory_mb: 256, disk_mb: 10 }, ..spec(0) };
    let failure = manager.create(small).booted().await.unwrap_err();
    assert!(matches!(&*failure, CapsuleError::DiskTooSmall { asked: 10, .. }), "{failure:?}");
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
    host.clean_up().await;
}
