//! A host for tests: a data directory of its own over the base images that all tests share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;
use tempfile::TempDir;
use wrenn_agent::capsule::Capsule;
use wrenn_agent::config::AgentConfig;
use wrenn_agent::drivers::DriverChoice;
use wrenn_agent::environment::Environment;
use wrenn_agent::manager::Manager;
use wrenn_agent::record::CapsuleSpec;
use wrenn_core::{CapsuleId, Shape};
use wrenn_vmm::AcceleratorChoice;
use wrenn_vmm::firecracker::Restore;
use wrenn_vmm::pager::PagerProgram;

/// A data directory of its own, over the base images that all tests share.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) dir: TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn config(&self) -> AgentConfig {
        let unused = "127.0.0.1:1".parse().unwrap();
        AgentConfig {
            dir: self.dir.path().to_owned(),
            listen: unused,
            advertise: unused,
            control_url: String::new(),
            registration_token: None,
            accelerator: AcceleratorChoice::Auto,
            driver: wanted_driver(),
            firecracker: None,
            restore: Restore::default(),
            pager: pager(),
            egress_bytes_per_second: None,
            allow_private_networks: false,
            uid_base: 1_900_000_000,
            boot_timeout: Duration::from_secs(180),
            warm_mb: 0,
            pool_size: 0,
            image_cache: Some(image_cache()),
            debian_mirror: None,
        }
    }

    pub(crate) async fn environment(&self) -> Environment {
        wrenn_agent::open(self.config()).await.unwrap()
    }

    pub(crate) async fn manager(&self) -> Manager {
        Manager::new(Arc::new(self.environment().await))
    }

    /// What a capsule still holds on this machine: its directory, claims of this data directory, cgroups.
    pub(crate) fn remains(&self) -> Vec<PathBuf> {
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

    /// Block devices of this data directory: those of the device mapper by name, loop devices by what is behind them.
    pub(crate) fn devices(&self) -> Vec<PathBuf> {
        let installation = std::fs::read_to_string(self.dir.path().join("installation-id")).unwrap();
        let short: String = installation.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        let (prefix, own) = (format!("wrenn-{short}-"), self.dir.path().to_str().unwrap());
        let starts = |path: PathBuf, with: &str| {
            std::fs::read_to_string(path).is_ok_and(|text| text.starts_with(with))
        };
        let is_own = |block: &PathBuf| {
            starts(block.join("dm/name"), &prefix) || starts(block.join("loop/backing_file"), own)
        };
        entries(Path::new("/sys/block")).into_iter().filter(is_own).collect()
    }

    /// Every block device of this data directory serves one of these machines. The kernel may take a while to let go of
    /// a loop device whose last user has gone.
    pub(crate) async fn check_devices(&self, machines: &[String]) {
        let mut strays = Vec::new();
        for _ in 0..600 {
            strays = self.devices().into_iter().filter(|block| !serves(block, machines)).collect();
            if strays.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("nobody's: {strays:?}");
    }

    /// Ends what this test started, whatever became of it.
    pub(crate) async fn clean_up(self) {
        wrenn_agent::remains::remove_all(&self.config()).await.unwrap();
        self.check_devices(&[]).await;
        assert_eq!(self.remains(), Vec::<PathBuf>::new());
    }
}

/// A test that fails leaves nothing running either.
impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let config = self.config();
        let removed = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().map_err(anyhow::Error::from)?;
            runtime.block_on(wrenn_agent::remains::remove_all(&config))
        });
        if !matches!(removed.join(), Ok(Ok(_))) {
            eprintln!("something of {} is left", self.dir.path().display());
        }
    }
}

/// Whether a block device is the disk of a machine, or what that leads to.
fn serves(block: &Path, machines: &[String]) -> bool {
    let name = std::fs::read_to_string(block.join("dm/name")).unwrap_or_default();
    let is_disk = machines.iter().any(|id| name.trim_end().ends_with(&**id));
    is_disk || entries(&block.join("holders")).iter().any(|holder| serves(holder, machines))
}

/// The driver that the tests are to be run with.
pub(crate) fn wanted_driver() -> DriverChoice {
    match std::env::var("WRENN_DRIVER") {
        Ok(name) => name.parse().unwrap(),
        Err(_) => DriverChoice::Qemu,
    }
}

/// This test binary once more.
fn pager() -> PagerProgram {
    let args = ["--exact", "common::be_pager", "--ignored", "--nocapture"].map(Into::into);
    PagerProgram { program: "/proc/self/exe".into(), args: args.to_vec(), env: Vec::new() }
}

#[test]
#[ignore = "it is the pager of other tests, and does nothing by itself"]
fn be_pager() {
    if std::env::var_os("WRENN_PAGER").is_some() {
        wrenn_vmm::pager::serve().unwrap();
    }
}

pub(crate) fn image_cache() -> PathBuf {
    std::env::var_os("WRENN_IMAGE_CACHE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/wrenn-images"),
        PathBuf::from,
    )
}

pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(found) = std::fs::read_dir(dir) else { return Vec::new() };
    found.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

pub(crate) fn spec(timeout_sec: u32) -> CapsuleSpec {
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

/// Ends an agent and leaves what runs alone.
pub(crate) async fn retire(manager: Manager) {
    manager.env().detach.cancel();
    manager.env().tasks.close();
    manager.env().tasks.wait().await;
}

pub(crate) fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Runs a shell line in a capsule and returns what it printed; a line that fails fails the test.
pub(crate) async fn shell(capsule: &Capsule, line: &str) -> String {
    let (code, output) = run(capsule, line).await;
    assert_eq!(code, 0, "`{line}`: {output}");
    output
}

/// Runs a shell line in a capsule: its exit code, and what it printed to both streams.
pub(crate) async fn run(capsule: &Capsule, line: &str) -> (i64, String) {
    let failed = |error| panic!("`{line}`: {error}: {:?}", capsule.state());
    try_run(capsule, line).await.unwrap_or_else(failed)
}

/// The same in a capsule that may be paused or gone at any moment: an error where the answer does not come to its end.
pub(crate) async fn try_run(capsule: &Capsule, line: &str) -> anyhow::Result<(i64, String)> {
    let endpoint = capsule.endpoint().context("it does not run")?;
    let message = serde_json::json!({ "process": { "cmd": "/bin/sh", "args": ["-c", line] } }).to_string();
    // The Connect protocol's envelope: flags, length, message.
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).expect("a short line").to_be_bytes());
    body.extend(message.as_bytes());
    let request = http::Request::post(endpoint.uri("/process.Process/Start").expect("a path"))
        .header("content-type", "application/connect+json")
        .body(Body::from(body))
        .expect("a request");
    let answer = endpoint.send(request).await?.into_body();
    let bytes = answer.collect().await?.to_bytes();
    let (mut output, mut code, mut rest) = (Vec::new(), None, &bytes[..]);
    while rest.len() >= 5 {
        let length = u32::from_be_bytes(rest[1..5].try_into().expect("four bytes")) as usize;
        let message: serde_json::Value = serde_json::from_slice(&rest[5..5 + length]).expect("JSON");
        rest = &rest[5 + length..];
        let event = &message["event"];
        for stream in ["stdout", "stderr"] {
            let text = event["data"][stream].as_str().unwrap_or_default();
            output.extend(STANDARD.decode(text).expect("base64"));
        }
        if let Some(end) = event.get("end") {
            code = Some(end["exitCode"].as_i64().unwrap_or(0));
        }
        assert!(message.get("error").is_none(), "{message}");
    }
    Ok((code.context("it does not end")?, String::from_utf8_lossy(&output).trim().to_owned()))
}
