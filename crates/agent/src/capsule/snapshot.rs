//! A snapshot of a capsule in a directory of its own, for a template or for copies of it.
//!
//! A running capsule is stopped for the shortest time that its memory allows: what it has written is copied while it
//! runs, and copied again where it changed meanwhile while it stands still. Its disk goes on in a new layer, so that the
//! one under it can be shared.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};
use wrenn_disk::Chain;
use wrenn_image::{BLOCK_BYTES, BaseWriter, Image, MAX_LAYERS};
use wrenn_vmm::{Machine, MemorySaved};

use super::actor::Actor;
use super::pause::{over, with_room, write_memory};
use super::{Phase, Snapshot};
use crate::error::CapsuleError;
use crate::fault;
use crate::files;
use crate::saved::{About, Saved, new_stem};

const MIB: u64 = 1 << 20;

/// What a snapshot is for.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotPlan {
    /// An empty directory on the file system of the data directory.
    pub(crate) dir: PathBuf,
    /// Machines that will be made of it, as far as that is known. Each has to be given the layers, whereas a base is
    /// mapped; so layers that are many or often used are worth being written into a new base.
    pub(crate) uses: u32,
}

/// What comes out of the time in which the guest stands still.
struct Still {
    memory: PathBuf,
    devices: PathBuf,
}

impl Actor {
    /// Writes a snapshot; the capsule is afterwards what it was.
    pub(super) async fn snapshot(&mut self, plan: &SnapshotPlan) -> Result<Snapshot, CapsuleError> {
        let saved = match self.record.phase {
            Phase::Running => self.snapshot_running(plan, self.about()?).await?,
            _ => self.snapshot_paused(plan).await?,
        };
        Ok(Snapshot { dir: plan.dir.clone(), saved, defaults: self.record.defaults.clone() })
    }

    async fn snapshot_paused(&self, plan: &SnapshotPlan) -> Result<Saved, CapsuleError> {
        let gone = || CapsuleError::Stopping(self.capsule.id());
        let saved = self.record.saved.clone().ok_or_else(gone)?;
        let driver = self.driver()?;
        let (dir, here, check) = (self.dir.clone(), driver.fits.clone(), saved.clone());
        crate::blocking(move || check.open(&dir, &here)).await?;
        let linked = saved.link(&self.dir, &plan.dir, &*driver.disks).await?;
        let chain = driver.disks.open(&plan.dir, &linked.disk).await?;
        let (dir, uses) = (plan.dir.clone(), plan.uses);
        crate::blocking(move || {
            let image = Image::open(&dir.join(&linked.memory))?;
            let devices = dir.join(&linked.devices);
            finish(image, &devices, &chain, linked.about(), uses)
        })
        .await
    }

    /// The same for a running capsule, whose daemon answers to what `about` says.
    pub(super) async fn snapshot_running(
        &mut self,
        plan: &SnapshotPlan,
        about: About,
    ) -> Result<Saved, CapsuleError> {
        let gone = || CapsuleError::Stopping(self.capsule.id());
        let machine = self.held.machine.clone().ok_or_else(gone)?;
        let top = self.record.disk.clone().unwrap_or_default();
        let disks = Arc::clone(&self.driver()?.disks);
        let old = disks.open(&self.dir, &top).await?;
        let next = disks.push(&old, None).await?;
        if let Err(failure) = machine.stage_disk(next.top()).await {
            self.clear_up().await;
            return Err(failure.into());
        }
        let taken = self.take(plan, &*machine, &next).await;
        // The guest goes on whatever became of that, and the VMM knows on which layer.
        let went_on = machine.cont().await;
        if taken.is_ok() {
            self.record.disk = Some(next.top_name().to_owned());
        }
        self.save();
        fault::point("snapshot.continued");
        went_on?;
        let (parent, still) = match taken {
            Ok(taken) => taken,
            Err(failure) => {
                if let Err(error) = machine.unstage_disk(next.top()).await {
                    warn!(capsule = %self.capsule.id(), %error, "an unused disk layer stays open");
                }
                self.clear_up().await;
                return Err(failure);
            }
        };
        let chain = disks.link(&old, &plan.dir).await?;
        let uses = plan.uses;
        crate::blocking(move || {
            let header = still.memory.with_extension("image");
            let image = over(Some(&parent), &still.memory, &header, false)?;
            finish(image, &still.devices, &chain, about, uses)
        })
        .await
    }

    /// Copies the memory twice, first of the running and then of the stopped guest, saves its devices, and switches its
    /// disk to a new layer. The guest stands still when this returns.
    async fn take(
        &self,
        plan: &SnapshotPlan,
        machine: &dyn Machine,
        next: &Chain,
    ) -> Result<(Arc<Image>, Still), CapsuleError> {
        let mut parent = self.first_parent(plan).await?;
        let mut first = MemorySaved::default();
        if machine.copies_while_running() {
            let (stem, below) = (new_stem("memory"), Arc::clone(&parent));
            let (saved, layer) = write_memory(machine, &plan.dir, &stem, Some(below)).await?;
            first = saved;
            let header = plan.dir.join(format!("{stem}.image"));
            parent = Arc::new(crate::blocking(move || over(Some(&parent), &layer, &header, false)).await?);
        }
        fault::point("snapshot.copied");
        let devices = plan.dir.join(new_stem("devices"));
        let begun = Instant::now();
        machine.pause().await?;
        fault::point("snapshot.stopped");
        let (second, memory) =
            write_memory(machine, &plan.dir, &new_stem("memory"), Some(Arc::clone(&parent))).await?;
        fault::point("snapshot.memory");
        machine.save_devices(&devices).await?;
        fault::point("snapshot.devices");
        machine.push_disk(next.top()).await?;
        fault::point("snapshot.switched");
        let still: Duration = begun.elapsed();
        info!(
            capsule = %self.capsule.id(), still_us = still.as_micros(), copied = first.data_blocks,
            again = second.data_blocks, "snapshot taken"
        );
        Ok((parent, Still { memory, devices }))
    }

    /// What the first copy is laid over, in the snapshot's directory: what the capsule was resumed from, or nothing.
    async fn first_parent(&self, plan: &SnapshotPlan) -> Result<Arc<Image>, CapsuleError> {
        let header = self.record.saved.as_ref().map(|saved| self.dir.join(&saved.memory));
        let (dir, bytes) = (plan.dir.clone(), u64::from(self.record.spec.shape.memory_mb) * MIB);
        crate::blocking(move || {
            let stem = new_stem("memory");
            let name = format!("{stem}.image");
            let image = match header {
                Some(header) => Image::open(&header)?.link_into(&dir, &name, false)?,
                None => {
                    let base = dir.join(format!("{stem}.base"));
                    BaseWriter::create(&base, bytes)?.finish(false)?;
                    over(None, &base, &dir.join(name), false)?
                }
            };
            Ok(Arc::new(with_room(image, &dir, &new_stem("memory"), MAX_LAYERS - 2)?))
        })
        .await
    }
}

/// Gives a snapshot its final form and makes it durable. Blocks.
fn finish(
    image: Image,
    devices: &std::path::Path,
    disk: &Chain,
    about: About,
    uses: u32,
) -> Result<Saved, CapsuleError> {
    let dir = image.header_path().parent().map(PathBuf::from).unwrap_or_default();
    let blocks: u64 = image.overrides().iter().map(|extent| extent.count).sum();
    let bytes = blocks * BLOCK_BYTES as u64;
    let image = if image.layers() > 0 && bytes.saturating_mul(u64::from(uses)) > image.size_bytes() / 4 {
        let stem = new_stem("memory");
        let base = dir.join(format!("{stem}.base"));
        image.materialise(&base, false)?;
        over(None, &base, &dir.join(format!("{stem}.image")), false)?
    } else {
        image
    };
    fault::point("snapshot.flat");
    let saved = Saved::describe(&image, devices, disk, about)?;
    Saved::remove_others(Some(&saved), &dir)?;
    let files = image.files();
    files::sync(
        files.iter().map(PathBuf::as_path).chain(disk.files().map(PathBuf::as_path)).chain([devices]),
    )?;
    Ok(saved)
}
