//! A bench for the QEMU driver: kernels of a few bytes in place of Linux, so that a boot takes no time and what the
//! guest does is known exactly.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use wrenn_vmm::CONSOLE;
use wrenn_vmm::qemu::Qemu;
use wrenn_vmm::{Accelerator, DiskFiles, LaunchSpec, Machine, Start, Vmm, VmmError, cgroup};

/// Catches a hang; nothing here is timed.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// What the guest does after it has printed `hello` on its console.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Guest {
    /// Sleeps with interrupts off.
    Halts,
    /// Prints dots for ever.
    Ticks,
    #[allow(dead_code, reason = "one of the test files uses it")]
    /// Prints the letters from `b` to `p` and `a` in turn for ever; the next one is kept in memory.
    Counts,
    /// Faults until the CPU resets, as a panicking Linux does with `reboot=t`.
    Crashes,
}

impl Guest {
    fn code(self) -> Vec<u8> {
        const BASE: u32 = 0x10_0000;
        let end: &[u8] = match self {
            // cli; hlt; jmp back
            Self::Halts => &[0xfa, 0xf4, 0xeb, 0xfc],
            // again: mov ecx, 2^20; loop $; mov al, '.'; out dx, al; jmp again
            Self::Ticks => &[0xb9, 0, 0, 0x10, 0, 0xe2, 0xfe, 0xb0, b'.', 0xee, 0xeb, 0xf4],
            // again: mov ecx, 2^19; loop $; inc byte [2M]; mov al, [2M]; and al, 15; add al, 'a'; out dx, al; jmp again
            Self::Counts => &[
                0xb9, 0, 0, 8, 0, 0xe2, 0xfe, 0xfe, 0x05, 0, 0, 0x20, 0, 0xa0, 0, 0, 0x20, 0, 0x24, 15, 4,
                b'a', 0xee, 0xeb, 0xe7,
            ],
            // lidt [all zero]; int3
            Self::Crashes => &[0x0f, 0x01, 0x1d, 0, 0, 0, 0, 0xcc],
        };
        let message = BASE + 17 + u32::try_from(end.len()).expect("a few bytes");
        // mov dx, 0x3f8; mov esi, message; next: lodsb; test al, al; jz end; out dx, al; jmp next; end:
        let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xbe];
        code.extend(message.to_le_bytes());
        code.extend([0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8]);
        code.extend(end);
        code.extend(b"hello\n\0\0\0\0\0\0\0\0\0");
        code
    }

    /// An ELF file with one segment and the note that names its 32-bit entry (PVH).
    fn elf(self) -> Vec<u8> {
        let code = self.code();
        let (note, text) = (64 + 2 * 56, 64 + 2 * 56 + 24);
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let half =
            |elf: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
        let word =
            |elf: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
        let long =
            |elf: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
        half(&mut elf, &[2, 62]);
        word(&mut elf, &[1]);
        long(&mut elf, &[0x10_0000, 64, 0]);
        word(&mut elf, &[0]);
        half(&mut elf, &[64, 56, 2, 0, 0, 0]);
        word(&mut elf, &[1, 7]);
        let length = code.len() as u64;
        long(&mut elf, &[text, 0x10_0000, 0x10_0000, length, length, 0]);
        word(&mut elf, &[4, 4]);
        long(&mut elf, &[note, 0, 0, 20, 20, 4]);
        word(&mut elf, &[4, 4, 18]);
        elf.extend(b"Xen\0");
        word(&mut elf, &[0x10_0000, 0]);
        elf.extend(code);
        elf
    }
}

/// Directories, a network namespace and a cgroup of one test.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) qemu: Qemu,
    netns: OwnedFd,
    tap: OwnedFd,
    cgroup: Option<PathBuf>,
    uid: u32,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let name = dir.path().file_name().expect("a name").to_string_lossy().replace('.', "");
        let (netns, tap) =
            std::thread::spawn(network).join().expect("a thread").expect("a namespace with a TAP");
        // Deeper than a socket's address can hold, below a directory (0700) that nobody but root may enter.
        fs::create_dir_all(dir.path().join("d".repeat(120)).join("capsule")).expect("a directory");
        let bench = Self {
            qemu: Qemu::detect(None).await.expect("QEMU is installed"),
            cgroup: cgroup::root().map(|root| root.join(format!("wrenn-test-{name}"))),
            uid: 1_000_000 + std::process::id(),
            dir,
            netns,
            tap,
        };
        fs::write(bench.path("initrd"), [0; 4096]).expect("write");
        fs::File::create(bench.path("base.raw")).and_then(|file| file.set_len(1 << 20)).expect("a base");
        bench.make_layer("disk-1.qcow2", "base.raw", "raw");
        bench
    }

    /// Makes a layer of 16 MiB over another file of the bench.
    pub(crate) fn make_layer(&self, name: &str, below: &str, format: &str) -> PathBuf {
        let made = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
            .args([&self.path(below), &self.path(name)])
            .arg("16M")
            .status();
        assert!(made.expect("qemu-img is installed").success());
        self.path(name)
    }

    /// Starts a machine up to its disk.
    pub(crate) async fn start(&self, spec: LaunchSpec) -> Result<Arc<dyn Machine>, VmmError> {
        let machine = self.qemu.launch(spec).await?;
        let layers = [self.path("disk-1.qcow2")];
        machine.attach_disk(DiskFiles { base: &self.path("base.raw"), layers: &layers }).await?;
        Ok(machine)
    }

    /// Boots a guest.
    pub(crate) async fn boot(&self, guest: Guest) -> Arc<dyn Machine> {
        let machine = self.start(self.spec(guest)).await.expect("the machine starts");
        machine.cont().await.expect("the guest runs");
        machine
    }

    /// A machine for a snapshot with this base.
    pub(crate) fn restore_spec(&self, base: &Path) -> LaunchSpec {
        LaunchSpec { start: Start::Restore { base: base.to_path_buf() }, ..self.spec(Guest::Halts) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn capsule(&self) -> PathBuf {
        self.dir.path().join("d".repeat(120)).join("capsule")
    }

    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    pub(crate) fn spec(&self, guest: Guest) -> LaunchSpec {
        let kernel = self.path("kernel.elf");
        fs::write(&kernel, guest.elf()).expect("write");
        LaunchSpec {
            id: "cl-test".into(),
            vcpus: 1,
            memory_mb: 64,
            start: Start::Boot {
                kernel,
                initrd: self.path("initrd"),
                cmdline: String::new(),
                memory: self.capsule().join("memory"),
            },
            dir: self.capsule(),
            netns: format!("/proc/{}/fd/{}", std::process::id(), self.netns.as_raw_fd()).into(),
            tap: self.tap.try_clone().expect("a second descriptor"),
            mac: [2, 0, 0, 0, 0, 1],
            uid: self.uid,
            gid: self.uid,
            cgroup_parent: self.cgroup.clone(),
            accel: Accelerator::Tcg,
            tb_size_mb: 32,
            egress_bytes_per_second: None,
        }
    }

    pub(crate) fn console(&self) -> String {
        fs::read_to_string(self.capsule().join(CONSOLE)).unwrap_or_default()
    }

    /// Waits until the console satisfies `seen`.
    pub(crate) async fn console_until(&self, seen: impl Fn(&str) -> bool) {
        let wait = async {
            while !seen(&self.console()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(LONG, wait).await;
        assert!(waited.is_ok(), "the console only says {:?}", self.console());
    }

    /// What a machine must not leave: its socket and its cgroup.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        let own = self.cgroup.iter().map(|parent| parent.join("cl-test"));
        own.chain([self.capsule().join("run/qmp.sock")]).filter(|path| path.exists()).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(path) = &self.cgroup {
            let _ = fs::write(path.join("cgroup.kill"), "1");
            let _ = fs::remove_dir(path.join("cl-test"));
            let _ = fs::remove_dir(path);
        }
    }
}

/// A network namespace held by its descriptor alone, and a TAP device in it.
fn network() -> io::Result<(OwnedFd, OwnedFd)> {
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    // SAFETY: no pointer is passed; only this thread moves, and it ends with this function.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let netns = fs::File::open("/proc/thread-self/ns/net")?;
    let tap = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut name = [0; 16];
    name[..4].copy_from_slice(b"tap0");
    let flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).expect("the flags fit");
    let mut request = Request { name, flags, rest: [0; 22] };
    // SAFETY: TUNSETIFF reads and writes one ifreq of 40 bytes, which `request` is.
    if unsafe { libc::ioctl(tap.as_raw_fd(), 0x4004_54ca, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((netns.into(), tap.into()))
}

/// A field of `/proc/PID/status`.
pub(crate) fn status_field(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.expect("the field exists").split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A descriptor that is no TAP device.
pub(crate) fn no_tap() -> OwnedFd {
    // SAFETY: memfd_create returns a new descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"no-tap".as_ptr(), 0)) }
}
