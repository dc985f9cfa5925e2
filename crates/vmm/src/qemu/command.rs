//! QEMU's command line for one machine.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use super::{Qemu, Version, blocks};
use crate::{Accelerator, LaunchSpec};

/// Below this version, several emulated CPUs in several threads can hang a guest that patches its own kernel text.
const THREADED_TCG: Version = Version(8, 1);

/// Legacy timer and interrupt controller are off: with ACPI the kernel leaves the controller uninitialised, and the
/// timer's first interrupt would then arrive as a division by zero (seen in one boot of ten). ACPI stays on, for
/// without its tables the guest finds one CPU only.
const MACHINE: &str = "microvm,memory-backend=ram,pic=off,pit=off,rtc=on";

/// Nothing QEMU does after its start needs a new program, other ids, or obsolete calls.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The files of a [`LaunchSpec`] as QEMU sees them, and the descriptors it inherits.
#[derive(Debug)]
pub(super) struct View {
    /// Kernel, initial file system and the kernel's command line; none for a snapshot, which has them in its memory.
    pub(super) boot: Option<(PathBuf, PathBuf, String)>,
    pub(super) memory: PathBuf,
    pub(super) console: PathBuf,
    pub(super) tap: RawFd,
    pub(super) control: RawFd,
}

pub(super) fn arguments(qemu: &Qemu, spec: &LaunchSpec, view: &View) -> Vec<OsString> {
    let mut args = Arguments::default();
    args.flags(&["-nodefaults", "-no-user-config", "-no-reboot"]);
    args.pair("-display", "none");
    args.pair("-name", format!("guest={}", spec.id));
    args.pair("-sandbox", SANDBOX);
    machine(&mut args, qemu, spec, view);
    disk(&mut args);
    args.pair("-netdev", format!("tap,id=net0,fd={}", view.tap));
    let mac = spec.mac.map(|byte| format!("{byte:02x}")).join(":");
    args.pair("-device", format!("virtio-net-device,netdev=net0,mac={mac}"));
    args.pair("-object", "rng-builtin,id=rng0");
    args.pair("-device", "virtio-rng-device,rng=rng0");
    args.pair("-chardev", format!("file,id=console,path={},append=on", escaped(&view.console)));
    args.pair("-serial", "chardev:console");
    args.pair("-chardev", format!("socket,id=control,fd={},server=on,wait=off", view.control));
    args.pair("-mon", "chardev=control,mode=control");
    args.flags(&["-S"]);
    if view.boot.is_none() {
        // The state of the devices comes without the description of the machine that a migration has in front.
        args.pair("-global", "migration.send-configuration=off");
        args.pair("-incoming", "defer");
    }
    args.0
}

fn machine(args: &mut Arguments, qemu: &Qemu, spec: &LaunchSpec, view: &View) {
    args.pair("-M", MACHINE);
    args.pair("-accel", accelerator(qemu.version, spec));
    args.pair(
        "-cpu",
        match spec.accel {
            Accelerator::Kvm => "host",
            // Without these two the guest's kernel copies by the word: the translator executes a string move byte by byte,
            // which halves what goes through a socket.
            Accelerator::Tcg => "max,-erms,-fsrm",
        },
    );
    args.pair("-smp", spec.vcpus.to_string());
    args.pair("-m", format!("{}M", spec.memory_mb));
    let memory = escaped(&view.memory);
    // A snapshot's base is shared with other machines, so the VMM may not even hold it open for writing.
    let access = if view.boot.is_none() { ",readonly=on,rom=off" } else { "" };
    args.pair(
        "-object",
        format!("memory-backend-file,id=ram,size={}M,mem-path={memory},share=off{access}", spec.memory_mb),
    );
    if let Some((kernel, initrd, cmdline)) = &view.boot {
        args.pair("-kernel", kernel.as_os_str());
        args.pair("-initrd", initrd.as_os_str());
        args.pair("-append", kernel_cmdline(qemu, spec.accel, cmdline));
    }
}

fn accelerator(version: Version, spec: &LaunchSpec) -> String {
    match spec.accel {
        Accelerator::Kvm => "kvm".to_owned(),
        Accelerator::Tcg => {
            let threads = if spec.vcpus > 1 && version < THREADED_TCG { ",thread=single" } else { "" };
            format!("tcg,tb-size={}{threads}", spec.tb_size_mb)
        }
    }
}

fn kernel_cmdline(qemu: &Qemu, accel: Accelerator, cmdline: &str) -> String {
    match (accel, qemu.tsc_khz) {
        (Accelerator::Tcg, Some(khz)) => format!("{cmdline} tsc_early_khz={khz}"),
        // Under KVM the paravirtual clock tells the guest.
        _ => cmdline.to_owned(),
    }
}

/// The device is bound to a node of its own, below which [`blocks`](super::blocks) puts the disk once the machine is
/// there: so a VMM can be started before it is known whose it will be.
fn disk(args: &mut Arguments) {
    args.pair("-blockdev", blocks::nothing().to_string());
    args.pair("-blockdev", blocks::root(blocks::NOTHING).to_string());
    args.pair("-device", format!("virtio-blk-device,drive={}", blocks::ROOT));
}

/// QEMU's option lists are split at commas; a doubled comma stands for itself.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[derive(Debug, Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }

    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.extend([name.into(), value.into()]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::Start;

    fn spec(vcpus: u32, accel: Accelerator) -> LaunchSpec {
        LaunchSpec {
            id: "cl-1".into(),
            vcpus,
            memory_mb: 512,
            start: Start::Restore { base: "/c/memory".into() },
            dir: "/c".into(),
            netns: "/run/netns/x".into(),
            tap: OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null opens")),
            mac: [2, 0, 0, 0, 0, 1],
            uid: 1,
            gid: 1,
            cgroup_parent: None,
            accel,
            tb_size_mb: 64,
            egress_bytes_per_second: None,
        }
    }

    fn line(version: Version, spec: &LaunchSpec) -> String {
        let boot = ("/v/kernel/vmlinux".into(), "/v/initrd/initramfs".into(), "quiet".to_owned());
        line_of(version, spec, Some(boot))
    }

    fn line_of(version: Version, spec: &LaunchSpec, boot: Option<(PathBuf, PathBuf, String)>) -> String {
        let view = View {
            boot,
            memory: "/v/memory/a,b".into(),
            console: "/v/vm/console.log".into(),
            tap: 7,
            control: 8,
        };
        let qemu = Qemu { binary: "qemu".into(), version, tsc_khz: Some(2_600_000) };
        let words = arguments(&qemu, spec, &view);
        words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn several_emulated_cpus_share_a_thread_on_an_old_qemu_only() {
        let (one, two) = (spec(1, Accelerator::Tcg), spec(2, Accelerator::Tcg));
        assert!(line(Version(7, 2), &two).contains("tcg,tb-size=64,thread=single"));
        assert!(!line(Version(7, 2), &one).contains("thread=single"));
        assert!(!line(Version(10, 0), &two).contains("thread=single"));
    }

    #[test]
    fn the_counter_rate_is_told_under_emulation_only() {
        let text = line(Version(10, 0), &spec(1, Accelerator::Tcg));
        assert!(text.contains("-append quiet tsc_early_khz=2600000 ") && text.contains("-cpu max"), "{text}");
        let text = line(Version(10, 0), &spec(1, Accelerator::Kvm));
        assert!(!text.contains("tsc_early_khz") && text.contains("-accel kvm -cpu host"), "{text}");
    }

    #[test]
    fn commas_in_file_names_stay_in_the_name() {
        let text = line(Version(10, 0), &spec(1, Accelerator::Tcg));
        assert!(text.contains("mem-path=/v/memory/a,,b,share=off"), "{text}");
    }

    #[test]
    fn a_snapshot_needs_no_kernel_and_waits_for_its_state() {
        let text = line_of(Version(10, 0), &spec(1, Accelerator::Tcg), None);
        assert!(
            !text.contains("-kernel")
                && text.ends_with("-S -global migration.send-configuration=off -incoming defer")
        );
        assert!(line(Version(10, 0), &spec(1, Accelerator::Tcg)).ends_with("-S"));
    }
}
