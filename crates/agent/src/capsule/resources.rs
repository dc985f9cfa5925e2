//! What a capsule holds on its host while it runs, and how it is given back.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use wrenn_net::Slot;
use wrenn_vmm::{LaunchSpec, Machine, Start};

use super::actor::Actor;
use super::steps::Steps;
use crate::drivers::Driver;
use crate::error::CapsuleError;
use crate::fault;
use crate::remains;

/// Translation buffer of an emulated guest in MiB: enough for a kernel and a busy user space.
const TB_SIZE_MB: u32 = 64;

/// What a capsule holds on the host. The actor is its owner.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    pub(crate) slot: Option<Slot>,
    pub(crate) machine: Option<Arc<dyn Machine>>,
}

impl Actor {
    /// The driver of this capsule's machine.
    pub(super) fn driver(&self) -> Result<Arc<Driver>, CapsuleError> {
        Ok(Arc::clone(self.env.drivers.get(&self.record.driver)?))
    }

    pub(super) fn make_directory(&self) -> Result<(), CapsuleError> {
        std::fs::create_dir_all(self.dir.join("run"))?;
        // The VMM driver opens it to the machine's own group where that needs it.
        std::fs::set_permissions(&self.dir, std::fs::Permissions::from_mode(0o700))?;
        Ok(())
    }

    pub(super) fn check_ending(&self) -> Result<(), CapsuleError> {
        if self.capsule.ending().is_cancelled() {
            Err(CapsuleError::Stopping(self.capsule.id()))
        } else {
            Ok(())
        }
    }

    /// Takes a network slot.
    pub(super) async fn take_slot(&mut self) -> Result<(), CapsuleError> {
        let slot = self.env.network.acquire().await?;
        fault::point("start.acquired");
        self.record.slot = Some(slot.index());
        self.held.slot = Some(slot);
        self.save();
        self.check_ending()
    }

    /// Starts the VMM in the slot, without a disk and with the guest not yet running.
    pub(super) async fn launch(&mut self, start: Start) -> Result<Arc<dyn Machine>, CapsuleError> {
        let driver = self.driver()?;
        let machine = driver.vmm.launch(self.launch_spec(start, &driver)?).await?;
        fault::point("start.launched");
        self.record.machine = Some(machine.record().clone());
        self.held.machine = Some(machine.clone());
        self.save();
        Ok(machine)
    }

    fn launch_spec(&self, start: Start, driver: &Driver) -> Result<LaunchSpec, CapsuleError> {
        let slot = self.held.slot.as_ref().ok_or_else(|| CapsuleError::Stopping(self.capsule.id()))?;
        let shape = self.record.spec.shape;
        let uid = self.env.config.uid_base + u32::from(slot.index().get());
        Ok(LaunchSpec {
            id: self.capsule.id().to_string(),
            vcpus: shape.vcpus,
            memory_mb: shape.memory_mb,
            start,
            dir: self.dir.clone(),
            netns: slot.netns_path(),
            tap: slot.open_tap()?,
            mac: wrenn_net::GUEST_MAC,
            uid,
            gid: uid,
            cgroup_parent: self.env.cgroup.clone(),
            accel: driver.accelerator,
            tb_size_mb: TB_SIZE_MB,
            egress_bytes_per_second: self.env.config.egress_bytes_per_second,
        })
    }

    /// Gives VMM and slot back and keeps the files. Each step may be repeated.
    pub(super) async fn let_go(&mut self) -> anyhow::Result<()> {
        let mut steps = Steps::begin(self.capsule.id());
        self.capsule.set_endpoint(None);
        // The next machine in that slot has the same group.
        let closed = match std::fs::set_permissions(&self.dir, std::fs::Permissions::from_mode(0o700)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        // Both at once, for either keeps the kernel busy for a while. The VMM has its signal before anything of the slot
        // goes, and runs nothing any more.
        let machine = self.held.machine.clone();
        let slot = if closed.is_ok() { self.held.slot.take() } else { None };
        let kill = async { if let Some(machine) = machine { machine.kill().await } else { Ok(()) } };
        let release = async { if let Some(slot) = slot { slot.release().await } else { Ok(()) } };
        let (killed, released) = tokio::join!(biased; kill, release);
        killed?;
        self.held.machine = None;
        closed?;
        released?;
        steps.done("kill and slot");
        remains::let_go(&self.env.drivers, &self.env.network, &mut self.record).await
    }

    /// Gives everything back, the files too. Each step may be repeated.
    pub(super) async fn release(&mut self) -> anyhow::Result<()> {
        self.let_go().await?;
        remains::remove_directory(&self.dir).await
    }
}
