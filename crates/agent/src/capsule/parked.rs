//! Machines that are no capsules yet: the seed of a warm template, which is booted, saved and removed; a spare, which is
//! restored, stopped and handed to the first create that wants it; a blank, which is a VMM that waits for a snapshot.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::info;
use wrenn_image::Image;
use wrenn_vmm::{FileKey, Machine, Start as Launch};

use super::Answer;
use super::actor::{Actor, Plan, Start, Step, new_record};
use super::snapshot::SnapshotPlan;
use crate::console;
use crate::environment::Environment;
use crate::error::CapsuleError;
use crate::fault;
use crate::files;
use crate::record::CapsuleSpec;
use crate::saved::{About, Saved};
use crate::templates::Source;
use crate::warm::{Spare, Warmed};

/// What a guest does by itself after its daemon has come up is over by then.
const SETTLE: Duration = Duration::from_millis(500);
const MIB: u64 = 1 << 20;
/// A blank's link of the memory that it maps.
const BLANK_MEMORY: &str = "memory-blank.base";

/// What a shell runs in a spare: a program of its own, and not in its own place.
const FIRST_COMMAND: &str = "/bin/true; :";

/// Where a spare waits for whoever wants it.
pub(crate) type Claimed = oneshot::Receiver<oneshot::Sender<Spare>>;

impl Start {
    /// Boots a machine, saves it as `plan` says, and removes it.
    ///
    /// # Errors
    /// Why it was not saved; nothing of it is left then but what is in the plan's directory.
    pub(crate) async fn seed(env: Arc<Environment>, spec: CapsuleSpec, plan: SnapshotPlan) -> Answer<Saved> {
        let (reply, made) = oneshot::channel();
        let gone = Arc::new(CapsuleError::Stopping(spec.id));
        let record = new_record(&env, spec);
        let seed = Self::spawn_with(record, Plan::Seed(plan, reply), env, || {});
        let made = made.await.unwrap_or(Err(gone));
        seed.stopped().await;
        made
    }

    /// Makes a spare, which from then on waits for a claim.
    ///
    /// # Errors
    /// Why there is none; nothing of it is left then.
    pub(crate) async fn spare(
        env: Arc<Environment>,
        spec: CapsuleSpec,
        from: Warmed,
        claimed: Claimed,
    ) -> Answer<()> {
        let (reply, ready) = oneshot::channel();
        let gone = Arc::new(CapsuleError::Stopping(spec.id));
        Self::spawn_with(new_record(&env, spec), Plan::Spare(from, reply, claimed), env, || {});
        ready.await.unwrap_or(Err(gone))
    }

    /// Starts a VMM over the memory of `from`, which from then on waits for a claim. Says which file that memory is.
    ///
    /// # Errors
    /// Why there is none; nothing of it is left then.
    pub(crate) async fn blank(
        env: Arc<Environment>,
        spec: CapsuleSpec,
        from: Warmed,
        claimed: Claimed,
    ) -> Answer<FileKey> {
        let (reply, ready) = oneshot::channel();
        let gone = Arc::new(CapsuleError::Stopping(spec.id));
        Self::spawn_with(new_record(&env, spec), Plan::Blank(from, reply, claimed), env, || {});
        ready.await.unwrap_or(Err(gone))
    }
}

impl Actor {
    pub(super) async fn be_seed(
        &mut self,
        plan: &SnapshotPlan,
        reply: oneshot::Sender<Answer<Saved>>,
    ) -> Step {
        let _gone = reply.send(self.grow(plan).await.map_err(Arc::new));
        Step::End(String::new(), None)
    }

    async fn grow(&mut self, plan: &SnapshotPlan) -> Result<Saved, CapsuleError> {
        let path = self.record.spec.template_path.clone();
        let Source::Base(template) = self.env.templates.load(&path)? else {
            return Err(CapsuleError::Template { path, source: std::io::Error::other("it is a snapshot") });
        };
        self.record.access_token.clear();
        let (machine, endpoint) = self.power_on(&template).await?;
        self.wait_for_guest(&*machine, endpoint.wait_until_healthy()).await?;
        self.wait_for_guest(&*machine, tokio::time::sleep(SETTLE)).await?;
        let prepared = self.wait_for_guest(&*machine, endpoint.prepare()).await?;
        prepared.map_err(|error| CapsuleError::Prepare(error.to_string()))?;
        let about = About { guest: None, ..self.about()? };
        self.snapshot_running(plan, about).await
    }

    pub(super) async fn be_spare(
        &mut self,
        from: &Warmed,
        reply: oneshot::Sender<Answer<()>>,
        claimed: Claimed,
    ) -> Step {
        let made = self.get_ready(from).await;
        self.wait_for_claim(made, reply, claimed).await
    }

    pub(super) async fn be_blank(
        &mut self,
        from: &Warmed,
        reply: oneshot::Sender<Answer<FileKey>>,
        claimed: Claimed,
    ) -> Step {
        let made = self.start_blank(from).await;
        self.wait_for_claim(made, reply, claimed).await
    }

    /// Answers whoever wanted the machine made, and minds it until it is claimed or of no use any more.
    async fn wait_for_claim<T>(
        &mut self,
        made: Result<T, CapsuleError>,
        reply: oneshot::Sender<Answer<T>>,
        claimed: Claimed,
    ) -> Step {
        let is_made = made.is_ok();
        let _gone = reply.send(made.map_err(Arc::new));
        let machine = self.held.machine.clone().filter(|_| is_made);
        let Some(machine) = machine else { return Step::End(String::new(), None) };
        let claim = tokio::select! {
            claim = claimed => claim.ok(),
            _ = machine.exited() => None,
            () = self.env.detach.cancelled() => None,
        };
        let Some(claim) = claim else { return Step::End(String::new(), None) };
        drop(machine);
        let held = std::mem::take(&mut self.held);
        let spare = Spare { dir: self.dir.clone(), record: self.record.clone(), held };
        match claim.send(spare) {
            Ok(()) => Step::Detach,
            Err(spare) => {
                self.held = spare.held;
                Step::End(String::new(), None)
            }
        }
    }

    /// A VMM that maps the memory of `from`.
    async fn start_blank(&mut self, from: &Warmed) -> Result<FileKey, CapsuleError> {
        self.make_directory()?;
        self.save();
        let (header, base) = (from.dir.join(&from.saved.memory), self.dir.join(BLANK_MEMORY));
        let place = base.clone();
        let key = crate::blocking(move || {
            fs::hard_link(Image::open(&header)?.base_path(), &place)?;
            Ok::<_, CapsuleError>(FileKey::of(&fs::metadata(&place)?))
        })
        .await?;
        self.take_slot().await?;
        self.launch(Launch::Restore { base }).await?;
        Ok(key)
    }

    /// Makes a blank the machine of this capsule, where one waits that maps the file `base`.
    pub(super) async fn take_blank(&mut self, base: &Path) -> Result<Option<Arc<dyn Machine>>, CapsuleError> {
        if self.record.spec.is_nobodys() || self.record.driver != self.env.drivers.default().name {
            return Ok(None);
        }
        let key = FileKey::of(&fs::metadata(base)?);
        let shape = self.record.spec.shape;
        let Some(blank) = self.env.warm.pool().claim_blank(key, shape).await else { return Ok(None) };
        let Spare { dir, record, held } = blank;
        self.held = held;
        self.record.slot = record.slot;
        self.record.machine = record.machine.map(|machine| machine.moved(&dir, &self.dir));
        fault::point("blank.claimed");
        // Both records name it now, and either alone is enough to remove it.
        self.save();
        fault::point("blank.recorded");
        let moved = self.move_in(&dir);
        fault::point("blank.moved");
        // What was not moved is of no use; the capsule's own record has the rest.
        files::remove_directory(&dir)?;
        fault::point("blank.emptied");
        moved?;
        Ok(self.held.machine.clone())
    }

    fn move_in(&self, dir: &Path) -> std::io::Result<()> {
        files::remove_directory(&self.dir.join("run"))?;
        fs::rename(dir.join("run"), self.dir.join("run"))?;
        console::continue_in(&self.dir, dir)
    }

    /// Brings the machine back, tells its daemon that it is nobody, runs a command as a user will, and stops it. What an
    /// emulator has translated by then is what the machine will run first when it is claimed.
    async fn get_ready(&mut self, from: &Warmed) -> Result<(), CapsuleError> {
        let saved = self.link_saved(&from.saved, &from.dir).await?;
        self.restore(&saved).await?;
        self.capsule.set_endpoint(None);
        let gone = || CapsuleError::Stopping(self.capsule.id());
        let machine = self.held.machine.clone().ok_or_else(gone)?;
        let endpoint = self.endpoint(&self.record.access_token)?;
        self.wait_for_guest(&*machine, endpoint.wait_until_healthy()).await?;
        // A spare has no default user yet, and every template has this one.
        let processes =
            endpoint.processes(Some("root")).map_err(|error| CapsuleError::Init(error.to_string()))?;
        let shell = processes.run("/bin/sh", &["-c", FIRST_COMMAND]);
        let rehearsed = self.wait_for_guest(&*machine, shell).await?;
        if let Err(error) = rehearsed {
            // A template may have no shell. Its first command takes longer then.
            info!(spare = %self.capsule.id(), %error, "no command was rehearsed");
        }
        machine.pause().await?;
        Ok(())
    }

    /// Makes a spare this capsule.
    pub(super) async fn take_spare(&mut self, spare: Spare) -> Result<(), CapsuleError> {
        let Spare { dir, record, held } = spare;
        self.held = held;
        self.record.slot = record.slot;
        self.record.machine = record.machine.map(|machine| machine.moved(&dir, &self.dir));
        self.record.disk = record.disk;
        self.record.saved = record.saved;
        fault::point("spare.claimed");
        // In this order the directory's record names all that is to be removed, whatever becomes of this agent.
        let recorded = self.record.write(&dir);
        fault::point("spare.recorded");
        let moved = recorded.and_then(|()| fs::rename(&dir, &self.dir));
        fault::point("spare.moved");
        if moved.is_err() {
            self.let_go_surely().await;
            files::remove_directory(&dir)?;
        }
        moved?;
        let gone = || CapsuleError::Stopping(self.capsule.id());
        let machine = self.held.machine.clone().ok_or_else(gone)?;
        let saved = self.record.saved.clone().ok_or_else(gone)?;
        self.introduce(&*machine, u64::from(saved.shape.disk_mb) * MIB, &record.access_token).await
    }
}
