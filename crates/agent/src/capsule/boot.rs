//! How a capsule comes to run: a cold boot, or the take-over of a VM whose agent died.
//!
//! Each step is awaited to its end, so that what it acquired is known to the actor before anything can cancel the
//! boot; only the wait for the guest, which acquires nothing, is cut short.

use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tracing::debug;
use wrenn_protocol::guest::{ENV_CAPSULE_ID, ENV_TEMPLATE_ID, InitRequest};
use wrenn_vmm::{LaunchSpec, Machine};

use super::actor::Actor;
use crate::console;
use crate::endpoint::Endpoint;
use crate::error::CapsuleError;
use crate::images::Template;

/// Bytes of fresh entropy that a guest gets at every boot.
const ENTROPY_BYTES: usize = 64;
/// Translation buffer of an emulated guest in MiB: enough for a kernel and a busy user space.
const TB_SIZE_MB: u32 = 64;
/// File name of the capsule's disk in its directory.
pub(crate) const DISK_FILE: &str = "disk.qcow2";
/// Lines of console that a failed boot reports: a kernel's panic with its trace takes about 25.
const CONSOLE_LINES: usize = 40;

impl Actor {
    /// Boots the capsule from its template.
    pub(super) async fn boot(&mut self) -> Result<(), CapsuleError> {
        let template = self.template()?;
        self.make_directory()?;
        self.save();
        let slot = self.env.network.acquire().await?;
        self.record.slot = Some(slot.index());
        let (addr, tap, netns) = (slot.guest_addr(), slot.open_tap(), slot.netns_path());
        self.held.slot = Some(slot);
        self.save();
        self.check_ending()?;
        let spec = self.launch_spec(&template, tap?, netns).await?;
        let machine = self.env.vmm.launch(spec).await?;
        self.record.machine = Some(machine.record().clone());
        self.held.machine = Some(machine.clone());
        self.save();
        let endpoint = Endpoint::new(addr, &self.record.access_token);
        self.wait_for_guest(&*machine, &endpoint).await?;
        self.init_guest(&template, &endpoint).await?;
        self.capsule.set_endpoint(endpoint);
        self.capsule.forget_idleness();
        Ok(())
    }

    /// Takes over what an agent that died has left running.
    pub(super) async fn take_over(&mut self) -> Result<(), CapsuleError> {
        let gone = || CapsuleError::Stopping(self.capsule.id());
        let (index, machine) = self.record.slot.zip(self.record.machine.clone()).ok_or_else(gone)?;
        self.held.machine = Some(self.env.vmm.adopt(machine).await?);
        let slot = self.env.network.adopt(index).await?;
        self.capsule.set_endpoint(Endpoint::new(slot.guest_addr(), &self.record.access_token));
        self.held.slot = Some(slot);
        debug!(capsule = %self.capsule.id(), "capsule taken over");
        Ok(())
    }

    fn template(&self) -> Result<Template, CapsuleError> {
        let path = &self.record.spec.template_path;
        let template = Template::load(&self.env.config.templates_dir().join(path))
            .map_err(|source| CapsuleError::Template { path: path.clone(), source })?;
        let (asked, needed) = (self.record.spec.shape.disk_mb, template.disk_mb);
        if asked < needed { Err(CapsuleError::DiskTooSmall { asked, needed }) } else { Ok(template) }
    }

    fn make_directory(&self) -> Result<(), CapsuleError> {
        std::fs::create_dir_all(self.dir.join("run"))?;
        std::fs::set_permissions(&self.dir, std::fs::Permissions::from_mode(0o711))?;
        Ok(())
    }

    fn check_ending(&self) -> Result<(), CapsuleError> {
        if self.capsule.ending().is_cancelled() {
            Err(CapsuleError::Stopping(self.capsule.id()))
        } else {
            Ok(())
        }
    }

    /// Makes the capsule's disk and describes its VM.
    async fn launch_spec(
        &self,
        template: &Template,
        tap: std::os::fd::OwnedFd,
        netns: std::path::PathBuf,
    ) -> Result<LaunchSpec, CapsuleError> {
        let shape = self.record.spec.shape;
        let disk = self.env.disks.create(&self.dir.join(DISK_FILE), &template.disk, shape.disk_mb).await?;
        let slot = self.record.slot.map_or(0, |slot| u32::from(slot.get()));
        let uid = self.env.config.uid_base + slot;
        Ok(LaunchSpec {
            id: self.capsule.id().to_string(),
            vcpus: shape.vcpus,
            memory_mb: shape.memory_mb,
            kernel: self.env.kernel.kernel.clone(),
            initrd: self.env.kernel.initramfs.clone(),
            cmdline: self.env.kernel.cmdline.clone(),
            disk: disk.overlay,
            disk_base: disk.base,
            memory_file: self.dir.join("memory"),
            dir: self.dir.clone(),
            netns,
            tap,
            uid,
            gid: uid,
            cgroup_parent: self.env.cgroup.clone(),
            accel: self.env.accelerator,
            tb_size_mb: TB_SIZE_MB,
        })
    }

    /// Waits until the guest daemon answers, and no longer than the guest lives or may take.
    async fn wait_for_guest(&self, machine: &dyn Machine, endpoint: &Endpoint) -> Result<(), CapsuleError> {
        let limit = self.env.config.boot_timeout;
        tokio::select! {
            () = endpoint.wait_until_healthy() => Ok(()),
            how = machine.exited() => Err(CapsuleError::GuestDied {
                how: how.to_string(),
                console: console::tail(&self.dir, CONSOLE_LINES),
            }),
            () = self.capsule.ending().cancelled() => Err(CapsuleError::Stopping(self.capsule.id())),
            () = self.env.detach.cancelled() => Err(CapsuleError::Stopping(self.capsule.id())),
            () = tokio::time::sleep(limit) => Err(CapsuleError::BootTimeout {
                seconds: limit.as_secs(),
                console: console::tail(&self.dir, CONSOLE_LINES),
            }),
        }
    }

    async fn init_guest(&mut self, template: &Template, endpoint: &Endpoint) -> Result<(), CapsuleError> {
        let spec = &self.record.spec;
        let mut env = template.default_env.clone();
        env.extend(spec.default_env.clone());
        env.insert(ENV_CAPSULE_ID.to_owned(), spec.id.to_string());
        env.insert(ENV_TEMPLATE_ID.to_owned(), spec.template_name.clone());
        let user = if spec.default_user.is_empty() { &template.default_user } else { &spec.default_user };
        let now = time::OffsetDateTime::now_utc();
        let request = InitRequest {
            env_vars: Some(env),
            access_token: Some(self.record.access_token.clone()),
            timestamp: now.format(&time::format_description::well_known::Rfc3339).ok(),
            default_user: Some(user.clone()),
            default_workdir: None,
            hostname: Some(spec.id.to_string()),
            entropy: Some(STANDARD.encode(rand::random::<[u8; ENTROPY_BYTES]>())),
        };
        let answer = endpoint.init(&request).await.map_err(|error| CapsuleError::Init(error.to_string()))?;
        self.record.guest = Some(answer);
        Ok(())
    }
}
