//! A machine with nothing of the platform around it: the kernel, initial file system, base image, network slot and VMM of
//! a capsule, started by this process.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;
use wrenn_agent::endpoint::Endpoint;
use wrenn_agent::images::Template;
use wrenn_agent::record::Record;
use wrenn_core::Shape;
use wrenn_core::limits::DEFAULT_MEMORY_MB;
use wrenn_disk::{Chain, Qcow2Disks, RootDisks};
use wrenn_net::{Network, NetworkConfig, Slot};
use wrenn_vmm::qemu::{KERNEL_CMDLINE, Qemu};
use wrenn_vmm::{Accelerator, AcceleratorChoice, DiskFiles, LaunchSpec, Machine, Start, Vmm};

/// How long a guest may take to answer.
const BOOT: Duration = Duration::from_secs(300);
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
    /// Those of the capsule with this record, on the platform in `dir`.
    fn of(dir: &Path, record: &Record) -> anyhow::Result<Self> {
        let template = Template::load(&dir.join("templates").join(&record.spec.template_path))?;
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

/// What one boot holds.
#[derive(Debug, Default)]
struct Held {
    slot: Option<Slot>,
    machine: Option<Arc<dyn Machine>>,
}

/// Boots one machine at a time.
#[derive(Debug)]
pub(crate) struct Bare {
    images: Images,
    shape: Shape,
    network: Network,
    disks: Qcow2Disks,
    vmm: Qemu,
    accel: Accelerator,
    cgroup: Option<PathBuf>,
    dir: PathBuf,
    held: Mutex<Held>,
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
    /// Prepares boots of what the capsule with this record was booted from, in an own directory `dir`.
    pub(crate) async fn open(platform: &Path, record: &Record, dir: PathBuf) -> anyhow::Result<Self> {
        let owner = format!("bench-{}", uuid::Uuid::new_v4());
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            images: Images::of(platform, record)?,
            shape: Shape { memory_mb: DEFAULT_MEMORY_MB, ..record.spec.shape },
            network: Network::open(NetworkConfig::new(&*owner, &*dir)).await?,
            disks: Qcow2Disks::default(),
            vmm: Qemu::detect(None).await?,
            accel: Accelerator::detect(AcceleratorChoice::Auto)?,
            cgroup: wrenn_vmm::cgroup::root().map(|root| root.join(format!("wrenn-{owner}"))),
            dir,
            held: Mutex::default(),
        })
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Boots a machine, waits for its daemon and removes it again.
    pub(crate) async fn boot(&self) -> anyhow::Result<Boot> {
        let begun = Instant::now();
        let (spec, disk, addr) = self.prepare().await?;
        let prepared = begun.elapsed();
        let begun = Instant::now();
        let machine = self.vmm.launch(spec).await?;
        self.held().machine = Some(machine.clone());
        machine.attach_disk(DiskFiles { base: &disk.base, layers: &disk.layers }).await?;
        machine.cont().await?;
        let daemon = Endpoint::new(addr, "");
        tokio::select! {
            () = daemon.wait_until_healthy() => {}
            how = machine.exited() => bail!("the bare machine ended: {how}"),
            () = tokio::time::sleep(BOOT) => bail!("the bare machine does not answer"),
        }
        let booted = begun.elapsed();
        self.clear().await?;
        Ok(Boot { prepared, booted })
    }

    async fn prepare(&self) -> anyhow::Result<(LaunchSpec, Chain, std::net::Ipv4Addr)> {
        let dir = self.dir.join("machine");
        std::fs::create_dir_all(dir.join("run"))?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o711))?;
        let slot = self.network.acquire().await?;
        let (addr, netns, tap) = (slot.guest_addr(), slot.netns_path(), slot.open_tap());
        let uid = UID_BASE + u32::from(slot.index().get());
        self.held().slot = Some(slot);
        let disk = self.disks.create(&dir, &self.images.disk, self.shape.disk_mb).await?;
        let spec = LaunchSpec {
            id: "bare".to_owned(),
            vcpus: self.shape.vcpus,
            memory_mb: self.shape.memory_mb,
            start: Start::Boot {
                kernel: self.images.kernel.clone(),
                initrd: self.images.initrd.clone(),
                cmdline: KERNEL_CMDLINE.to_owned(),
                memory: dir.join("memory"),
            },
            dir,
            netns,
            tap: tap?,
            uid,
            gid: uid,
            cgroup_parent: self.cgroup.clone(),
            accel: self.accel,
            tb_size_mb: TB_SIZE_MB,
        };
        Ok((spec, disk, addr))
    }

    /// Removes what a boot holds.
    async fn clear(&self) -> anyhow::Result<()> {
        let Held { slot, machine } = std::mem::take(&mut *self.held());
        if let Some(machine) = machine {
            machine.kill().await?;
        }
        if let Some(slot) = slot {
            slot.release().await?;
        }
        match std::fs::remove_dir_all(self.dir.join("machine")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Removes everything, also what an interrupted boot left.
    pub(crate) async fn close(&self) -> anyhow::Result<()> {
        self.clear().await?;
        if let Some(cgroup) = &self.cgroup {
            wrenn_vmm::cgroup::sweep(cgroup, |_| false).await?;
            // Made by the first boot only.
            let _ = std::fs::remove_dir(cgroup);
        }
        self.network.sweep(&BTreeSet::new()).await?;
        self.network.close().await?;
        std::fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}
