//! Machines with nothing of the platform around them: what a capsule is booted or restored from, its network slot and its
//! VMM, started by this process.

mod restore;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;
use wrenn_agent::endpoint::Endpoint;
use wrenn_agent::images::Template;
use wrenn_core::limits::{DEFAULT_DISK_MB, DEFAULT_MEMORY_MB, DEFAULT_VCPUS};
use wrenn_disk::{Chain, Qcow2Disks, RootDisks};
use wrenn_net::{Network, NetworkConfig, Slot};
use wrenn_vmm::qemu::{KERNEL_CMDLINE, Qemu};
use wrenn_vmm::{Accelerator, AcceleratorChoice, DiskFiles, LaunchSpec, Machine, Start, Vmm};

/// How long a guest may take to answer.
const ANSWER: Duration = Duration::from_secs(300);
/// First user id of the VMMs; the slot's number is added, which is unique on a machine.
const UID_BASE: u32 = 1_900_000_000;
/// Translation buffer in MiB, as the agent sets it.
const TB_SIZE_MB: u32 = 64;

/// What a capsule is booted from.
#[derive(Debug, Clone)]
struct Images {
    kernel: PathBuf,
    initrd: PathBuf,
    disk: PathBuf,
}

impl Images {
    /// Those of the template whose directory below `templates/` of the platform in `dir` is `path`.
    fn of(dir: &Path, path: &Path) -> anyhow::Result<Self> {
        let template = Template::load(&dir.join("templates").join(path))?;
        let kernels = dir.join("kernels").join(&template.kernel);
        let kernel = ["vmlinux", "bzImage"].map(|name| kernels.join(name)).into_iter().find(|it| it.exists());
        let initrd = newest(&kernels, "initramfs-")?;
        Ok(Self { kernel: kernel.context("the platform has no kernel")?, initrd, disk: template.disk })
    }
}

/// The file that was made last among those whose names begin so.
fn newest(dir: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir(dir)?.filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .max_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok())
        .map(|entry| entry.path())
        .with_context(|| format!("{} has no {prefix}*", dir.display()))
}

/// What one machine holds.
#[derive(Debug, Default)]
struct Held {
    slot: Option<Slot>,
    machine: Option<Arc<dyn Machine>>,
}

/// Where one machine goes: its number among those held, its directory and its slot.
#[derive(Debug)]
struct Place {
    number: u32,
    dir: PathBuf,
    addr: Ipv4Addr,
    netns: PathBuf,
    tap: OwnedFd,
    uid: u32,
}

/// Boots and restores machines.
#[derive(Debug)]
pub(crate) struct Bare {
    images: Images,
    network: Network,
    disks: Qcow2Disks,
    vmm: Qemu,
    accel: Accelerator,
    cgroup: Option<PathBuf>,
    dir: PathBuf,
    next: AtomicU32,
    held: Mutex<BTreeMap<u32, Held>>,
}

/// How long one boot took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boot {
    /// From nothing to a network slot and a disk.
    pub(crate) prepared: Duration,
    /// From the start of the VMM to the daemon's first answer.
    pub(crate) booted: Duration,
}

impl Bare {
    /// Prepares machines of what capsules of this template are booted from, in an own directory `dir` on the platform's
    /// file system.
    pub(crate) async fn open(platform: &Path, template: &Path, dir: PathBuf) -> anyhow::Result<Self> {
        let owner = format!("bench-{}", uuid::Uuid::new_v4());
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            images: Images::of(platform, template)?,
            network: Network::open(NetworkConfig::new(&*owner, &*dir)).await?,
            disks: Qcow2Disks::default(),
            vmm: Qemu::detect(None).await?,
            accel: Accelerator::detect(AcceleratorChoice::Auto)?,
            cgroup: wrenn_vmm::cgroup::root().map(|root| root.join(format!("wrenn-{owner}"))),
            dir,
            next: AtomicU32::new(0),
            held: Mutex::default(),
        })
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Boots a machine, waits for its daemon and removes it again.
    pub(crate) async fn boot(&self) -> anyhow::Result<Boot> {
        let begun = Instant::now();
        let place = self.place().await?;
        let disk = self.disks.create(&place.dir, &self.images.disk, DEFAULT_DISK_MB).await?;
        let start = Start::Boot {
            kernel: self.images.kernel.clone(),
            initrd: self.images.initrd.clone(),
            cmdline: KERNEL_CMDLINE.to_owned(),
            memory: place.dir.join("memory"),
        };
        let (number, addr) = (place.number, place.addr);
        let spec = self.launch_spec(place, DEFAULT_MEMORY_MB, start);
        let prepared = begun.elapsed();
        let begun = Instant::now();
        let machine = self.launch(number, spec, &disk).await?;
        machine.cont().await?;
        answer(&*machine, addr).await?;
        let booted = begun.elapsed();
        self.clear(number).await?;
        Ok(Boot { prepared, booted })
    }

    /// A directory and a slot, held until they are cleared.
    async fn place(&self) -> anyhow::Result<Place> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.held().insert(number, Held::default());
        let dir = self.machine_dir(number);
        std::fs::create_dir_all(dir.join("run"))?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o711))?;
        let slot = self.network.acquire().await?;
        let (addr, netns, tap) = (slot.guest_addr(), slot.netns_path(), slot.open_tap());
        let uid = UID_BASE + u32::from(slot.index().get());
        self.held().entry(number).or_default().slot = Some(slot);
        Ok(Place { number, dir, addr, netns, tap: tap?, uid })
    }

    fn machine_dir(&self, number: u32) -> PathBuf {
        self.dir.join(format!("machine-{number}"))
    }

    fn launch_spec(&self, place: Place, memory_mb: u32, start: Start) -> LaunchSpec {
        LaunchSpec {
            id: format!("bare-{}", place.number),
            vcpus: DEFAULT_VCPUS,
            memory_mb,
            start,
            dir: place.dir,
            netns: place.netns,
            tap: place.tap,
            mac: wrenn_net::GUEST_MAC,
            uid: place.uid,
            gid: place.uid,
            cgroup_parent: self.cgroup.clone(),
            accel: self.accel,
            tb_size_mb: TB_SIZE_MB,
            egress_bytes_per_second: None,
        }
    }

    /// Starts the VMM, with its disk and with the guest standing still.
    async fn launch(&self, number: u32, spec: LaunchSpec, disk: &Chain) -> anyhow::Result<Arc<dyn Machine>> {
        let machine = self.vmm.launch(spec).await?;
        self.held().entry(number).or_default().machine = Some(machine.clone());
        machine.attach_disk(DiskFiles { base: &disk.base, layers: &disk.layers }).await?;
        Ok(machine)
    }

    /// Removes what a machine holds.
    async fn clear(&self, number: u32) -> anyhow::Result<()> {
        let Held { slot, machine } = self.held().remove(&number).unwrap_or_default();
        if let Some(machine) = machine {
            machine.kill().await?;
        }
        if let Some(slot) = slot {
            slot.release().await?;
        }
        match std::fs::remove_dir_all(self.machine_dir(number)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Removes everything, also what an interrupted measurement left.
    pub(crate) async fn close(&self) -> anyhow::Result<()> {
        let left: Vec<u32> = self.held().keys().copied().collect();
        for number in left {
            self.clear(number).await?;
        }
        if let Some(cgroup) = &self.cgroup {
            wrenn_vmm::cgroup::sweep(cgroup, |_| false).await?;
            // Made by the first machine only.
            let _ = std::fs::remove_dir(cgroup);
        }
        self.network.sweep(&BTreeSet::new()).await?;
        self.network.close().await?;
        std::fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}

/// Waits for the first answer of the daemon of a guest that boots.
async fn answer(machine: &dyn Machine, addr: Ipv4Addr) -> anyhow::Result<()> {
    let daemon = Endpoint::new(addr, "");
    within_reason(machine, daemon.wait_until_healthy()).await
}

/// What `wait` gives, unless the machine ends or that takes for ever.
async fn within_reason<T>(machine: &dyn Machine, wait: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::select! {
        done = wait => Ok(done),
        how = machine.exited() => bail!("the bare machine ended: {how}"),
        () = tokio::time::sleep(ANSWER) => bail!("the bare machine does not answer"),
    }
}
