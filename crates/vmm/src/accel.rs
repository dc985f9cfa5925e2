//! What executes the guest's instructions.
//!
//! `/dev/kvm` alone proves nothing: on a paravirtual host it opens and makes VMs, yet an ordinary kernel hangs in them,
//! for the CPU has no virtualisation extension. So KVM needs both the CPU flag and the device.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::VmmError;

const KVM: &str = "/dev/kvm";

/// The accelerator in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's translator, which needs nothing of the CPU.
    Tcg,
}

/// What the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM where the machine has it.
    #[default]
    Auto,
    /// KVM or an error.
    Kvm,
    /// TCG even where KVM works.
    Tcg,
}

impl FromStr for AcceleratorChoice {
    type Err = VmmError;

    fn from_str(text: &str) -> Result<Self, VmmError> {
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(VmmError::UnknownAccelerator { found: text.to_owned() }),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl Accelerator {
    /// The accelerator for this machine and this choice.
    ///
    /// # Errors
    /// [`VmmError::NoKvm`] where KVM was demanded and is not there.
    pub fn detect(choice: AcceleratorChoice) -> Result<Self, VmmError> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let device = std::fs::OpenOptions::new().read(true).write(true).open(KVM).map(drop);
        decide(choice, &cpuinfo, device)
    }
}

fn decide(
    choice: AcceleratorChoice,
    cpuinfo: &str,
    device: std::io::Result<()>,
) -> Result<Accelerator, VmmError> {
    let missing = match device {
        _ if !has_virtualisation(cpuinfo) => Some("the CPU shows neither vmx nor svm".to_owned()),
        Err(error) => Some(format!("{KVM} does not open ({error})")),
        Ok(()) => None,
    };
    match (choice, missing) {
        (AcceleratorChoice::Kvm, Some(reason)) => Err(VmmError::NoKvm { reason }),
        (AcceleratorChoice::Tcg, _) | (_, Some(_)) => Ok(Accelerator::Tcg),
        (AcceleratorChoice::Auto | AcceleratorChoice::Kvm, None) => Ok(Accelerator::Kvm),
    }
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH: &str = "processor\t: 0\nflags\t\t: fpu vme svm npt\n";
    const WITHOUT: &str = "processor\t: 0\nflags\t\t: fpu vme svm_lock\nvmx flags\t: ept\n";

    fn refused() -> std::io::Result<()> {
        Err(std::io::ErrorKind::NotFound.into())
    }

    #[test]
    fn kvm_needs_both_the_cpu_flag_and_the_device() {
        let auto = |cpu, device| decide(AcceleratorChoice::Auto, cpu, device).unwrap();
        assert_eq!(auto(WITH, Ok(())), Accelerator::Kvm);
        assert_eq!(auto(WITHOUT, Ok(())), Accelerator::Tcg);
        assert_eq!(auto(WITH, refused()), Accelerator::Tcg);
    }

    #[test]
    fn tcg_can_be_forced_and_kvm_demanded() {
        assert_eq!(decide(AcceleratorChoice::Tcg, WITH, Ok(())).unwrap(), Accelerator::Tcg);
        assert_eq!(decide(AcceleratorChoice::Kvm, WITH, Ok(())).unwrap(), Accelerator::Kvm);
        let error = decide(AcceleratorChoice::Kvm, WITHOUT, Ok(())).unwrap_err();
        assert!(error.to_string().contains("neither vmx nor svm"), "{error}");
        let error = decide(AcceleratorChoice::Kvm, WITH, refused()).unwrap_err();
        assert!(error.to_string().contains("/dev/kvm"), "{error}");
    }

    #[test]
    fn a_choice_is_read_from_text_and_a_wrong_one_named() {
        assert_eq!("KVM".parse::<AcceleratorChoice>().unwrap(), AcceleratorChoice::Kvm);
        assert_eq!("".parse::<AcceleratorChoice>().unwrap(), AcceleratorChoice::Auto);
        assert!("xen".parse::<AcceleratorChoice>().unwrap_err().to_string().contains("\"xen\""));
    }
}
