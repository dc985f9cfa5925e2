//! A running QEMU, and what is left of one.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;

use crate::process::{self, Process};
use crate::qmp::{Qmp, QmpError};
use crate::{ExitReason, Machine, MachineRecord, RunState, VmmError, cgroup, socket};

/// A stuck QEMU accepts connections but never greets; an agent's start must not wait for it.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(30);

/// A process and the record of what belongs to it.
#[derive(Debug)]
pub(super) struct Remains {
    pub(super) process: Process,
    pub(super) record: MachineRecord,
}

impl Remains {
    pub(super) fn new(process: Process, record: MachineRecord) -> Self {
        Self { process, record }
    }

    /// The process of a record, if it still runs.
    pub(super) fn find(record: MachineRecord) -> Result<Self, VmmError> {
        let gone = || VmmError::Gone { id: record.id.clone(), pid: record.pid };
        if process::boot_id()? != record.boot_id {
            return Err(gone());
        }
        let process = Process::open(record.pid).map_err(|_| gone())?;
        if process.start_time() != record.start_time || process.try_exit().is_some() {
            return Err(gone());
        }
        Ok(Self { process, record })
    }

    /// Ends the process and removes its traces.
    pub(super) async fn destroy(&self) -> Result<(), VmmError> {
        self.process.kill().await?;
        remove_traces(&self.record).await
    }

    /// The same where nobody waits: the signal is sent before this returns, the rest follows.
    pub(super) fn abandon(self) {
        self.process.signal_kill();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(error) = self.destroy().await {
                tracing::error!(id = self.record.id, %error, "an abandoned VMM was not removed");
            }
        });
    }
}

/// Removes the cgroup, with whatever runs in it, and the socket.
pub(super) async fn remove_traces(record: &MachineRecord) -> Result<(), VmmError> {
    if let Some(path) = &record.cgroup {
        cgroup::remove(path).await?;
    }
    match std::fs::remove_file(&record.socket) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(VmmError::io("remove", &record.socket, source))
        }
        _ => Ok(()),
    }
}

/// Connects to a QEMU's control socket.
pub(super) async fn control(path: &Path) -> Result<Qmp, QmpError> {
    Qmp::negotiate(socket::connect(path).await?).await
}

#[derive(Debug)]
pub(super) struct QemuMachine {
    remains: Remains,
    qmp: Qmp,
}

impl QemuMachine {
    pub(super) fn new(remains: Remains, qmp: Qmp) -> Self {
        Self { remains, qmp }
    }

    /// Connects to a QEMU that an earlier agent started.
    pub(super) async fn connect(remains: Remains) -> Result<Self, VmmError> {
        let answer = tokio::time::timeout(ADOPT_TIMEOUT, control(&remains.record.socket)).await;
        let timeout = QmpError::Timeout { command: "qmp_capabilities".to_owned(), after: ADOPT_TIMEOUT };
        let qmp = answer.unwrap_or(Err(timeout))?;
        Ok(Self { remains, qmp })
    }

    fn process_error(&self, source: std::io::Error) -> VmmError {
        VmmError::io("read", Path::new(&format!("/proc/{}", self.remains.process.pid())), source)
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn record(&self) -> &MachineRecord {
        &self.remains.record
    }

    async fn exited(&self) -> ExitReason {
        self.remains.process.exited().await
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.remains.destroy().await
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.qmp.execute("stop", Value::Null).await?;
        Ok(())
    }

    async fn cont(&self) -> Result<(), VmmError> {
        self.qmp.execute("cont", Value::Null).await?;
        Ok(())
    }

    async fn status(&self) -> Result<RunState, VmmError> {
        #[derive(Deserialize)]
        struct Status {
            status: String,
        }
        let Status { status } = self.qmp.query("query-status").await?;
        Ok(match status.as_str() {
            "running" => RunState::Running,
            "paused" => RunState::Paused,
            _ => RunState::Other(status),
        })
    }

    fn cpu_time(&self) -> Result<Duration, VmmError> {
        self.remains.process.cpu_time().map_err(|source| self.process_error(source))
    }

    fn resident_bytes(&self) -> Result<u64, VmmError> {
        self.remains.process.resident_bytes().map_err(|source| self.process_error(source))
    }
}
