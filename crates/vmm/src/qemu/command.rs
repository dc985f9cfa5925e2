//! QEMU's command line for one machine.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Qemu, Version};
use crate::{Accelerator, LaunchSpec};

/// The same in every capsule: the network namespace keeps them apart, and a snapshot fits any slot.
const GUEST_MAC: &str = "02:00:00:00:00:01";

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
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) disk: PathBuf,
    pub(super) disk_base: PathBuf,
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
    disk(&mut args, view);
    args.pair("-netdev", format!("tap,id=net0,fd={}", view.tap));
    args.pair("-device", format!("virtio-net-device,netdev=net0,mac={GUEST_MAC}"));
    args.pair("-object", "rng-builtin,id=rng0");
    args.pair("-device", "virtio-rng-device,rng=rng0");
    args.pair("-chardev", format!("file,id=console,path={},append=on", escaped(&view.console)));
    args.pair("-serial", "chardev:console");
    args.pair("-chardev", format!("socket,id=control,fd={},server=on,wait=off", view.control));
    args.pair("-mon", "chardev=control,mode=control");
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
    args.pair(
        "-object",
        format!("memory-backend-file,id=ram,size={}M,mem-path={memory},share=off", spec.memory_mb),
    );
    args.pair("-kernel", view.kernel.as_os_str());
    args.pair("-initrd", view.initrd.as_os_str());
    args.pair("-append", kernel_cmdline(qemu, spec));
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

fn kernel_cmdline(qemu: &Qemu, spec: &LaunchSpec) -> String {
    match (spec.accel, qemu.tsc_khz) {
        (Accelerator::Tcg, Some(khz)) => format!("{} tsc_early_khz={khz}", spec.cmdline),
        // Under KVM the paravirtual clock tells the guest.
        _ => spec.cmdline.clone(),
    }
}

/// Each layer is a node of its own: the base is opened read-only and never probed, whatever its first bytes say.
///
/// A guest's flush reaches the host's page cache and no further. What survives a crash of the host must have its disk
/// *and* its memory there, and those who write such a snapshot make both durable; a running machine is lost anyway, and
/// every `fsync` in it would wait for the host's disk for nothing.
fn disk(args: &mut Arguments, view: &View) {
    let volatile = json!({ "no-flush": true });
    let nodes = [
        json!({ "driver": "file", "node-name": "base-file", "filename": view.disk_base, "read-only": true }),
        json!({ "driver": "raw", "node-name": "base", "file": "base-file", "read-only": true }),
        json!({ "driver": "file", "node-name": "root-file", "filename": view.disk, "discard": "unmap", "cache": volatile }),
        json!({ "driver": "qcow2", "node-name": "root", "file": "root-file", "backing": "base", "discard": "unmap", "cache": volatile }),
    ];
    for node in nodes {
        args.pair("-blockdev", node.to_string());
    }
    args.pair("-device", "virtio-blk-device,drive=root");
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

    fn spec(vcpus: u32, accel: Accelerator) -> LaunchSpec {
        LaunchSpec {
            id: "cl-1".into(),
            vcpus,
            memory_mb: 512,
            kernel: "/k/vmlinux".into(),
            initrd: "/k/initramfs".into(),
            cmdline: "quiet".into(),
            disk: "/c/root.qcow2".into(),
            disk_base: "/t/rootfs.ext4".into(),
            memory_file: "/c/memory".into(),
            dir: "/c".into(),
            netns: "/run/netns/x".into(),
            tap: OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null opens")),
            uid: 1,
            gid: 1,
            cgroup_parent: None,
            accel,
            tb_size_mb: 64,
        }
    }

    fn line(version: Version, spec: &LaunchSpec) -> String {
        let view = View {
            kernel: "/v/kernel/vmlinux".into(),
            initrd: "/v/initrd/initramfs".into(),
            disk: "/v/disk/a,b.qcow2".into(),
            disk_base: "/v/base/rootfs.ext4".into(),
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
        assert!(text.contains(r#""filename":"/v/disk/a,b.qcow2""#), "{text}");
    }
}
