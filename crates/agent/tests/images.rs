//! Makes the images for real, in a cache that outlives the test (`<target>/wrenn-images`), and boots them.

#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use wrenn_agent::images::{self, BaseImages, ImageConfig, ImageError, Template};
use wrenn_disk::{Qcow2Disks, RootDisks, allocated_bytes};
use wrenn_vmm::CONSOLE;
use wrenn_vmm::qemu::Qemu;
use wrenn_vmm::{Accelerator, AcceleratorChoice, DiskFiles, ExitReason, LaunchSpec, Machine, Start, Vmm};

/// Catches a hang; nothing here is timed.
const LONG: Duration = Duration::from_secs(180);

fn config(dir: &TempDir) -> ImageConfig {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().map(|target| target.join("wrenn-images"));
    ImageConfig { dir: dir.path().to_path_buf(), cache, mirror: std::env::var("WRENN_DEBIAN_MIRROR").ok() }
}

fn images(dir: &TempDir) -> BaseImages {
    images::ensure(&config(dir), &|line| eprintln!("{line}")).expect("the images are made")
}

#[test]
fn a_fresh_data_directory_gets_everything_from_the_cache_and_nothing_is_made_twice() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!images::are_built(dir.path()));
    let made = images(&dir);
    assert!(images::are_built(dir.path()));
    let stamp = |path: &Path| fs::metadata(path).map(|meta| (meta.ino(), meta.mtime_nsec())).unwrap();
    let before = [&made.kernel.kernel, &made.kernel.initramfs, &made.template.disk].map(|path| stamp(path));

    // Without the cache, and without tools: what is there is enough.
    let alone = ImageConfig { cache: None, ..config(&dir) };
    let lines = std::sync::Mutex::new(Vec::new());
    let again = images::ensure(&alone, &|line| lines.lock().unwrap().push(line.to_owned())).unwrap();
    assert_eq!((&again.kernel, &again.template), (&made.kernel, &made.template));
    assert_eq!(
        [&again.kernel.kernel, &again.kernel.initramfs, &again.template.disk].map(|path| stamp(path)),
        before
    );
    assert_eq!(*lines.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn the_base_image_is_whole_sparse_and_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let BaseImages { kernel, template } = images(&dir);
    let nil = "00000000-0000-0000-0000-000000000000";
    let home = dir.path().join("templates").join(nil).join(nil);
    assert_eq!(Template::load(&home).unwrap(), template);
    assert_eq!((template.name.as_str(), template.kind.as_str()), ("minimal", "base"));
    assert_eq!((template.default_user.as_str(), template.disk_mb), ("root", 1024));
    assert_eq!(template.kernel, kernel.version);

    let meta = fs::metadata(&template.disk).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (1024 << 20, 0o444));
    let allocated = allocated_bytes(&template.disk).unwrap() >> 20;
    assert!((100..700).contains(&allocated), "{allocated} MiB");
    let check = Command::new("e2fsck").args(["-f", "-n"]).arg(&template.disk).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    for program in ["bash", "curl", "git", "python3", "sudo", "ps"] {
        assert!(inode(&template.disk, &format!("/usr/bin/{program}")).is_some(), "{program}");
    }
    assert!(inode(&template.disk, "/usr/local/bin/python").is_some());
    assert!(inode(&template.disk, "/usr/bin/no-such-program").is_none());
}

/// What `debugfs` says of a file in a file system's image.
fn inode(disk: &Path, path: &str) -> Option<String> {
    let output = Command::new("debugfs").args(["-R", &format!("stat {path}")]).arg(disk).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.contains("Inode:").then_some(text)
}

#[test]
fn the_modules_come_in_an_order_in_which_each_finds_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let made = images(&dir);
    let modules = made.kernel.kernel.parent().unwrap().join("modules");
    let mut names: Vec<String> = fs::read_dir(modules)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let place = |name: &str| names.iter().position(|file| file.ends_with(&format!("-{name}.ko"))).unwrap();
    assert!(place("virtio_ring") < place("virtio") && place("virtio") < place("virtio_mmio"));
    assert!(place("failover") < place("net_failover") && place("net_failover") < place("virtio_net"));
    assert!(place("virtio_blk") > place("virtio") && place("virtio_rng") > place("virtio"));
}

#[test]
fn a_failing_mirror_is_told_in_the_tools_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let kernels = images(&dir).kernel.kernel.parent().unwrap().parent().unwrap().to_path_buf();
    let other = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(kernels, other.path().join("kernels")).unwrap();
    let mirror = Some("http://127.0.0.1:9/debian".to_owned());
    let config = ImageConfig { dir: other.path().to_path_buf(), cache: None, mirror };
    let error = images::ensure(&config, &|_| {}).unwrap_err();
    assert!(matches!(&error, ImageError::Tool { program, .. } if program == "mmdebstrap"), "{error}");
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
    let left: Vec<_> = fs::read_dir(other.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".making")), "{left:?}");
}

/// A booted guest, and what it needs.
struct Guest {
    machine: Arc<dyn Machine>,
    netns: PathBuf,
    dir: PathBuf,
    _netns: OwnedFd,
    _data: TempDir,
}

impl Guest {
    async fn boot(vcpus: u32, initramfs: Option<&[u8]>) -> Self {
        let data = tempfile::tempdir().unwrap();
        let made = tokio::task::block_in_place(|| images(&data));
        let (netns, tap) = std::thread::spawn(network).join().unwrap();
        let dir = data.path().join("capsules/one");
        fs::create_dir_all(&dir).unwrap();
        let disk = Qcow2Disks::default().create(&dir, &made.template.disk, 5120).await.unwrap();
        let initrd = data.path().join("initrd");
        let initrd = initramfs.map_or(made.kernel.initramfs.clone(), |bytes| {
            fs::write(&initrd, bytes).unwrap();
            initrd
        });
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()));
        let uid = 2_000_000 + std::process::id();
        let spec = LaunchSpec {
            id: "cl-images".into(),
            vcpus,
            memory_mb: 512,
            start: Start::Boot {
                kernel: made.kernel.kernel,
                initrd,
                cmdline: made.kernel.cmdline,
                memory: dir.join("memory"),
            },
            dir: dir.clone(),
            netns: path.clone(),
            tap,
            mac: wrenn_net::GUEST_MAC,
            uid,
            gid: uid,
            cgroup_parent: None,
            accel: Accelerator::detect(AcceleratorChoice::Auto).unwrap(),
            tb_size_mb: 64,
            egress_bytes_per_second: None,
        };
        let machine = Qemu::detect(None).await.unwrap().launch(spec).await.unwrap();
        machine.attach_disk(DiskFiles { base: &disk.base, layers: &disk.layers }).await.unwrap();
        machine.cont().await.unwrap();
        Self { machine, netns: path, dir, _netns: netns, _data: data }
    }

    fn console(&self) -> String {
        fs::read_to_string(self.dir.join(CONSOLE)).unwrap_or_default()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let record = self.machine.record();
        if let (true, Ok(pid)) = (record.is_alive(), libc::pid_t::try_from(record.pid)) {
            // SAFETY: no pointer is passed; the process is this test's own and has not been waited for.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

/// A network namespace with the host's end of a capsule's network.
fn network() -> (OwnedFd, OwnedFd) {
    // SAFETY: no pointer is passed; only this thread moves, and it ends with this function.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    let netns = fs::File::open("/proc/thread-self/ns/net").unwrap();
    let tap = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0u8; 40];
    request[..4].copy_from_slice(b"tap0");
    let flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one ifreq of 40 bytes, which `request` is.
    assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()) }, 0);
    for words in ["addr add 169.254.0.22/30 dev tap0", "link set tap0 up"] {
        assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success());
    }
    (netns.into(), tap.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_boot_into_the_daemon_with_one_cpu_and_with_two() {
    for vcpus in [1, 2] {
        let guest = Guest::boot(vcpus, None).await;
        let healthy = async {
            loop {
                let call = tokio::process::Command::new("nsenter")
                    .arg(format!("--net={}", guest.netns.display()))
                    .args(["curl", "-fsS", "-m", "5", "http://169.254.0.21:49983/health"])
                    .output();
                if call.await.unwrap().status.success() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let answered = tokio::time::timeout(LONG, healthy).await;
        assert!(answered.is_ok(), "with {vcpus} CPUs the guest only said {:?}", guest.console());
        guest.machine.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_panics_ends_its_vmm_and_says_why_on_the_console() {
    // An initial file system with nothing in it: there is no init.
    let guest = Guest::boot(1, Some(&[0; 4096])).await;
    let exit = tokio::time::timeout(LONG, guest.machine.exited()).await;
    assert_eq!(exit, Ok(ExitReason::Exited { code: 0 }), "{}", guest.console());
    assert!(guest.console().contains("Kernel panic"), "{}", guest.console());
    guest.machine.kill().await.unwrap();
}
