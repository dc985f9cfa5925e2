//! A bare restore: what a resumed guest cannot do without.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::ensure;
use tokio::time::Instant;
use wrenn_agent::endpoint::Endpoint;
use wrenn_disk::{Chain, RootDisks};
use wrenn_image::Image;
use wrenn_vmm::{LaunchSpec, Machine, MemoryTarget, Start};

use super::{Bare, within_reason};
use crate::warm::Warm;

/// Pause after a request that had no good answer.
const PAUSE: Duration = Duration::from_millis(25);

/// Everything that a restore needs, prepared.
#[derive(Debug)]
pub(crate) struct Ready {
    number: u32,
    addr: Ipv4Addr,
    spec: LaunchSpec,
    disk: Chain,
    image: Arc<Image>,
    devices: PathBuf,
}

/// A restored machine whose daemon has answered. It is held until it is removed.
#[derive(Debug)]
pub(crate) struct Restored {
    /// From the start of the VMM to the daemon's first answer.
    pub(crate) took: Duration,
    /// The address of the guest, whose daemon demands no token.
    pub(crate) addr: Ipv4Addr,
    number: u32,
    dir: PathBuf,
    machine: Arc<dyn Machine>,
    image: Arc<Image>,
}

impl Bare {
    /// Shares the files of a warm template, which the platform may drop or make anew at any time.
    pub(crate) async fn keep(&self, warm: Warm) -> anyhow::Result<Warm> {
        let dir = self.dir.join(format!("template-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&dir)?;
        let saved = warm.saved.link(&warm.dir, &dir, &self.disks).await?;
        Ok(Warm { dir, saved, ..warm })
    }

    /// Shares the files of a warm template with a new directory, checks them, and takes a slot.
    pub(crate) async fn ready(&self, warm: &Warm) -> anyhow::Result<Ready> {
        let place = self.place().await?;
        let saved = warm.saved.link(&warm.dir, &place.dir, &self.disks).await?;
        let (own, dir) = (saved.clone(), place.dir.clone());
        let image = tokio::task::spawn_blocking(move || own.open(&dir, &own.fits)).await??;
        ensure!(image.layers() == 0, "the warm template in {} has no flat memory", warm.dir.display());
        let disk = self.disks.open(&place.dir, &saved.disk).await?;
        let disk = self.disks.push(&disk, None).await?;
        let (number, addr, devices) = (place.number, place.addr, place.dir.join(&saved.devices));
        let start = Start::Restore { base: image.base_path() };
        let spec = self.launch_spec(place, saved.shape.memory_mb, start);
        Ok(Ready { number, addr, spec, disk, image, devices })
    }

    /// Restores a machine and waits for its daemon.
    pub(crate) async fn restore(&self, ready: Ready) -> anyhow::Result<Restored> {
        let Ready { number, addr, spec, disk, image, devices } = ready;
        let dir = spec.dir.clone();
        let begun = Instant::now();
        let machine = self.launch(number, spec, &disk).await?;
        machine.load_memory(image.clone()).await?;
        machine.load_devices(&devices).await?;
        machine.cont().await?;
        first_answer(&*machine, addr).await?;
        Ok(Restored { took: begun.elapsed(), addr, number, dir, machine, image })
    }

    /// Removes a restored machine.
    pub(crate) async fn remove(&self, restored: Restored) -> anyhow::Result<()> {
        self.clear(restored.number).await
    }

    /// Prepares a restore, times it and removes the machine.
    pub(crate) async fn time_restore(&self, warm: &Warm) -> anyhow::Result<Duration> {
        let restored = self.restore(self.ready(warm).await?).await?;
        let took = restored.took;
        self.remove(restored).await?;
        Ok(took)
    }
}

impl Restored {
    /// Process id of the VMM.
    pub(crate) fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// How long the guest stands still while everything that it has written is copied to files.
    pub(crate) async fn copy_stopped(&self) -> anyhow::Result<Duration> {
        let (memory, devices) = (self.dir.join("copy.layer"), self.dir.join("copy.devices"));
        let begun = Instant::now();
        self.machine.pause().await?;
        let target = MemoryTarget::Layer { path: memory.clone(), parent: self.image.clone() };
        self.machine.save_memory(target).await?;
        self.machine.save_devices(&devices).await?;
        self.machine.cont().await?;
        let took = begun.elapsed();
        [&*memory, &*devices].into_iter().try_for_each(|path: &Path| std::fs::remove_file(path))?;
        Ok(took)
    }
}

/// Waits for the daemon of a guest that is there already and has only to run: a single request, which the guest finds in
/// its network device.
async fn first_answer(machine: &dyn Machine, addr: Ipv4Addr) -> anyhow::Result<()> {
    let daemon = Endpoint::new(addr, "");
    let healthy = async {
        while !daemon.healthy().await {
            tokio::time::sleep(PAUSE).await;
        }
    };
    within_reason(machine, healthy).await
}
