//! A VMM's process with the record of what belongs to it, and the one place where both go.

use std::path::Path;
use std::time::Duration;

use crate::launch::remove;
use crate::process::{self, Process};
use crate::{MachineRecord, VmmError, cgroup};

/// A process and the record of what belongs to it.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) process: Process,
    pub(crate) record: MachineRecord,
}

impl Remains {
    pub(crate) fn new(process: Process, record: MachineRecord) -> Self {
        Self { process, record }
    }

    /// The process of a record, if it still runs.
    pub(crate) fn find(record: MachineRecord) -> Result<Self, VmmError> {
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
    pub(crate) async fn destroy(&self) -> Result<(), VmmError> {
        self.process.kill().await?;
        remove_traces(&self.record).await
    }

    /// CPU time of the process since its start.
    pub(crate) fn cpu_time(&self) -> Result<Duration, VmmError> {
        self.process.cpu_time().map_err(|source| self.failed(source))
    }

    /// Bytes of physical memory that the process has mapped.
    pub(crate) fn resident_bytes(&self) -> Result<u64, VmmError> {
        self.process.resident_bytes().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> VmmError {
        VmmError::io("read", Path::new(&format!("/proc/{}", self.process.pid())), source)
    }

    /// [`destroy`](Self::destroy) where nobody waits: the signal is sent before this returns, the rest follows.
    pub(crate) fn abandon(self) {
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
pub(crate) async fn remove_traces(record: &MachineRecord) -> Result<(), VmmError> {
    if let Some(path) = &record.cgroup {
        cgroup::remove(path).await?;
    }
    remove(&record.socket)
}
