//! The QEMU driver: the `microvm` machine, its control socket, and its confinement.
//!
//! Devices, in the order that fixes their addresses: root disk, network, entropy. Guest memory is a private mapping of
//! a file, so that "anonymous in the mapping" is the exact set of pages the guest has written; it is read and patched from
//! outside while the machine is stopped. The state of CPUs and devices goes through `xen-save-devices-state`, which
//! writes a migration stream without memory, and comes back as an incoming migration. QEMU ends when the guest reboots or
//! panics (`-no-reboot` with `panic=-1 reboot=t` on the kernel's command line).
//!
//! The control socket is bound by the launcher and inherited, so it can be connected to from the first moment, and QEMU
//! needs no directory that it may write.

mod blocks;
mod command;
mod dirty;
mod launch;
mod machine;
mod memory;
mod tsc;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use crate::launch::Starting;
use crate::remains::{self, Remains};
use crate::{LaunchSpec, Machine, MachineRecord, Start, Vmm, VmmError};
use machine::QemuMachine;

/// The binary's name where none is given.
pub const BINARY: &str = "qemu-system-x86_64";
/// [`MachineRecord::driver`] of this driver's machines.
pub const DRIVER: &str = "qemu";

/// What the guest's kernel needs on its command line for this machine model to work as documented: a console, and an
/// end of QEMU on panic and reboot. The crypto self-tests cost a fifth of a second under emulation and prove nothing
/// about a distribution's own kernel. CPU mitigations stay on: they cost nothing measurable at boot, and programs of
/// different trust may share a guest.
pub const KERNEL_CMDLINE: &str =
    "console=ttyS0 reboot=t panic=-1 quiet random.trust_cpu=on 8250.nr_uarts=1 cryptomgr.notests";

/// An initial file system must be a multiple of this many bytes long. QEMU puts it at the end of memory, rounded down to
/// a page; the firmware puts the ACPI tables (about a kilobyte) there too, at the very end. Whole pages leave it one.
pub const INITRD_ALIGNMENT: u64 = 4096;

/// The first version that does all that snapshots need: it maps a file privately which it has open for reading only (8.2),
/// and lets go of a descriptor as soon as it is told to (9.1).
const RESTORES: Version = Version(9, 1);

/// How to install it.
const INSTALL: &str = "apt-get install qemu-system-x86";
/// Where a newer one is.
const NEWER: &str = "install a newer QEMU (Debian 12 has one in bookworm-backports)";

/// QEMU's major and minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The driver, for one QEMU binary.
#[derive(Debug, Clone)]
pub struct Qemu {
    binary: PathBuf,
    version: Version,
    tsc_khz: Option<u64>,
}

impl Qemu {
    /// Finds the QEMU to use (`binary` is a path, or a name to look up in `PATH`) and asks for its version.
    ///
    /// # Errors
    /// [`VmmError::BinaryMissing`], [`VmmError::Version`], or [`VmmError::Io`] where it does not run.
    pub async fn detect(binary: Option<&Path>) -> Result<Self, VmmError> {
        let binary = binary.unwrap_or(Path::new(BINARY)).to_path_buf();
        let output = tokio::process::Command::new(&binary)
            .arg("--version")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| match source.kind() {
                ErrorKind::NotFound => {
                    VmmError::BinaryMissing { binary: binary.clone(), cure: INSTALL.to_owned() }
                }
                _ => VmmError::io("run", &binary, source),
            })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = text.lines().next().unwrap_or_default();
        let version = parse_version(said)
            .ok_or_else(|| VmmError::Version { binary: binary.clone(), said: said.to_owned() })?;
        Ok(Self { binary, version, tsc_khz: tsc::measure().await })
    }

    /// The version found.
    pub fn version(&self) -> Version {
        self.version
    }

    fn check_restores(&self, spec: &LaunchSpec) -> Result<(), VmmError> {
        if matches!(spec.start, Start::Boot { .. }) || self.version >= RESTORES {
            return Ok(());
        }
        let (found, needed) = (self.version.to_string(), RESTORES.to_string());
        Err(VmmError::TooOld { binary: self.binary.clone(), found, needed, cure: NEWER.to_owned() })
    }

    /// The binary in use.
    pub fn binary(&self) -> &Path {
        &self.binary
    }
}

/// From `QEMU emulator version 10.0.2 (Debian …)`.
fn parse_version(line: &str) -> Option<Version> {
    let mut numbers = line.strip_prefix("QEMU emulator version ")?.split(|c: char| !c.is_ascii_digit());
    Some(Version(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[async_trait]
impl Vmm for Qemu {
    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Machine>, VmmError> {
        self.check_restores(&spec)?;
        let qemu = self.clone();
        // Files, mounts and the fork block for milliseconds. If this call is cancelled, the guard is dropped on the
        // other thread and takes the process with it.
        let starting: Starting = tokio::task::spawn_blocking(move || launch::begin(&qemu, &spec))
            .await
            .map_err(|error| VmmError::io("start", &self.binary, error))??;
        Ok(Arc::new(launch::finish(starting).await?))
    }

    async fn adopt(&self, record: MachineRecord) -> Result<Arc<dyn Machine>, VmmError> {
        record.expect_driver(DRIVER)?;
        let remains = Remains::find(record)?;
        Ok(Arc::new(QemuMachine::connect(remains).await?))
    }

    async fn discard(&self, record: &MachineRecord) -> Result<(), VmmError> {
        record.expect_driver(DRIVER)?;
        match Remains::find(record.clone()) {
            Ok(remains) => remains.destroy().await,
            Err(VmmError::Gone { .. }) => remains::remove_traces(record).await,
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_and_of_development_are_read() {
        let read = |text| parse_version(text);
        assert_eq!(read("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some(Version(10, 0)));
        assert_eq!(read("QEMU emulator version 7.2.22"), Some(Version(7, 2)));
        assert_eq!(read("bash 5.2"), None);
        assert!(Version(7, 2) < Version(8, 1) && Version(10, 0) > Version(8, 1));
    }
}
