//! Capsules from their first file to their last, with real VMs and without a control plane.

#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use wrenn_agent::config::AgentConfig;
use wrenn_agent::environment::Environment;
use wrenn_agent::error::CapsuleError;
use wrenn_agent::manager::Manager;
use wrenn_agent::record::{CapsuleSpec, Phase};
use wrenn_agent::recovery::{self, Recovered};
use wrenn_core::{CapsuleId, Shape};
use wrenn_vmm::AcceleratorChoice;

/// A data directory of its own, over the base images that all tests share.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn config(&self) -> AgentConfig {
        let unused = "127.0.0.1:1".parse().unwrap();
        AgentConfig {
            dir: self.dir.path().to_owned(),
            listen: unused,
            advertise: unused,
            control_url: String::new(),
            registration_token: None,
            accelerator: AcceleratorChoice::Auto,
            allow_private_networks: false,
            uid_base: 1_900_000_000,
            boot_timeout: Duration::from_secs(180),
            image_cache: Some(image_cache()),
            debian_mirror: None,
        }
    }

    async fn environment(&self) -> Environment {
        wrenn_agent::open(self.config()).await.unwrap()
    }

    async fn manager(&self) -> Manager {
        Manager::new(Arc::new(self.environment().await))
    }

    /// What a capsule still holds on this machine: its directory, claims of this data directory, cgroups.
    fn remains(&self) -> Vec<PathBuf> {
        let own = self.dir.path().to_str().unwrap();
        let claims = entries(Path::new("/run/wrenn/slots"))
            .into_iter()
            .filter(|claim| std::fs::read_to_string(claim).is_ok_and(|text| text.contains(own)));
        let installation = std::fs::read_to_string(self.dir.path().join("installation-id")).unwrap();
        let cgroups = wrenn_vmm::cgroup::root()
            .map(|root| entries(&root.join(format!("wrenn-{}", installation.trim()))))
            .unwrap_or_default()
            .into_iter()
            .filter(|path| path.is_dir());
        entries(&self.dir.path().join("capsules")).into_iter().chain(claims).chain(cgroups).collect()
    }

    /// Ends what this test started, whatever became of it.
    async fn clean_up(self) {
        wrenn_agent::remains::remove_all(&self.config()).await.unwrap();
        assert_eq!(self.remains(), Vec::<PathBuf>::new());
    }
}

fn image_cache() -> PathBuf {
    std::env::var_os("WRENN_IMAGE_CACHE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/wrenn-images"),
        PathBuf::from,
    )
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(found) = std::fs::read_dir(dir) else { return Vec::new() };
    found.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn spec(timeout_sec: u32) -> CapsuleSpec {
    let nil = uuid::Uuid::nil().to_string();
    CapsuleSpec {
        id: CapsuleId::random(),
        template_path: Path::new(&nil).join(&nil),
        template_name: "minimal".to_owned(),
        shape: Shape { vcpus: 1, memory_mb: 256, disk_mb: 2048 },
        timeout_sec,
        default_user: String::new(),
        default_env: BTreeMap::new(),
    }
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

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
    assert_eq!(recovered, Recovered { adopted: 1, removed: 0 });
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
    assert_eq!(recovered, Recovered { adopted: 0, removed: 1 });
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
async fn an_idle_capsule_ends_when_its_clock_runs_out() {
    let host = Host::new();
    let manager = host.manager().await;
    let capsule = manager.create(spec(3));
    capsule.booted().await.unwrap();
    let mut watch = capsule.watch();
    let stopped = watch.wait_for(|state| state.phase == Phase::Stopped).await.unwrap().clone();
    assert_eq!(stopped.reason, "ttl_expired");
    assert!(manager.all().is_empty());
    assert_eq!(host.remains(), Vec::<PathBuf>::new());
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
