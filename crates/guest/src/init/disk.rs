//! The template's disk: mounted, made the root, and grown to the size of its device.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::StatVfs;
use rustix::mount::MountFlags;

use super::{InitError, Step, mounts, power};
use crate::config::Config;

/// The capsule's disk.
const DEVICE: &str = "/dev/vda";
/// Where it is mounted before it becomes the root.
const NEW_ROOT: &str = "/newroot";
/// What moves along.
const MOVED: [&str; 3] = ["/dev", "/proc", "/sys"];
/// How long the device may take to appear after its driver was loaded.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the kernel may take to notice that the device has grown.
const RESIZE_PATIENCE: Duration = Duration::from_secs(5);

/// Where the kernel tells the device's size, in sectors of 512 bytes.
const DEVICE_SIZE: &str = "/sys/class/block/vda/size";
/// `EXT4_IOC_RESIZE_FS` of the kernel's ext4: `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;

/// Held while the file system grows.
static GROWING: Mutex<()> = Mutex::new(());

/// Mounts the disk and carries on with it as `/`.
pub(super) fn switch_root() -> Result<(), InitError> {
    mounts::make_directory(NEW_ROOT, 0o755);
    mount_disk()?;
    for directory in MOVED {
        let target = format!("{NEW_ROOT}{directory}");
        mounts::make_directory(&target, 0o755);
        rustix::mount::mount_move(directory, &target).step(format!("move {directory} to the disk"))?;
    }
    // The initramfs is memory; nothing in it is needed once this program runs.
    let _ = std::fs::remove_dir_all("/modules");
    let _ = std::fs::remove_file("/init");
    rustix::process::chdir(NEW_ROOT).step("enter the disk")?;
    rustix::mount::mount_move(".", "/").step("make the disk the root")?;
    rustix::process::chroot(".").step("make the disk the root")?;
    rustix::process::chdir("/").step("enter the root")
}

fn mount_disk() -> Result<(), InitError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match rustix::mount::mount(DEVICE, NEW_ROOT, "ext4", MountFlags::NOATIME, None) {
            Err(errno) if device_is_missing(errno) && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result.step(format!("mount {DEVICE}")),
        }
    }
}

fn device_is_missing(errno: rustix::io::Errno) -> bool {
    matches!(errno, rustix::io::Errno::NOENT | rustix::io::Errno::NXIO)
}

/// Grows the file system to a disk that has `bytes`, or will have them in a moment. Where there is nothing to do, as
/// after most restores, this is one system call.
pub(crate) fn grow_to(bytes: u64) {
    if Config::is_init() && !rustix::fs::statvfs("/").is_ok_and(|filesystem| fills(&filesystem, bytes)) {
        grow_in_background(bytes);
    }
}

/// Grows the file system while the daemon serves already: ext4 does this while it is used. Waits for the device to have
/// at least `least` bytes.
pub(super) fn grow_in_background(least: u64) {
    // Without a thread the disk stays as large as the template's, and the console says so.
    let spawned = std::thread::Builder::new().name("grow".into()).spawn(move || {
        if let Err(error) = wait_for_size(least).and_then(|()| grow()) {
            power::say(&format!("the file system was not grown to its disk: {error}"));
        }
    });
    if let Err(error) = spawned {
        power::say(&format!("the file system was not grown to its disk: {error}"));
    }
}

/// Until the kernel has heard of the device's new size, from an interrupt that comes when it comes.
fn wait_for_size(least: u64) -> io::Result<()> {
    let end = Instant::now() + RESIZE_PATIENCE;
    while device_size()? < least {
        if Instant::now() >= end {
            return Err(io::Error::other(format!("{DEVICE} still has less than {least} bytes")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Whether the file system takes all of a device of `bytes`. It counts without its own tables (an inode takes 256 bytes
/// of every 16 KiB), so a little less is no reason to act.
fn fills(filesystem: &StatVfs, bytes: u64) -> bool {
    bytes / filesystem.f_bsize <= filesystem.f_blocks + filesystem.f_blocks / 16
}

fn grow() -> io::Result<()> {
    // The kernel refuses a second one meanwhile, and one may have begun before the machine was snapshot.
    let _one_at_a_time = GROWING.lock().unwrap_or_else(PoisonError::into_inner);
    let (filesystem, bytes) = (rustix::fs::statvfs("/")?, device_size()?);
    if fills(&filesystem, bytes) {
        return Ok(());
    }
    let blocks = bytes / filesystem.f_bsize;
    let root = File::open("/")?;
    // SAFETY: the call reads one 64-bit number of blocks through the pointer.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn device_size() -> io::Result<u64> {
    let sectors = std::fs::read_to_string(DEVICE_SIZE)?;
    let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
    Ok(sectors * 512)
}

/// Writes everything back and takes the root read-only, so that the disk is clean without a journal replay.
pub(super) fn settle() {
    rustix::fs::sync();
    // A file still open for writing forbids it; then the journal does its work at the next start.
    let _ = rustix::mount::mount_remount("/", MountFlags::RDONLY, c"");
}
