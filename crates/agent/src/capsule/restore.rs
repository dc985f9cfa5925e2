//! How a capsule comes back from disk: a paused one, or a new one from a snapshot.
//!
//! The guest gets a new empty layer over the saved disk, so that until the capsule is known to run, what it was saved in
//! stays as it is and the next attempt finds it whole.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use wrenn_protocol::guest::InitRequest;
use wrenn_vmm::{DiskFiles, Machine, Start};

use super::actor::Actor;
use super::steps::Steps;
use crate::error::CapsuleError;
use crate::fault;
use crate::record::Record;
use crate::saved::Saved;

/// Bytes of fresh entropy that a guest gets at every boot and every restore.
const ENTROPY_BYTES: usize = 64;
const MIB: u64 = 1 << 20;

/// What the guest of a record is told about itself. The time in it is that of the call.
pub(crate) fn identity_request(record: &Record) -> InitRequest {
    let now = time::OffsetDateTime::now_utc();
    InitRequest {
        env_vars: Some(record.defaults.env.clone()),
        access_token: Some(record.access_token.clone()),
        timestamp: now.format(&time::format_description::well_known::Rfc3339).ok(),
        default_user: Some(record.defaults.user.clone()),
        hostname: Some(record.spec.id.to_string()),
        entropy: Some(STANDARD.encode(rand::random::<[u8; ENTROPY_BYTES]>())),
        ..InitRequest::default()
    }
}

impl Actor {
    /// Makes a new capsule of the saved machine in another directory.
    pub(super) async fn begin_from_saved(&mut self, saved: &Saved, from: &Path) -> Result<(), CapsuleError> {
        let own = self.link_saved(saved, from).await?;
        fault::point("fork.linked");
        self.restore(&own).await
    }

    /// Shares the files of a saved machine.
    pub(super) async fn link_saved(&mut self, saved: &Saved, from: &Path) -> Result<Saved, CapsuleError> {
        self.make_directory()?;
        self.save();
        saved.fits.driver().clone_into(&mut self.record.driver);
        let own = saved.link(from, &self.dir, &*self.driver()?.disks).await?;
        self.record.saved = Some(own.clone());
        Ok(own)
    }

    /// Brings the capsule back from what its directory holds.
    pub(super) async fn restore(&mut self, saved: &Saved) -> Result<(), CapsuleError> {
        let (machine, disk_bytes) = self.bring_back(saved).await?;
        self.introduce(&*machine, disk_bytes, &saved.access_token).await
    }

    /// A machine that stands where it was saved, and the capacity of its disk in bytes.
    pub(super) async fn bring_back(
        &mut self,
        saved: &Saved,
    ) -> Result<(Arc<dyn Machine>, u64), CapsuleError> {
        let mut steps = Steps::begin(self.capsule.id());
        let driver = self.driver()?;
        let (dir, here, description) = (self.dir.clone(), driver.fits.clone(), saved.clone());
        let image = crate::blocking(move || description.open(&dir, &here)).await?;
        let chain = driver.disks.open(&self.dir, &saved.disk).await?;
        let chain = driver.disks.push(&chain, None).await?;
        self.record.disk = Some(chain.top_name().to_owned());
        steps.done("disk");
        fault::point("resume.disk");
        let base = image.base_path();
        let machine = match self.take_blank(&base).await? {
            Some(machine) => machine,
            None => {
                self.take_slot().await?;
                steps.done("slot");
                fault::point("resume.slot");
                self.launch(Start::Restore { base }).await?
            }
        };
        steps.done("start");
        fault::point("resume.started");
        let disk = DiskFiles { base: &chain.base, layers: &chain.layers };
        // Both to their end, also where one fails: whoever writes into a process must be done before the process goes.
        let (attached, loaded) = tokio::join!(machine.attach_disk(disk), machine.load_memory(image));
        attached.and(loaded)?;
        steps.done("disk and memory");
        machine.load_devices(&self.dir.join(&saved.devices)).await?;
        steps.done("devices");
        fault::point("resume.loaded");
        self.check_ending()?;
        Ok((machine, chain.virtual_bytes))
    }

    /// What the machine's metadata service tells its guest.
    pub(super) async fn describe_to_guest(&self, machine: &dyn Machine) -> Result<(), CapsuleError> {
        let spec = &self.record.spec;
        let data = json!({ "capsule_id": spec.id.to_string(), "template_id": spec.template_name });
        Ok(machine.set_metadata(&data).await?)
    }

    /// Lets a restored guest run, and tells it who and when it is. `had` is the capacity in bytes that its disk was saved
    /// with, `token` what its daemon demands.
    pub(super) async fn introduce(
        &mut self,
        machine: &dyn Machine,
        had: u64,
        token: &str,
    ) -> Result<(), CapsuleError> {
        let mut steps = Steps::begin(self.capsule.id());
        self.describe_to_guest(machine).await?;
        machine.cont().await?;
        fault::point("resume.running");
        let wanted = u64::from(self.record.spec.shape.disk_mb) * MIB;
        if wanted > had {
            machine.resize_disk(wanted).await?;
        }
        let number = rand::random();
        let request = || InitRequest {
            restored: true,
            restore_number: Some(number),
            disk_bytes: (wanted > had).then_some(wanted),
            ..identity_request(&self.record)
        };
        let (known, renewed) = (self.endpoint(token)?, self.endpoint(&self.record.access_token)?);
        let answer = self.wait_for_guest(machine, known.init_when_there(request, &renewed)).await?;
        self.record.guest = Some(answer.map_err(|error| CapsuleError::Init(error.to_string()))?);
        steps.done("guest");
        fault::point("resume.ready");
        self.capsule.set_endpoint(Some(renewed));
        self.capsule.forget_idleness();
        Ok(())
    }
}
