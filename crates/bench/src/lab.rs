//! The platform under test, and everything that a run acquires of it.
//!
//! Every capsule of a run carries the run's label, so that the release finds also one whose creation was interrupted
//! before its id was known.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use wrenn_agent::endpoint::Endpoint;
use wrenn_agent::record::Record;
use wrenn_client::{Capsule, CapsuleId, CapsuleStatus, Client, Command, CreateCapsule};

/// Label of the capsules of one run.
const LABEL: &str = "bench";
/// How long a capsule may take to end.
const END: Duration = Duration::from_secs(60);
/// How long a capsule may take to start, to be paused or to be resumed.
const START: Duration = Duration::from_secs(300);
/// Pause between two looks at a capsule that the API did not wait for; the client's own is too coarse to measure with.
const LOOK: Duration = Duration::from_millis(20);

/// A running platform on this machine.
#[derive(Debug)]
pub(crate) struct Lab {
    /// Its API.
    pub(crate) client: Client,
    /// Its data directory.
    pub(crate) dir: PathBuf,
    /// Its program.
    pub(crate) wrenn: PathBuf,
    /// Restarts of it that are under way.
    pub(crate) restarts: TaskTracker,
    run: String,
}

/// A capsule, and how the agent reaches its daemon.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// Its id.
    pub(crate) id: CapsuleId,
    /// The agent's record of it.
    pub(crate) record: Record,
    /// The address of the guest.
    pub(crate) addr: std::net::Ipv4Addr,
}

impl Subject {
    /// The guest daemon, without anything in between.
    pub(crate) fn daemon(&self) -> Endpoint {
        Endpoint::new(self.addr, &self.record.access_token)
    }
}

impl Lab {
    /// The platform with this data directory and this program.
    pub(crate) fn open(dir: &Path, wrenn: PathBuf, url: &str, key: &str) -> anyhow::Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("no data directory {}", dir.display()))?;
        let run = uuid::Uuid::new_v4().to_string();
        Ok(Self { client: Client::new(url, key)?, dir, wrenn, restarts: TaskTracker::new(), run })
    }

    /// What a capsule of this run is asked to be.
    pub(crate) fn request(&self, memory_mb: u32) -> CreateCapsule {
        CreateCapsule::new("minimal").memory_mb(memory_mb).label(LABEL, &self.run)
    }

    /// Makes a capsule and waits until it runs.
    pub(crate) async fn create(&self, memory_mb: u32) -> anyhow::Result<CapsuleId> {
        let capsule = self.client.create(&self.request(memory_mb)).await?;
        let id = capsule.id;
        self.settled(capsule, CapsuleStatus::Running).await?;
        Ok(id)
    }

    /// Pauses a capsule and waits until it is.
    pub(crate) async fn pause(&self, id: CapsuleId) -> anyhow::Result<()> {
        let capsule = self.client.pause(id).await?;
        self.settled(capsule, CapsuleStatus::Paused).await
    }

    /// Resumes a capsule and waits until it runs.
    pub(crate) async fn resume(&self, id: CapsuleId) -> anyhow::Result<()> {
        let capsule = self.client.resume(id).await?;
        self.settled(capsule, CapsuleStatus::Running).await
    }

    async fn settled(&self, mut capsule: Capsule, wanted: CapsuleStatus) -> anyhow::Result<()> {
        let limit = Instant::now() + START;
        while capsule.status != wanted {
            let status = capsule.status;
            ensure!(status.is_transitional(), "capsule {} is {status:?} and not {wanted:?}", capsule.id);
            ensure!(Instant::now() < limit, "capsule {} stays {status:?}", capsule.id);
            tokio::time::sleep(LOOK).await;
            capsule = self.client.get(capsule.id).await?;
        }
        Ok(())
    }

    /// Makes a capsule that can be reached past the platform, too.
    pub(crate) async fn subject(&self, memory_mb: u32) -> anyhow::Result<Subject> {
        let id = self.create(memory_mb).await?;
        let record = self.record(id)?;
        let slot = record.slot.context("a running capsule has no network slot")?;
        Ok(Subject { id, addr: slot.guest_addr(), record })
    }

    /// The directory of a capsule.
    pub(crate) fn capsule_dir(&self, id: CapsuleId) -> PathBuf {
        self.dir.join("capsules").join(id.to_string())
    }

    /// The agent's record of a capsule.
    pub(crate) fn record(&self, id: CapsuleId) -> anyhow::Result<Record> {
        Record::read(&self.capsule_dir(id))
            .context("the agent's record of a capsule cannot be read; is the agent on this machine?")
    }

    /// Runs a line in a capsule, and demands that it succeeds.
    pub(crate) async fn shell(&self, id: CapsuleId, line: &str) -> anyhow::Result<String> {
        let ran = self.client.exec(id, &Command::shell(line).timeout_sec(120)).await?;
        ensure!(ran.exit_code == 0, "`{line}` failed in the capsule: {}", ran.stderr_text());
        Ok(ran.stdout_text())
    }

    /// Ends a capsule and waits until nothing of it is left.
    pub(crate) async fn destroy(&self, id: CapsuleId) -> anyhow::Result<()> {
        self.client.destroy(id).await?;
        self.client.wait_gone(id, END).await?;
        Ok(())
    }

    /// Ends whatever capsules of this run are left.
    pub(crate) async fn release(&self) -> anyhow::Result<()> {
        let left = self.client.list().await?;
        for capsule in left.iter().filter(|it| it.metadata.get(LABEL) == Some(&self.run)) {
            self.destroy(capsule.id).await?;
        }
        Ok(())
    }

    /// Lets what is under way end, and ends whatever capsules of this run are left.
    pub(crate) async fn close(&self) -> anyhow::Result<()> {
        self.restarts.close();
        self.restarts.wait().await;
        self.release().await
    }

    /// The process of the host agent: a child of the supervisor.
    pub(crate) fn agent_pid(&self) -> anyhow::Result<u32> {
        let text = std::fs::read(self.dir.join("run/up.json")).context("`wrenn up` does not run")?;
        let run: serde_json::Value = serde_json::from_slice(&text)?;
        let supervisor = run["process"]["pid"].as_u64().context("the run file names no process")?;
        let mut children = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{supervisor}/task"))?.filter_map(Result::ok) {
            let list = std::fs::read_to_string(task.path().join("children"))?;
            children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        let is_agent = |pid: &u32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.split(|&byte| byte == 0).nth(1) == Some(b"agent".as_slice())
        };
        children.into_iter().find(is_agent).context("the supervisor has no agent")
    }
}
