//! The kinds of virtual machines that this host can run, each with the disks that go with it.
//!
//! A new capsule gets the host's *default* driver. One that exists keeps the driver that it was made with: its record names
//! it, and so does every snapshot. What names a driver that the host lacks is refused by that name and left alone.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use tracing::{info, warn};
use wrenn_disk::{CowDisks, Devices, Qcow2Disks, RootDisks};
use wrenn_vmm::firecracker::{self, Firecracker, Restore};
use wrenn_vmm::qemu::{self, Qemu};
use wrenn_vmm::{Accelerator, AcceleratorChoice, Vmm};

use crate::config::AgentConfig;
use crate::error::CapsuleError;
use crate::host;
use crate::mapper::Mapper;
use crate::record::Record;
use crate::saved::Fits;

/// Which driver new capsules get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriverChoice {
    /// Firecracker where the host has it, KVM and device-mapper; else QEMU.
    #[default]
    Auto,
    /// QEMU.
    Qemu,
    /// Firecracker, or the agent does not start.
    Firecracker,
}

impl FromStr for DriverChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "auto" => Ok(Self::Auto),
            "qemu" => Ok(Self::Qemu),
            "firecracker" => Ok(Self::Firecracker),
            _ => Err(format!("a driver is one of auto, qemu and firecracker, not {text:?}")),
        }
    }
}

/// One kind of virtual machine.
#[derive(Debug)]
pub struct Driver {
    /// Its name in records.
    pub name: &'static str,
    /// Starts and finds the machines.
    pub vmm: Arc<dyn Vmm>,
    /// Their root disks.
    pub disks: Arc<dyn RootDisks>,
    /// What executes their guests' instructions.
    pub accelerator: Accelerator,
    /// What a saved machine must fit to be brought back by it.
    pub fits: Fits,
    /// Block devices, for those that need them.
    devices: Option<Arc<Mapper>>,
}

/// The drivers of a host.
#[derive(Debug)]
pub struct Drivers {
    default: Arc<Driver>,
    all: Vec<Arc<Driver>>,
    /// Those that the host lacks, and why.
    missing: Vec<(&'static str, String)>,
}

/// No such driver here.
#[derive(Debug, Clone, thiserror::Error)]
#[error("it is a machine of the driver `{name}`, which this host lacks: {reason}")]
pub struct Missing {
    /// The driver's name.
    pub name: String,
    /// Why it is not there, and what to do about it.
    pub reason: String,
}

impl Drivers {
    /// Looks for all drivers. `installation` names what they make on the machine.
    ///
    /// # Errors
    /// Where the one that the configuration asks for is not there, or none is.
    pub async fn open(config: &AgentConfig, installation: &str) -> anyhow::Result<Self> {
        let firecracker = open_firecracker(config, installation).await;
        let qemu = open_qemu(config).await;
        let wanted = match config.driver {
            DriverChoice::Firecracker => vec![firecracker::DRIVER],
            DriverChoice::Qemu => vec![qemu::DRIVER],
            DriverChoice::Auto => vec![firecracker::DRIVER, qemu::DRIVER],
        };
        let (mut all, mut missing) = (Vec::new(), Vec::new());
        for (name, opened) in [(firecracker::DRIVER, firecracker), (qemu::DRIVER, qemu)] {
            match opened {
                Ok(driver) => all.push(Arc::new(driver)),
                Err(error) => missing.push((name, format!("{error:#}"))),
            }
        }
        let found = wanted.iter().find_map(|name| all.iter().find(|driver| driver.name == *name));
        let Some(default) = found.cloned() else {
            let reasons: Vec<String> = missing
                .iter()
                .filter(|(name, _)| wanted.contains(name))
                .map(|(name, reason)| format!("{name}: {reason}"))
                .collect();
            anyhow::bail!("no virtual machine can be run here; {}", reasons.join("; "));
        };
        info!("capsules are made with {}", default.fits);
        Ok(Self { default, all, missing })
    }

    /// The one that new capsules get.
    pub fn default(&self) -> &Arc<Driver> {
        &self.default
    }

    /// The driver of that name.
    ///
    /// # Errors
    /// [`Missing`] where the host lacks it.
    pub fn get(&self, name: &str) -> Result<&Arc<Driver>, Missing> {
        self.all.iter().find(|driver| driver.name == name).ok_or_else(|| {
            let missing = self.missing.iter().find(|(missing, _)| *missing == name);
            let unknown = "this release does not know it".to_owned();
            let reason = missing.map_or(unknown, |(_, reason)| reason.clone());
            Missing { name: name.to_owned(), reason }
        })
    }

    /// Removes block devices of this installation whose machine no record names.
    ///
    /// # Errors
    /// Where the kernel keeps one.
    pub async fn sweep(&self, records: &[Record]) -> Result<(), CapsuleError> {
        let known: BTreeSet<&str> =
            records.iter().filter_map(|record| Some(record.machine.as_ref()?.id.as_str())).collect();
        for mapper in self.all.iter().filter_map(|driver| driver.devices.as_ref()) {
            for owner in mapper.owners().await? {
                if !known.contains(&*owner) {
                    warn!("removed the block devices of {owner}, whose machine no record names");
                    mapper.remove(&owner).await?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fits.vmm)
    }
}

async fn open_qemu(config: &AgentConfig) -> anyhow::Result<Driver> {
    let vmm = Qemu::detect(None).await?;
    let disks = Qcow2Disks::default();
    disks.version().await?;
    let accelerator = Accelerator::detect(config.accelerator)?;
    let fits = Fits { vmm: format!("{} {}", qemu::DRIVER, vmm.version()), cpu: host::cpu(accelerator) };
    let (vmm, disks) = (Arc::new(vmm), Arc::new(disks));
    Ok(Driver { name: qemu::DRIVER, vmm, disks, accelerator, fits, devices: None })
}

async fn open_firecracker(config: &AgentConfig, installation: &str) -> anyhow::Result<Driver> {
    let found = firecracker::find(config.firecracker.as_deref())?;
    if config.accelerator == AcceleratorChoice::Tcg {
        anyhow::bail!("it needs KVM, and WRENN_ACCEL asks for software emulation");
    }
    let accelerator = Accelerator::detect(AcceleratorChoice::Kvm)?;
    if config.restore != Restore::Mapped {
        firecracker::check_paging()?;
    }
    let devices = Devices::open(&format!("wrenn-{}", short(installation)))
        .context("it needs block devices of the device mapper")?;
    let fits =
        Fits { vmm: format!("{} {}", firecracker::DRIVER, found.version), cpu: host::cpu(accelerator) };
    let mapper = Arc::new(Mapper::new(devices));
    let vmm = Firecracker::new(found, mapper.clone(), config.pager.clone(), config.restore);
    Ok(Driver {
        name: firecracker::DRIVER,
        vmm: Arc::new(vmm),
        disks: Arc::new(CowDisks),
        accelerator,
        fits,
        devices: Some(mapper),
    })
}

/// Device names are short, and the first digits of a random id tell installations of one machine apart.
fn short(installation: &str) -> String {
    installation.chars().filter(char::is_ascii_alphanumeric).take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_chosen_by_name_and_a_wrong_one_named() {
        assert_eq!("Firecracker".parse::<DriverChoice>().unwrap(), DriverChoice::Firecracker);
        assert_eq!("".parse::<DriverChoice>().unwrap(), DriverChoice::Auto);
        assert!("xen".parse::<DriverChoice>().unwrap_err().contains("\"xen\""));
    }
}
