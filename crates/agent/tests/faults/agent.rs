//! An agent in a process of its own, which may be killed: this test binary once more, with a script to follow.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use wrenn_agent::config::AgentConfig;
use wrenn_agent::manager::Manager;
use wrenn_agent::record::CapsuleSpec;
use wrenn_agent::{recovery, warm};
use wrenn_core::limits::{DEFAULT_DISK_MB, DEFAULT_MEMORY_MB, DEFAULT_VCPUS};
use wrenn_core::{CapsuleId, Shape};

use crate::common::{Host, spec};

/// The agent's data directory.
const DIR: &str = "WRENN_TEST_DIR";
/// What it does, in words.
const SCRIPT: &str = "WRENN_TEST_SCRIPT";
/// Longer than any script takes: a life that lasts longer hangs.
const LIFE: Duration = Duration::from_secs(180);

/// How an agent's life ended.
#[derive(Debug)]
pub(crate) struct Life {
    /// It was killed, and did not end by itself.
    pub(crate) killed: bool,
    /// It followed its script to the end.
    pub(crate) finished: bool,
    /// All that it printed.
    pub(crate) said: String,
}

/// Starts an agent over the data directory of `host`, which takes over what it finds there, follows `script`, and dies at
/// the point `fault`, or after `limit`.
pub(crate) async fn live(host: &Host, script: &str, fault: &str, limit: Option<Duration>) -> Life {
    let child = tokio::process::Command::new("/proc/self/exe")
        .args(["--exact", "agent::an_agent_of_its_own", "--ignored", "--nocapture"])
        .env(DIR, host.dir.path())
        .env(SCRIPT, script)
        .env("WRENN_FAULT", fault)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    let mut output = Box::pin(child.wait_with_output());
    if let Some(limit) = limit
        && tokio::time::timeout(limit, &mut output).await.is_err()
    {
        // Not reaped before its output is awaited: the id is its own.
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    let output = tokio::time::timeout(LIFE, output).await.expect("an agent's life ends").unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Life { killed: output.status.signal() == Some(9), finished: output.status.success(), said }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the agent of other tests, and does nothing by itself"]
async fn an_agent_of_its_own() {
    let (Ok(dir), Ok(script)) = (std::env::var(DIR), std::env::var(SCRIPT)) else { return };
    let mut config = AgentConfig { dir: PathBuf::from(dir), ..Host::new().config() };
    if script.starts_with("ready") {
        (config.warm_mb, config.pool_size) = (4096, 1);
    }
    let manager = Manager::new(std::sync::Arc::new(wrenn_agent::open(config).await.unwrap()));
    recovery::recover(&manager).await.unwrap();
    for step in script.split(';').map(str::trim).filter(|step| !step.is_empty()) {
        follow(&manager, step).await;
        println!("done: {step}");
    }
    manager.env().detach.cancel();
}

/// Does one step with the capsule whose id comes first.
async fn follow(manager: &Manager, step: &str) {
    let words: Vec<&str> = step.split_whitespace().collect();
    let source = || manager.get(words[1].parse().unwrap()).unwrap();
    match words[0] {
        "pause" => drop(source().pause().await.unwrap()),
        "resume" => drop(source().resume().await.unwrap()),
        "template" => drop(manager.make_template(&source(), Path::new(words[2]), "t").await.unwrap()),
        "fork" => {
            let ids = [CapsuleId::random(), CapsuleId::random()];
            drop(manager.fork(&source(), &ids).await.unwrap());
        }
        "ready" => {
            warm::begin(manager.env()).await;
            warm::filled(manager.env(), LIFE).await;
        }
        "create" => {
            let shape =
                Shape { vcpus: DEFAULT_VCPUS, memory_mb: DEFAULT_MEMORY_MB, disk_mb: DEFAULT_DISK_MB };
            let made = CapsuleSpec { id: words[1].parse().unwrap(), shape, ..spec(0) };
            drop(manager.create(made).booted().await.unwrap());
        }
        "rest" => tokio::time::sleep(Duration::from_secs(60)).await,
        unknown => panic!("{unknown} is no step"),
    }
}
