//! A running Firecracker.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use tokio::sync::watch;
use wrenn_image::Image;

use super::api::{Api, ApiError};
use super::ending::Ending;
use super::launch::{INCOMPLETE, LaunchFacts, OWN, PAGER_RECORD, PAGER_STDERR, SOCKET, View};
use super::memory::{MemoryFile, open_given};
use super::room::RoomKeeper;
use super::state::Devices;
use super::types::{
    Action, DRIVE, Drive, INTERFACE, InstanceInfo, MemoryBackend, PartialDrive, PartialNetworkInterface,
    RateLimiter, SnapshotCreate, SnapshotLoad, Vm,
};
use super::{Firecracker, nodes};
use crate::confine::VIEW;
use crate::launch::{MIB, STDERR, make, remove, remove_tree, tail};
use crate::pager::{Job, Pager, PagerRecord};
use crate::remains::{self, Remains};
use crate::{
    DiskFiles, ExitReason, Machine, MachineRecord, MemorySaved, MemoryTarget, RunState, VmmError, socket,
};

/// Firecracker brings what it writes to the disk; this much a second is less than a slow one does.
const SNAPSHOT_MB_PER_SECOND: u64 = 16;
/// What a snapshot may take beside that.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a VMM that an earlier agent started may take to answer.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(300);
/// The pager ends with its VMM, which may take a moment to be gone itself.
const SAME_END: Duration = Duration::from_secs(2);

/// Bytes of state that a machine can have; it is some tens of kilobytes.
const MOST_STATE: u64 = 64 << 20;

/// In the VMM's own directory: all that the guest has written in this run, from the first snapshot of it on.
const MEMORY: &str = "memory";
/// State of CPUs and devices, as Firecracker writes and reads it.
const STATE: &str = "state";
/// A snapshot's memory in one file, for a machine that maps it.
const FLAT: &str = "flat";
/// Where the pager listens.
const PAGER_SOCKET: &str = "pager.sock";

#[derive(Debug)]
pub(super) struct FirecrackerMachine {
    remains: Arc<Remains>,
    driver: Firecracker,
    api: Arc<Api>,
    /// User and group of the VMM.
    ids: (u32, u32),
    egress: Option<u64>,
    /// It was started for a snapshot.
    restores: bool,
    /// Version of the running VMM, which may be older than the one that is installed.
    version: String,
    /// What [`Machine::load_memory`] brought, until [`Machine::load_devices`] uses it.
    image: Mutex<Option<Arc<Image>>>,
    pager: watch::Sender<Option<Arc<Pager>>>,
    ending: Arc<Ending>,
    room: RoomKeeper,
}

impl FirecrackerMachine {
    pub(super) fn new(
        driver: Firecracker,
        (remains, api, view, version): (Remains, Api, View, String),
        facts: LaunchFacts,
    ) -> Self {
        let (api, remains) = (Arc::new(api), Arc::new(remains));
        let ending = Arc::new(Ending::new(&remains));
        Self {
            room: RoomKeeper::new(&api, &driver.devices, &ending, &remains.record.id),
            remains,
            driver,
            api,
            ids: (facts.uid, facts.gid),
            egress: facts.egress,
            restores: view.restores,
            version,
            image: Mutex::default(),
            pager: watch::Sender::new(None),
            ending,
        }
    }

    /// Connects to a Firecracker that an earlier agent started.
    pub(super) async fn connect(driver: Firecracker, remains: Remains) -> Result<Self, VmmError> {
        let run = run_of(&remains.record);
        let own = run.join(OWN);
        let meta = std::fs::metadata(&own).map_err(|source| VmmError::io("look at", &own, source))?;
        let api = Arc::new(Api::open(&run, SOCKET)?);
        api.expect(remains.record.pid);
        // It may be writing a snapshot that the agent before has asked for, and answers nothing meanwhile.
        let info = api.get_within::<InstanceInfo>("/", ADOPT_TIMEOUT);
        let info = tokio::select! {
            info = info => info?,
            _ = remains.process.exited() => {
                return Err(VmmError::Gone { id: remains.record.id.clone(), pid: remains.record.pid });
            }
        };
        let pager = match std::fs::read(run.join(PAGER_RECORD)) {
            Ok(bytes) => find_pager(&bytes, &run)?,
            Err(_none) => None,
        };
        let remains = Arc::new(remains);
        let ending = Arc::new(Ending::new(&remains));
        let machine = Self {
            room: RoomKeeper::new(&api, &driver.devices, &ending, &remains.record.id),
            remains,
            driver,
            api,
            ids: (meta.uid(), meta.gid()),
            egress: None,
            restores: true,
            version: info.vmm_version,
            image: Mutex::default(),
            pager: watch::Sender::new(None),
            ending,
        };
        if let Some(pager) = pager {
            machine.supervise(Arc::new(pager));
        }
        if let Err(error) = machine.driver.devices.settle(machine.owner()).await {
            tracing::warn!(id = machine.owner(), %error, "a disk layer that was staged stays until the machine ends");
        }
        machine.room.start();
        Ok(machine)
    }

    fn owner(&self) -> &str {
        &self.remains.record.id
    }

    /// The end of what Firecracker, and its pager, have written.
    fn said(&self) -> String {
        let said = [STDERR, PAGER_STDERR].map(|name| tail(&self.api.beside(name)));
        said.join(" ").trim().to_owned()
    }

    /// Resolves when the pager has ended, if there is one.
    async fn pager_ended(&self) {
        let mut pagers = self.pager.subscribe();
        let pager = pagers.wait_for(Option::is_some).await.ok().and_then(|pager| pager.clone());
        match pager {
            Some(pager) => drop(pager.exited().await),
            None => std::future::pending().await,
        }
    }

    /// A call of Firecracker, which hangs for as long as nobody serves its memory.
    async fn call<T>(&self, call: impl Future<Output = Result<T, ApiError>>) -> Result<T, VmmError> {
        tokio::select! {
            biased;
            answer = call => Ok(answer?),
            () = self.pager_ended() => Err(VmmError::MemoryLost { said: self.said() }),
        }
    }

    async fn state(&self) -> Result<String, VmmError> {
        Ok(self.call(self.api.get::<InstanceInfo>("/")).await?.state)
    }

    async fn memory_bytes(&self) -> Result<u64, VmmError> {
        #[derive(Deserialize)]
        struct Config {
            mem_size_mib: u64,
        }
        let Config { mem_size_mib } = self.call(self.api.get("/machine-config")).await?;
        Ok(mem_size_mib * MIB)
    }

    fn own(&self, name: &str) -> PathBuf {
        self.api.beside(OWN).join(name)
    }

    /// Has Firecracker write its state and what the guest has written.
    async fn create_snapshot(&self, bytes: u64) -> Result<(), VmmError> {
        let (memory, incomplete) = (self.own(MEMORY), self.api.beside(INCOMPLETE));
        let is_first = std::fs::symlink_metadata(&memory).is_err();
        let create = SnapshotCreate {
            // After one that may have forgotten pages: slow, and right whatever became of that.
            snapshot_type: if incomplete.exists() { "Full" } else { "Diff" },
            snapshot_path: &seen(STATE),
            mem_file_path: &seen(MEMORY),
        };
        let limit = SNAPSHOT_TIMEOUT + Duration::from_secs(bytes / MIB / SNAPSHOT_MB_PER_SECOND);
        let made = self.call(self.api.put_within("/snapshot/create", &create, limit)).await;
        match &made {
            Ok(()) => remove(&incomplete)?,
            // It counts the pages as written again where it could not write them, but not where the disk failed to confirm
            // them; and one that does not answer may yet come to its end.
            Err(VmmError::Api(ApiError::Refused { message, .. })) if !message.contains("sync") => {
                if is_first {
                    // The room that it takes may be what is missing.
                    let _absent = std::fs::remove_file(&memory);
                }
            }
            Err(_) => drop(make(File::options().write(true), &incomplete)?),
        }
        made
    }

    /// Starts whoever serves the memory of a paged machine; the backend to name to Firecracker.
    async fn start_pager(
        &self,
        image: &Image,
        touched: Vec<std::ops::Range<u64>>,
    ) -> Result<String, VmmError> {
        let path = self.own(PAGER_SOCKET);
        let listener = socket::listen(&path).map_err(|source| VmmError::io("listen at", &path, source))?;
        lchown(&path, Some(self.ids.0), Some(self.ids.1))
            .map_err(|source| VmmError::io("change the owner of", &path, source))?;
        let job = Job {
            image: image.header_path(),
            socket: listener,
            vmm: self.remains.process.descriptor(),
            uid: self.ids.0,
            gid: self.ids.1,
            cgroup: self.remains.record.cgroup.as_deref(),
            stderr: make(File::options().write(true).truncate(true), &self.api.beside(PAGER_STDERR))?,
            prefetch: touched,
        };
        let pager = Arc::new(Pager::start(&self.driver.pager, job).await?);
        self.supervise(Arc::clone(&pager));
        let record = serde_json::to_vec(&pager.record()).unwrap_or_default();
        let path = self.api.beside(PAGER_RECORD);
        std::fs::write(&path, record).map_err(|source| VmmError::io("write", &path, source))?;
        Ok(seen(PAGER_SOCKET))
    }

    /// Ends the machine when its pager has ended: it stands still for good then.
    fn supervise(&self, pager: Arc<Pager>) {
        self.pager.send_replace(Some(Arc::clone(&pager)));
        let ending = Arc::clone(&self.ending);
        tokio::spawn(async move {
            pager.exited().await;
            if tokio::time::timeout(SAME_END, ending.exited()).await.is_err() {
                ending.end(ExitReason::MemoryLost);
            }
        });
    }

    /// The file that a mapped machine maps: the base itself where nothing lies over it.
    async fn flat(&self, image: Arc<Image>) -> Result<String, VmmError> {
        let path = self.own(FLAT);
        // A link, because a VMM that waited for this capsule saw nothing of its directory when it was started.
        if image.layers() == 0 && std::fs::hard_link(image.base_path(), &path).is_ok() {
            return Ok(seen(FLAT));
        }
        let to = path.clone();
        tokio::task::spawn_blocking(move || image.materialise(&to, false))
            .await
            .map_err(|error| VmmError::io("write", &path, std::io::Error::other(error)))??;
        open_given(&path)?
            .set_permissions(Permissions::from_mode(0o444))
            .map_err(|source| VmmError::io("change the mode of", &path, source))?;
        Ok(seen(FLAT))
    }

    async fn load(&self, path: &Path, image: Arc<Image>) -> Result<(), VmmError> {
        let bytes = std::fs::read(path).map_err(|source| VmmError::io("read", path, source))?;
        let damaged = || VmmError::BadPath {
            what: "the state of a machine's devices",
            path: path.to_path_buf(),
            reason: "it is none of this driver's".to_owned(),
        };
        let Devices { state, touched } = Devices::decode(&bytes).ok_or_else(damaged)?;
        let file = self.own(STATE);
        let mut made = make(File::options().write(true).create_new(true), &file)?;
        let written = made.write_all(&state).and_then(|()| fchown(&made, Some(self.ids.0), Some(self.ids.1)));
        written.map_err(|source| VmmError::io("write", &file, source))?;
        let (backend_type, backend_path) = match self.driver.restore.maps(image.layers()) {
            true => ("File", self.flat(image).await?),
            false => ("Uffd", self.start_pager(&image, touched).await?),
        };
        let load = SnapshotLoad {
            snapshot_path: &seen(STATE),
            mem_backend: MemoryBackend { backend_type, backend_path: &backend_path },
            track_dirty_pages: true,
            resume_vm: false,
        };
        let loaded = self.call(self.api.put_within("/snapshot/load", &load, SNAPSHOT_TIMEOUT)).await;
        if let Err(error) = loaded {
            return Err(VmmError::Restore {
                path: path.to_path_buf(),
                said: format!("{error}; {}", self.said()),
            });
        }
        let interface =
            PartialNetworkInterface { iface_id: INTERFACE, tx_rate_limiter: RateLimiter::of(self.egress) };
        self.call(self.api.patch("/network-interfaces/eth0", &interface)).await
    }
}

/// The VMM's path of a file in its own directory.
fn seen(name: &str) -> String {
    Path::new(VIEW).join(OWN).join(name).to_string_lossy().into_owned()
}

/// The machine's `run`, as its record has it.
fn run_of(record: &MachineRecord) -> PathBuf {
    let run = record.socket.parent().and_then(Path::parent);
    run.map(Path::to_path_buf).unwrap_or_default()
}

fn find_pager(bytes: &[u8], run: &Path) -> Result<Option<Pager>, VmmError> {
    let path = run.join(PAGER_RECORD);
    let record: PagerRecord =
        serde_json::from_slice(bytes).map_err(|error| VmmError::io("read", &path, error))?;
    match Pager::adopt(&record)? {
        Some(pager) => Ok(Some(pager)),
        None => Err(VmmError::MemoryLost { said: tail(&run.join(PAGER_STDERR)) }),
    }
}

/// Gives back what a machine holds when its process is gone.
pub(super) async fn release(driver: &Firecracker, record: &MachineRecord) -> Result<(), VmmError> {
    driver.devices.detach(&record.id).await?;
    remains::remove_traces(record).await?;
    // When nothing writes to it any more. Whatever lies there was only for the run.
    remove_tree(&run_of(record).join(OWN))
}

#[async_trait]
impl Machine for FirecrackerMachine {
    fn record(&self) -> &MachineRecord {
        &self.remains.record
    }

    async fn exited(&self) -> ExitReason {
        self.ending.exited().await
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.room.stop();
        // First the process, then what it has open.
        self.remains.process.kill().await?;
        let pager = self.pager.borrow().clone();
        if let Some(pager) = pager {
            pager.kill().await?;
        }
        remove_tree(&self.api.beside(OWN))?;
        release(&self.driver, &self.remains.record).await
    }

    async fn attach_disk(&self, disk: DiskFiles<'_>) -> Result<(), VmmError> {
        let number = self.driver.devices.attach(self.owner(), disk).await?;
        nodes::make_disk(&self.api.beside(nodes::DISK), number, self.ids.0, self.ids.1)?;
        self.room.start();
        if self.restores {
            // It comes with the state of the devices, by the path that it always has.
            return Ok(());
        }
        let drive = Drive {
            drive_id: DRIVE,
            path_on_host: &disk_path(),
            // The initial file system knows what to do with it.
            is_root_device: false,
            is_read_only: false,
            // A guest's flush reaches the host's page cache and no further, as with every driver.
            cache_type: "Unsafe",
            io_engine: "Sync",
        };
        self.call(self.api.put("/drives/root", &drive)).await
    }

    async fn stage_disk(&self, layer: &Path) -> Result<(), VmmError> {
        Ok(self.driver.devices.stage(self.owner(), layer).await?)
    }

    async fn unstage_disk(&self, layer: &Path) -> Result<(), VmmError> {
        Ok(self.driver.devices.unstage(self.owner(), layer).await?)
    }

    async fn push_disk(&self, layer: &Path) -> Result<(), VmmError> {
        Ok(self.driver.devices.push(self.owner(), layer).await?)
    }

    async fn disk_top(&self) -> Result<String, VmmError> {
        Ok(self.driver.devices.top(self.owner()).await?)
    }

    async fn resize_disk(&self, bytes: u64) -> Result<(), VmmError> {
        self.driver.devices.grow(self.owner(), bytes).await?;
        let drive = PartialDrive { drive_id: DRIVE, path_on_host: &disk_path() };
        self.call(self.api.patch("/drives/root", &drive)).await
    }

    fn vmm_version(&self) -> Option<&str> {
        Some(&self.version)
    }

    fn copies_while_running(&self) -> bool {
        false
    }

    async fn save_devices(&self, path: &Path) -> Result<(), VmmError> {
        let (bytes, memory, file) = (self.memory_bytes().await?, self.own(MEMORY), self.own(STATE));
        let to = path.to_path_buf();
        let write = move || {
            let touched = MemoryFile::open(&memory, bytes)?.ranges()?;
            let mut state = Vec::new();
            let read = open_given(&file)?.take(MOST_STATE).read_to_end(&mut state);
            read.map_err(|source| VmmError::io("read", &file, source))?;
            make(File::options().write(true).create_new(true), &to)?
                .write_all(&Devices { state, touched }.encode())
                .map_err(|source| VmmError::io("write", &to, source))
        };
        on_disk(path, write).await
    }

    async fn save_memory(&self, target: MemoryTarget) -> Result<MemorySaved, VmmError> {
        let bytes = self.memory_bytes().await?;
        self.create_snapshot(bytes).await?;
        // A request that reached the VMM as the guest was being stopped has been served by now, and not before.
        self.driver.devices.flush(self.owner()).await?;
        let memory = self.own(MEMORY);
        let path = memory.clone();
        on_disk(&path, move || MemoryFile::open(&memory, bytes)?.save(&target)).await
    }

    async fn load_memory(&self, image: Arc<Image>) -> Result<(), VmmError> {
        let checked = Arc::clone(&image);
        let path = image.header_path().to_path_buf();
        // Whoever serves it from here on can only end where it is damaged.
        on_disk(&path, move || Ok(checked.verify_layers()?)).await?;
        *self.image.lock().unwrap_or_else(PoisonError::into_inner) = Some(image);
        Ok(())
    }

    async fn load_devices(&self, devices: &Path) -> Result<(), VmmError> {
        let image = self.image.lock().unwrap_or_else(PoisonError::into_inner).take();
        let image = image.ok_or(VmmError::NoMemory { pid: self.remains.record.pid })?;
        self.load(devices, image).await
    }

    async fn set_metadata(&self, data: &serde_json::Value) -> Result<(), VmmError> {
        self.call(self.api.put("/mmds", data)).await
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.call(self.api.patch("/vm", &Vm { state: "Paused" })).await?;
        self.room.rest().await;
        Ok(self.driver.devices.flush(self.owner()).await?)
    }

    async fn cont(&self) -> Result<(), VmmError> {
        let (_nobody_looks, full) = self.room.resume().await;
        if full {
            return Ok(());
        }
        match self.state().await?.as_str() {
            "Running" => Ok(()),
            "Not started" => {
                self.call(self.api.put("/actions", &Action { action_type: "InstanceStart" })).await
            }
            _ => self.call(self.api.patch("/vm", &Vm { state: "Resumed" })).await,
        }
    }

    async fn status(&self) -> Result<RunState, VmmError> {
        let state = self.state().await?;
        Ok(match state.as_str() {
            "Running" => RunState::Running,
            "Paused" | "Not started" if self.room.was_full() => RunState::DiskFull,
            "Paused" | "Not started" => RunState::Paused,
            _ => RunState::Other(state),
        })
    }

    fn cpu_time(&self) -> Result<Duration, VmmError> {
        self.remains.cpu_time()
    }

    fn resident_bytes(&self) -> Result<u64, VmmError> {
        self.remains.resident_bytes()
    }
}

fn disk_path() -> String {
    Path::new(VIEW).join(nodes::DISK).to_string_lossy().into_owned()
}

/// Runs what reads and writes files on a thread that may block.
async fn on_disk<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, VmmError> + Send + 'static,
) -> Result<T, VmmError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| VmmError::io("work on", path, std::io::Error::other(error)))?
}
