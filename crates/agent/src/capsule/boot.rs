//! How a capsule comes to run for the first time, or is taken over from an agent that died.
//!
//! Each step is awaited to its end, so that what it acquired is known to the actor before anything can cancel the
//! boot; only the wait for the guest, which acquires nothing, is cut short.

use std::sync::Arc;

use tracing::{debug, warn};
use wrenn_protocol::guest::{ENV_CAPSULE_ID, ENV_TEMPLATE_ID};
use wrenn_vmm::{DiskFiles, Machine, RunState, Start};

use super::actor::Actor;
use super::identity_request;
use super::{Coming, Snapshot};
use crate::console;
use crate::endpoint::Endpoint;
use crate::error::CapsuleError;
use crate::files;
use crate::images::Template;
use crate::record::{Defaults, Phase, Record};
use crate::templates::{SnapshotTemplate, Source};
use crate::warm::Key;

/// Lines of console that a failed boot reports: a kernel's panic with its trace takes about 25.
const CONSOLE_LINES: usize = 40;

impl Actor {
    /// Makes the capsule from its template.
    pub(super) async fn begin(&mut self) -> Result<(), CapsuleError> {
        let path = self.record.spec.template_path.clone();
        match self.env.templates.load(&path)? {
            Source::Snapshot(template) => self.begin_from_template(*template).await,
            Source::Base(template) => self.begin_from_base(&template).await,
        }
    }

    async fn begin_from_template(&mut self, template: SnapshotTemplate) -> Result<(), CapsuleError> {
        let asked = self.record.spec.shape.disk_mb;
        let needed = template.saved.shape.disk_mb;
        if asked < needed {
            return Err(CapsuleError::DiskTooSmall { asked, needed });
        }
        let SnapshotTemplate { dir, saved, defaults, .. } = template;
        self.begin_from_snapshot(&Snapshot { dir, saved, defaults }).await
    }

    /// Makes the capsule a copy of a snapshot as soon as there is one.
    pub(super) async fn begin_as_copy(&mut self, mut source: Coming) -> Result<(), CapsuleError> {
        let gone = || CapsuleError::Stopping(self.capsule.id());
        let snapshot = tokio::select! {
            snapshot = source.wait_for(Option::is_some) => snapshot.ok().and_then(|snapshot| snapshot.clone()),
            () = self.capsule.ending().cancelled() => None,
        };
        let snapshot = snapshot.ok_or_else(gone)?;
        self.begin_from_snapshot(&snapshot).await
    }

    /// Makes the capsule a copy of a snapshot.
    pub(super) async fn begin_from_snapshot(&mut self, source: &Snapshot) -> Result<(), CapsuleError> {
        let mut defaults = source.defaults.clone();
        defaults.env.extend(self.record.spec.default_env.clone());
        if !self.record.spec.default_user.is_empty() {
            defaults.user.clone_from(&self.record.spec.default_user);
        }
        self.set_defaults(defaults);
        self.begin_from_saved(&source.saved, &source.dir).await
    }

    async fn begin_from_base(&mut self, template: &Template) -> Result<(), CapsuleError> {
        let (asked, needed) = (self.record.spec.shape.disk_mb, template.disk_mb);
        if asked < needed {
            return Err(CapsuleError::DiskTooSmall { asked, needed });
        }
        let spec = &self.record.spec;
        let mut env = template.default_env.clone();
        env.extend(spec.default_env.clone());
        let user = if spec.default_user.is_empty() { &template.default_user } else { &spec.default_user };
        let user = user.clone();
        let key = Key::new(&self.env, &spec.template_path, template, spec.shape);
        self.set_defaults(Defaults { user, env });
        if self.begin_warm(&key).await? {
            return Ok(());
        }
        self.boot(template).await?;
        self.env.warm.want(&self.env, key);
        Ok(())
    }

    /// Makes the capsule of what is warm; false where nothing is, or what is did not serve.
    async fn begin_warm(&mut self, key: &Key) -> Result<bool, CapsuleError> {
        if let Some(spare) = self.env.warm.pool().claim(key).await {
            match self.take_spare(spare).await {
                Ok(()) => return Ok(true),
                Err(failure) => self.start_over(failure).await?,
            }
        }
        let (env, wanted) = (Arc::clone(&self.env), key.clone());
        let Some(warmed) =
            crate::blocking(move || Ok::<_, CapsuleError>(env.warm.find(&env, &wanted))).await?
        else {
            return Ok(false);
        };
        match self.begin_from_saved(&warmed.saved, &warmed.dir).await {
            Ok(()) => Ok(true),
            Err(failure) => {
                if matches!(failure, CapsuleError::Saved(_) | CapsuleError::Image(_) | CapsuleError::Vmm(_)) {
                    self.env.warm.drop_one(&warmed.dir);
                }
                self.start_over(failure).await?;
                Ok(false)
            }
        }
    }

    /// Clears away an attempt, unless the capsule is to end.
    async fn start_over(&mut self, failure: CapsuleError) -> Result<(), CapsuleError> {
        if matches!(failure, CapsuleError::Stopping(_)) {
            return Err(failure);
        }
        warn!(capsule = %self.capsule.id(), "not made from what is warm: {}", failure.chain());
        self.let_go_surely().await;
        self.record.disk = None;
        self.record.saved = None;
        files::remove_directory(&self.dir)?;
        Ok(())
    }

    /// What its processes get, with what tells them where they are.
    fn set_defaults(&mut self, mut defaults: Defaults) {
        let spec = &self.record.spec;
        defaults.env.insert(ENV_CAPSULE_ID.to_owned(), spec.id.to_string());
        defaults.env.insert(ENV_TEMPLATE_ID.to_owned(), spec.template_name.clone());
        self.record.defaults = defaults;
    }

    /// Powers a new guest on and tells it who it is.
    async fn boot(&mut self, template: &Template) -> Result<(), CapsuleError> {
        let (machine, endpoint) = self.power_on(template).await?;
        self.wait_for_guest(&*machine, endpoint.wait_until_healthy()).await?;
        let request = identity_request(&self.record);
        let answer = endpoint.init(&request).await.map_err(|error| CapsuleError::Init(error.to_string()))?;
        self.record.guest = Some(answer);
        self.capsule.set_endpoint(Some(endpoint));
        self.capsule.forget_idleness();
        Ok(())
    }

    /// Starts a machine with a new disk and lets it boot.
    pub(super) async fn power_on(
        &mut self,
        template: &Template,
    ) -> Result<(Arc<dyn Machine>, Endpoint), CapsuleError> {
        self.make_directory()?;
        self.save();
        self.take_slot().await?;
        let disks = Arc::clone(&self.driver()?.disks);
        let disk = disks.create(&self.dir, &template.disk, self.record.spec.shape.disk_mb).await?;
        self.record.disk = Some(disk.top_name().to_owned());
        let kernel = &self.env.kernel;
        let start = Start::Boot {
            kernel: kernel.kernel.clone(),
            initrd: kernel.initramfs.clone(),
            cmdline: kernel.cmdline.clone(),
            memory: self.dir.join("memory"),
        };
        let machine = self.launch(start).await?;
        machine.attach_disk(DiskFiles { base: &disk.base, layers: &disk.layers }).await?;
        self.describe_to_guest(&*machine).await?;
        machine.cont().await?;
        let endpoint = self.endpoint(&self.record.access_token)?;
        Ok((machine, endpoint))
    }

    /// The guest's daemon, with a token that it knows.
    pub(super) fn endpoint(&self, token: &str) -> Result<Endpoint, CapsuleError> {
        let slot = self.held.slot.as_ref().ok_or_else(|| CapsuleError::Stopping(self.capsule.id()))?;
        let Record { guest, saved, .. } = &self.record;
        let told = guest.as_ref().or_else(|| saved.as_ref()?.guest.as_ref());
        // One that has told nothing yet was booted by this agent, or is warm and would be dropped if its daemon were another.
        Ok(Endpoint::new(slot.guest_addr(), token).with_datagrams(told.is_none_or(|told| told.datagrams)))
    }

    /// Takes over what an agent that died has left running, wherever in a pause or a snapshot it was.
    pub(super) async fn take_over(&mut self) -> Result<(), CapsuleError> {
        let gone = || CapsuleError::Stopping(self.capsule.id());
        let (index, record) = self.record.slot.zip(self.record.machine.clone()).ok_or_else(gone)?;
        let machine = self.driver()?.vmm.adopt(record).await?;
        self.held.machine = Some(machine.clone());
        let slot = self.env.network.adopt(index).await?;
        self.held.slot = Some(slot);
        self.record.disk = Some(machine.disk_top().await?);
        if machine.status().await? != RunState::Running {
            machine.cont().await?;
        }
        self.capsule.set_endpoint(Some(self.endpoint(&self.record.access_token)?));
        self.clear_up().await;
        debug!(capsule = %self.capsule.id(), "capsule taken over");
        Ok(())
    }

    /// Waits for an answer of the guest, and no longer than the guest lives or may take.
    pub(super) async fn wait_for_guest<T>(
        &self,
        machine: &dyn Machine,
        answer: impl Future<Output = T>,
    ) -> Result<T, CapsuleError> {
        let limit = self.env.config.boot_timeout;
        let resuming = self.record.phase == Phase::Resuming;
        tokio::select! {
            answer = answer => Ok(answer),
            how = machine.exited() => Err(CapsuleError::GuestDied {
                how: how.to_string(),
                console: console::tail(&self.dir, CONSOLE_LINES),
            }),
            () = self.capsule.ending().cancelled() => Err(CapsuleError::Stopping(self.capsule.id())),
            // A resume is finished: it takes a moment, and the next agent would have to begin it anew.
            () = self.env.detach.cancelled(), if !resuming => Err(CapsuleError::Stopping(self.capsule.id())),
            () = tokio::time::sleep(limit) => Err(CapsuleError::BootTimeout {
                seconds: limit.as_secs(),
                console: console::tail(&self.dir, CONSOLE_LINES),
            }),
        }
    }
}
