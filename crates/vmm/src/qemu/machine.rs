//! A running QEMU, and what is left of one.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use wrenn_image::Image;

use super::blocks;
use super::memory::GuestMemory;
use crate::launch::{STDERR, tail};
use crate::qmp::{Qmp, QmpError};
use crate::remains::Remains;
use crate::{
    DiskFiles, ExitReason, Machine, MachineRecord, MemorySaved, MemoryTarget, RunState, VmmError, socket,
};

/// A stuck QEMU accepts connections but never greets; an agent's start must not wait for it.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects to a QEMU's control socket.
pub(super) async fn control(path: &Path) -> Result<Qmp, QmpError> {
    Qmp::negotiate(socket::connect(path).await?).await
}

/// Pause between two looks at an incoming state.
const LOAD_POLL: Duration = Duration::from_micros(500);
/// The state of the devices is some kilobytes.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Name of the descriptor that the state of the devices is read from.
const STATE_FD: &str = "state";

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

    /// Runs `work` on the guest's memory, on a thread that may block.
    async fn on_memory<T: Send + 'static>(
        &self,
        work: impl FnOnce(&GuestMemory) -> Result<T, VmmError> + Send + 'static,
    ) -> Result<T, VmmError> {
        let (pid, key) = (self.remains.process.pid(), self.remains.record.memory);
        let done = tokio::task::spawn_blocking(move || work(&GuestMemory::find(pid, key)?))
            .await
            .map_err(|error| VmmError::io("read", Path::new(&format!("/proc/{pid}/mem")), error))?;
        // Had it ended meanwhile, the memory could have been of another process with its id.
        if self.remains.process.try_exit().is_some() {
            return Err(VmmError::Gone { id: self.remains.record.id.clone(), pid });
        }
        done
    }

    /// Waits until QEMU has taken the state of its devices, or says why not.
    async fn loaded(&self, path: &Path) -> Result<(), VmmError> {
        #[derive(Deserialize)]
        struct Migration {
            #[serde(default)]
            status: String,
        }
        let failed = || VmmError::Restore { path: path.to_path_buf(), said: self.said() };
        let wait = async {
            loop {
                let Migration { status } = self.qmp.query("query-migrate").await.map_err(|_| failed())?;
                match status.as_str() {
                    "completed" => return Ok(()),
                    "failed" | "cancelled" => return Err(failed()),
                    _ => tokio::time::sleep(LOAD_POLL).await,
                }
            }
        };
        tokio::time::timeout(LOAD_TIMEOUT, wait).await.unwrap_or_else(|_| Err(failed()))
    }

    /// The end of what QEMU has written to its standard error.
    fn said(&self) -> String {
        self.remains.record.socket.parent().map(|run| tail(&run.join(STDERR))).unwrap_or_default()
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

    async fn attach_disk(&self, disk: DiskFiles<'_>) -> Result<(), VmmError> {
        blocks::attach(&self.qmp, disk).await
    }

    async fn stage_disk(&self, layer: &Path) -> Result<(), VmmError> {
        blocks::stage(&self.qmp, layer).await
    }

    async fn unstage_disk(&self, layer: &Path) -> Result<(), VmmError> {
        blocks::unstage(&self.qmp, layer).await
    }

    async fn push_disk(&self, layer: &Path) -> Result<(), VmmError> {
        blocks::push(&self.qmp, layer).await
    }

    async fn disk_top(&self) -> Result<String, VmmError> {
        Ok(format!("{}.qcow2", blocks::top(&self.qmp).await?))
    }

    async fn resize_disk(&self, bytes: u64) -> Result<(), VmmError> {
        blocks::resize(&self.qmp, bytes).await
    }

    async fn save_devices(&self, path: &Path) -> Result<(), VmmError> {
        // QEMU looks for a descriptor that is open the way it would open the file: for writing alone.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| VmmError::io("make", path, source))?;
        let file = blocks::hand_over(&self.qmp, file.as_fd(), None).await?;
        self.qmp
            .execute("xen-save-devices-state", json!({ "filename": file.file_name(), "live": false }))
            .await?;
        Ok(())
    }

    async fn save_memory(&self, target: MemoryTarget) -> Result<MemorySaved, VmmError> {
        self.on_memory(move |memory| memory.save(&target)).await
    }

    async fn load_memory(&self, image: Arc<Image>) -> Result<(), VmmError> {
        self.on_memory(move |memory| memory.patch(&image)).await
    }

    async fn load_devices(&self, devices: &Path) -> Result<(), VmmError> {
        let file = std::fs::File::open(devices).map_err(|source| VmmError::io("open", devices, source))?;
        self.qmp.execute_with("getfd", json!({ "fdname": STATE_FD }), file.as_fd()).await?;
        self.qmp.execute("migrate-incoming", json!({ "uri": format!("fd:{STATE_FD}") })).await?;
        self.loaded(devices).await
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
            "paused" | "prelaunch" | "inmigrate" => RunState::Paused,
            // What an error of a write leads to by default, if it is this one; others are told to the guest.
            "io-error" => RunState::DiskFull,
            _ => RunState::Other(status),
        })
    }

    fn cpu_time(&self) -> Result<Duration, VmmError> {
        self.remains.cpu_time()
    }

    fn resident_bytes(&self) -> Result<u64, VmmError> {
        self.remains.resident_bytes()
    }
}
