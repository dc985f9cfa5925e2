//! What virtual machines need: a driver with all its parts, and what executes their instructions.

use wrenn_vmm::{Accelerator, AcceleratorChoice, VmmError, firecracker};

use super::{Check, Level, program};
use crate::config::{Accel, Driver, MemoryRestore, Settings};
use crate::ops::roles;

/// How to install QEMU.
const QEMU: &str = "apt-get install qemu-system-x86 qemu-utils";

/// The checks of both drivers. One that new capsules get must be whole; of the other, what is missing is told.
pub(super) fn examine(settings: &Settings) -> Vec<Check> {
    let found = find_firecracker(settings);
    let uses_firecracker = found.is_ok() && settings.driver.value != Driver::Qemu;
    let mut checks = vec![
        qemu("qemu", "qemu-system-x86_64", uses_firecracker),
        qemu("qemu-img", "qemu-img", uses_firecracker),
        accelerator(settings.accel.value),
    ];
    checks.push(match found {
        Ok(version) if uses_firecracker => Check::ok("firecracker", format!("{version} runs new capsules")),
        Ok(version) => {
            Check::ok("firecracker", format!("{version} is there, and not used: WRENN_DRIVER is qemu"))
        }
        Err((detail, cure)) if settings.driver.value == Driver::Firecracker => {
            Check::missing("firecracker", detail, cure)
        }
        // A host without KVM lacks nothing that installing something would mend.
        Err((detail, _)) if !has_kvm(settings) => {
            Check::ok("firecracker", format!("not used: {detail} (with KVM: {})", supported()))
        }
        Err((detail, cure)) => Check::warning("firecracker", format!("not used: {detail}"), cure),
    });
    checks
}

fn qemu(name: &'static str, file: &str, uses_firecracker: bool) -> Check {
    match program(name, file, QEMU) {
        Check { level: Level::Missing, detail, .. } if uses_firecracker => {
            Check::ok(name, format!("{detail}; Firecracker runs the capsules"))
        }
        check => check,
    }
}

fn has_kvm(settings: &Settings) -> bool {
    settings.accel.value != Accel::Tcg && Accelerator::detect(AcceleratorChoice::Kvm).is_ok()
}

/// Which versions can be used, and where they come from.
fn supported() -> String {
    format!("version {} or newer, from {}", firecracker::OLDEST, firecracker::RELEASES)
}

/// What keeps Firecracker from being used, and how to mend it.
fn find_firecracker(settings: &Settings) -> Result<String, (String, String)> {
    if settings.accel.value == Accel::Tcg {
        let cure = "set WRENN_ACCEL=auto".to_owned();
        return Err(("it needs KVM, and WRENN_ACCEL is tcg".to_owned(), cure));
    }
    if let Err(error) = Accelerator::detect(AcceleratorChoice::Kvm) {
        let why = match error {
            VmmError::NoKvm { reason } => reason,
            error => error.to_string(),
        };
        return Err((format!("it needs KVM, and {why}"), "use a machine with VT-x or AMD-V".to_owned()));
    }
    let found = firecracker::find(settings.firecracker.value.as_deref()).map_err(|error| {
        let cure = format!("put `firecracker` into a directory of PATH: {}", supported());
        (error.to_string(), cure)
    })?;
    if settings.memory_restore.value != MemoryRestore::Mapped
        && let Err(error) = firecracker::check_paging()
    {
        return Err(("its memory cannot be paged in".to_owned(), error.to_string()));
    }
    if let Err(error) = wrenn_disk::Devices::open("wrenn-doctor") {
        return Err((error.to_string(), "modprobe -a dm-mod dm-snapshot loop".to_owned()));
    }
    Ok(format!("version {} ({})", found.version, found.binary.display()))
}

fn accelerator(wanted: Accel) -> Check {
    match Accelerator::detect(roles::accelerator_choice(wanted)) {
        Ok(Accelerator::Kvm) => Check::ok("accelerator", "KVM"),
        Ok(_) if wanted == Accel::Tcg => Check::ok("accelerator", "software emulation (TCG), as configured"),
        Ok(_) => Check::warning(
            "accelerator",
            "no hardware virtualisation (the CPU shows neither vmx nor svm, or /dev/kvm does not open): software emulation (TCG)",
            "use a machine with VT-x or AMD-V, or allow nested virtualisation, then: modprobe kvm_intel || modprobe kvm_amd",
        ),
        Err(error) => Check::missing("accelerator", error.to_string(), "set WRENN_ACCEL=auto"),
    }
}
