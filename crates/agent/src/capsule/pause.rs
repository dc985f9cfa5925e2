//! How a running capsule is written to disk, and how it goes on where that fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};
use wrenn_image::{Image, MAX_LAYERS};
use wrenn_vmm::{Machine, MemorySaved, MemoryTarget};

use super::actor::Actor;
use super::house::finds_disk_full;
use super::steps::Steps;
use crate::error::CapsuleError;
use crate::fault;
use crate::files;
use crate::record::Phase;
use crate::saved::{About, Saved, new_stem};

/// How long traffic may take to end by itself.
const GRACE: Duration = Duration::from_secs(2);
/// How long the guest may take to write its caches back.
const PREPARE: Duration = Duration::from_secs(30);

impl Actor {
    /// Pauses the capsule; where that fails it runs on, if its VM does.
    pub(super) async fn pause(&mut self, reason: &str) -> Result<(), Arc<CapsuleError>> {
        self.enter(Phase::Pausing, reason.to_owned(), None);
        fault::point("pause.begun");
        let begun = tokio::time::Instant::now();
        match self.write_out().await {
            Ok(memory) => {
                let took = begun.elapsed().as_millis();
                let id = self.capsule.id();
                info!(capsule = %id, ms = took, dirty = memory.dirty_blocks, written = memory.data_blocks, "paused");
                self.let_go_surely().await;
                fault::point("pause.released");
                self.publish(reason.to_owned(), None);
                Ok(())
            }
            Err(failure) => {
                let failure = Arc::new(failure);
                self.run_on(&failure).await;
                Err(failure)
            }
        }
    }

    /// Up to the commit: afterwards the record says that the capsule is paused, and all it names is on the disk.
    async fn write_out(&mut self) -> Result<MemorySaved, CapsuleError> {
        let gone = || CapsuleError::Stopping(self.capsule.id());
        let machine = self.held.machine.clone().ok_or_else(gone)?;
        let mut steps = Steps::begin(self.capsule.id());
        self.quiesce(&*machine).await?;
        steps.done("prepare");
        fault::point("pause.prepared");
        let parent = self.parent_image().await?;
        steps.done("parent");
        machine.pause().await?;
        steps.done("stop");
        fault::point("pause.stopped");
        let (memory, saved) = self.write_files(&*machine, parent, &mut steps).await?;
        self.check_ending()?;
        self.commit(saved, Phase::Paused)?;
        steps.done("commit");
        fault::point("pause.committed");
        self.clear_up().await;
        Ok(memory)
    }

    /// Makes `saved`, which is on the disk, what the capsule is in.
    pub(super) fn commit(&mut self, saved: Saved, phase: Phase) -> Result<(), CapsuleError> {
        let before = self.record.clone();
        self.record.disk = Some(saved.disk.clone());
        self.record.saved = Some(saved);
        if phase != self.record.phase {
            self.record.generation += 1;
        }
        self.record.phase = phase;
        self.record.last_active = self.capsule.last_active();
        if let Err(failure) = self.record.write(&self.dir) {
            self.record = before;
            return Err(failure.into());
        }
        // The record has its name by now, and nothing takes that back.
        if let Err(failure) = files::sync_names(&self.dir) {
            error!(capsule = %self.capsule.id(), "the disk does not confirm the capsule's record: {failure}");
        }
        Ok(())
    }

    /// Ends traffic and has the guest write back what it holds.
    async fn quiesce(&self, machine: &dyn Machine) -> Result<(), CapsuleError> {
        let gate = self.capsule.gate();
        gate.close();
        let _some_went_on = tokio::time::timeout(GRACE, gate.drained()).await;
        gate.cut();
        let Some(endpoint) = self.capsule.endpoint() else { return Ok(()) };
        let prepared = tokio::select! {
            prepared = tokio::time::timeout(PREPARE, endpoint.prepare()) => prepared,
            how = machine.exited() => return Err(CapsuleError::VmDied(how.to_string())),
            () = finds_disk_full(machine) => return Err(CapsuleError::DiskFull),
            () = self.capsule.ending().cancelled() => return Err(CapsuleError::Stopping(self.capsule.id())),
        };
        match prepared {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(CapsuleError::Prepare(error.to_string())),
            Err(_) => {
                let limit = PREPARE.as_secs();
                Err(CapsuleError::Prepare(format!("it did not write its caches back within {limit} s")))
            }
        }
    }

    /// What is saved of the memory already, in a form that takes one more layer.
    pub(super) async fn parent_image(&self) -> Result<Option<Arc<Image>>, CapsuleError> {
        let Some(saved) = &self.record.saved else { return Ok(None) };
        let (dir, header) = (self.dir.clone(), self.dir.join(&saved.memory));
        crate::blocking(move || {
            let image = Image::open(&header)?;
            Ok(Some(Arc::new(with_room(image, &dir, &new_stem("memory"), MAX_LAYERS - 1)?)))
        })
        .await
    }

    async fn write_files(
        &self,
        machine: &dyn Machine,
        parent: Option<Arc<Image>>,
        steps: &mut Steps,
    ) -> Result<(MemorySaved, Saved), CapsuleError> {
        // Which layer is on top is what the VMM says, whatever became of the last snapshot.
        let top = machine.disk_top().await?;
        let driver = self.driver()?;
        let disk = driver.disks.open(&self.dir, &top).await?;
        let stem = new_stem("memory");
        let (memory, new) = write_memory(machine, &self.dir, &stem, parent.clone()).await?;
        steps.done("memory");
        fault::point("pause.memory");
        let devices = self.dir.join(new_stem("devices"));
        machine.save_devices(&devices).await?;
        steps.done("devices");
        fault::point("pause.devices");
        driver.disks.sync(&disk).await?;
        let (about, header) = (self.about()?, self.dir.join(format!("{stem}.image")));
        let saved = crate::blocking(move || {
            let image = over(parent.as_deref(), &new, &header, true)?;
            // The base and the older layers too: they may have been copied, where they could not be linked.
            let files = image.files();
            files::sync(files.iter().map(PathBuf::as_path).chain([devices.as_path()]))?;
            Ok::<_, CapsuleError>(Saved::describe(&image, &devices, &disk, about)?)
        })
        .await?;
        steps.done("sync");
        fault::point("pause.synced");
        Ok((memory, saved))
    }

    pub(super) fn about(&self) -> Result<About, CapsuleError> {
        let driver = self.driver()?;
        let mut fits = driver.fits.clone();
        let machine = self.held.machine.as_ref().filter(|_| self.record.phase != Phase::Paused);
        if let Some(version) = machine.and_then(|machine| machine.vmm_version()) {
            // What runs may have been started before another version was installed.
            fits.vmm = format!("{} {version}", driver.name);
        }
        Ok(About {
            fits,
            shape: self.record.spec.shape,
            access_token: self.record.access_token.clone(),
            guest: self.record.guest.clone(),
        })
    }

    /// After a failed pause: as if nothing had been.
    async fn run_on(&mut self, failure: &CapsuleError) {
        warn!(capsule = %self.capsule.id(), "not paused: {}", failure.chain());
        self.clear_up().await;
        let Some(machine) = &self.held.machine else { return };
        if let Err(error) = machine.cont().await {
            // Then it has ended, which the actor notices next.
            warn!(capsule = %self.capsule.id(), %error, "the guest does not go on");
        }
        // Connections that the guest let go of to be paused may still look alive from here.
        if let Ok(endpoint) = self.endpoint(&self.record.access_token) {
            self.capsule.set_endpoint(Some(endpoint));
        }
        self.capsule.gate().open();
        self.enter(Phase::Running, format!("pause_failed: {}", failure.chain()), None);
    }

    /// Gives VMM and slot back, however often that takes.
    pub(super) async fn let_go_surely(&mut self) {
        let mut retry = crate::retry::Retry::new();
        while let Err(failure) = self.let_go().await {
            retry.wait(self.capsule.id(), &failure).await;
        }
        self.save();
    }

    /// Removes files in the capsule's directory that belong to no saved state and no disk in use: what was replaced, what
    /// was never finished. Where that fails they cost room, and the next time they go.
    pub(super) async fn clear_up(&self) {
        if let Err(failure) = self.remove_leftovers().await {
            warn!(capsule = %self.capsule.id(), "files that nobody needs are left: {}", failure.chain());
        }
    }

    async fn remove_leftovers(&self) -> Result<(), CapsuleError> {
        let (dir, saved) = (self.dir.clone(), self.record.saved.clone());
        crate::blocking(move || Saved::remove_others(saved.as_ref(), &dir)).await?;
        if let Some(top) = &self.record.disk {
            let disks = Arc::clone(&self.driver()?.disks);
            let disk = disks.open(&self.dir, top).await?;
            disks.remove_unlisted(&self.dir, &disk).await?;
        }
        Ok(())
    }
}

/// Writes the memory of a machine into `dir`: a layer over `parent`, or a base where there is none.
pub(super) async fn write_memory(
    machine: &dyn Machine,
    dir: &Path,
    stem: &str,
    parent: Option<Arc<Image>>,
) -> Result<(MemorySaved, PathBuf), CapsuleError> {
    let (path, target) = match parent {
        Some(parent) => {
            let path = dir.join(format!("{stem}.layer"));
            (path.clone(), MemoryTarget::Layer { path, parent })
        }
        None => {
            let path = dir.join(format!("{stem}.base"));
            (path.clone(), MemoryTarget::Base(path))
        }
    };
    let saved = machine.save_memory(target).await?;
    Ok((saved, path))
}

/// The image that is `parent` with `new` as its last layer, or `new` as its base. Blocks.
pub(super) fn over(
    parent: Option<&Image>,
    new: &Path,
    header: &Path,
    durable: bool,
) -> Result<Image, CapsuleError> {
    let Some(parent) = parent else {
        files::share_reading(new)?;
        return Ok(Image::create(header, new, &[], durable)?);
    };
    let mut layers = parent.layer_paths();
    layers.push(new.to_owned());
    let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
    Ok(Image::create(header, &parent.base_path(), &layers, durable)?)
}

/// The image with its layers merged into one where it has more than `most`. New files are called `stem`. Blocks.
pub(super) fn with_room(image: Image, dir: &Path, stem: &str, most: usize) -> Result<Image, CapsuleError> {
    if image.layers() <= most {
        return Ok(image);
    }
    let merged = dir.join(format!("{stem}.layer"));
    image.merge(&merged, true)?;
    Ok(Image::create(&dir.join(format!("{stem}.image")), &image.base_path(), &[&*merged], true)?)
}
