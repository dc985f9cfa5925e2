//! The Firecracker driver, for hosts with KVM.
//!
//! Firecracker runs as a user of its own in the machine's network namespace and cgroup, in a mount namespace in which it sees
//! nothing of the machine but its own directory and the nodes of its devices (and, where it boots, the directory of the
//! kernel, to read), and under its own seccomp filters. Root disks
//! are block devices that whoever owns the host's disks makes ([`BlockDevices`]).
//!
//! A snapshot is one call that writes state and memory of the same moment; [`Machine::save_memory`] makes it and
//! [`Machine::save_devices`] takes its other half. A restore is one call too, so [`Machine::load_memory`] only checks what
//! [`Machine::load_devices`] then brings: served page by page by a [pager](crate::pager) of its own, or mapped.
//!
//! The metadata service (MMDS, version 2, at 169.254.169.254 in the guest) answers what [`Machine::set_metadata`] says.

mod api;
mod ending;
mod launch;
mod machine;
mod memory;
mod nodes;
mod room;
mod state;
mod types;

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use crate::blocks::BlockDevices;
use crate::pager::PagerProgram;
use crate::remains::Remains;
use crate::{Accelerator, LaunchSpec, Machine, MachineRecord, Vmm, VmmError};
use machine::FirecrackerMachine;

pub use api::ApiError;

/// The binary's name where none is given.
pub const BINARY: &str = "firecracker";
/// [`MachineRecord::driver`] of this driver's machines.
pub const DRIVER: &str = "firecracker";
/// Where releases come from.
pub const RELEASES: &str = "https://github.com/firecracker-microvm/firecracker/releases";
/// The first version that is supported.
pub const OLDEST: Version = Version(1, 14, 0);

/// Firecracker's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// How the memory of a snapshot comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Restore {
    /// Mapped where it lies in one file already, as that of a template that was booted ahead of time does; else paged.
    #[default]
    Auto,
    /// Page by page, as the guest touches it, from a process of its own. Takes no more memory than is touched.
    Paged,
    /// Mapped privately from one file. What lies in layers is first written into one.
    Mapped,
}

impl Restore {
    /// Whether memory with that many layers over its base is mapped.
    fn maps(self, layers: usize) -> bool {
        match self {
            Self::Auto => layers == 0,
            Self::Paged => false,
            Self::Mapped => true,
        }
    }
}

/// The driver, for one Firecracker binary.
#[derive(Debug, Clone)]
pub struct Firecracker {
    binary: PathBuf,
    version: Version,
    devices: Arc<dyn BlockDevices>,
    pager: PagerProgram,
    restore: Restore,
}

impl Firecracker {
    /// A driver over a binary that [`find`] found. `devices` makes root disks, `pager` is started for each paged restore.
    pub fn new(found: Found, devices: Arc<dyn BlockDevices>, pager: PagerProgram, restore: Restore) -> Self {
        let Found { binary, version } = found;
        Self { binary, version, devices, pager, restore }
    }

    /// The version found.
    pub fn version(&self) -> Version {
        self.version
    }
}

/// A Firecracker on this machine.
#[derive(Debug, Clone)]
pub struct Found {
    /// The binary.
    pub binary: PathBuf,
    /// Its version, which is supported.
    pub version: Version,
}

/// Finds the Firecracker to use (`binary` is a path, or a name to look up in `PATH`) and asks for its version. Blocks for
/// milliseconds.
///
/// # Errors
/// [`VmmError::BinaryMissing`], [`VmmError::Version`], [`VmmError::TooOld`], or [`VmmError::Io`] where it does not run.
pub fn find(binary: Option<&Path>) -> Result<Found, VmmError> {
    let binary = binary.unwrap_or(Path::new(BINARY)).to_path_buf();
    let output = std::process::Command::new(&binary)
        .arg("--version")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|source| match source.kind() {
            ErrorKind::NotFound => VmmError::BinaryMissing {
                binary: binary.clone(),
                cure: format!("install a release from {RELEASES}"),
            },
            _ => VmmError::io("run", &binary, source),
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = text.lines().next().unwrap_or_default();
    let version = parse_version(said)
        .ok_or_else(|| VmmError::Version { binary: binary.clone(), said: said.to_owned() })?;
    if version < OLDEST {
        let (found, needed) = (version.to_string(), OLDEST.to_string());
        let cure = format!("install a newer release from {RELEASES}");
        return Err(VmmError::TooOld { binary, found, needed, cure });
    }
    Ok(Found { binary, version })
}

/// Whether a paged restore is possible here.
///
/// # Errors
/// [`VmmError::NoUserfaultfd`] where the kernel has no device for it.
pub fn check_paging() -> Result<(), VmmError> {
    let there = std::fs::metadata(nodes::USERFAULTFD);
    there.map(drop).map_err(|source| VmmError::NoUserfaultfd { source })
}

/// From `Firecracker v1.16.1`.
fn parse_version(line: &str) -> Option<Version> {
    let mut numbers = line.strip_prefix("Firecracker v")?.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some(Version(next()?, next()?, next()?))
}

#[async_trait]
impl Vmm for Firecracker {
    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Machine>, VmmError> {
        if spec.accel != Accelerator::Kvm {
            let reason =
                "Firecracker has no other way to run a guest, and this host none of its own".to_owned();
            return Err(VmmError::NoKvm { reason });
        }
        let driver = self.clone();
        // As with QEMU: a call that is cancelled drops its guard on the other thread, and the process with it.
        let (begun, facts) = tokio::task::spawn_blocking(move || launch::begin(&driver, spec))
            .await
            .map_err(|error| VmmError::io("start", &self.binary, std::io::Error::other(error)))??;
        let parts = launch::finish(begun, facts).await?;
        Ok(Arc::new(FirecrackerMachine::new(self.clone(), parts, facts)))
    }

    async fn adopt(&self, record: MachineRecord) -> Result<Arc<dyn Machine>, VmmError> {
        record.expect_driver(DRIVER)?;
        let remains = Remains::find(record)?;
        Ok(Arc::new(FirecrackerMachine::connect(self.clone(), remains).await?))
    }

    async fn discard(&self, record: &MachineRecord) -> Result<(), VmmError> {
        record.expect_driver(DRIVER)?;
        match Remains::find(record.clone()) {
            Ok(remains) => remains.process.kill().await?,
            Err(VmmError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
        machine::release(self, record).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_releases_and_of_development_are_read() {
        assert_eq!(parse_version("Firecracker v1.16.1"), Some(Version(1, 16, 1)));
        assert_eq!(parse_version("Firecracker v1.17.0-dev"), Some(Version(1, 17, 0)));
        assert_eq!(parse_version("QEMU emulator version 10.0.2"), None);
        assert!(Version(1, 9, 0) < OLDEST && Version(1, 14, 4) > OLDEST);
    }
}
