//! Device nodes and a TAP that belong to a VMM's own user: it is in no group and may open nothing else.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FileType, Mode};

use crate::blocks::DeviceNumber;
use crate::confine::{Access, Confinement};
use crate::launch::{give, make_directory, outlast_forks};
use crate::{LaunchSpec, VmmError};

/// Directory of the nodes, in the machine's `run`.
pub(super) const DIRECTORY: &str = "dev";
/// The root disk in it.
pub(super) const DISK: &str = "dev/disk";

/// The host's nodes that Firecracker opens by their names. The last is for paged restores, on Linux 6.1 and later.
const NODES: [(&str, &str); 3] = [("kvm", "/dev/kvm"), ("tun", "/dev/net/tun"), ("userfaultfd", USERFAULTFD)];
pub(super) const USERFAULTFD: &str = "/dev/userfaultfd";

/// Makes the nodes in `run`, and has the VMM see them in the place of the host's.
pub(super) fn make(confinement: &mut Confinement, run: &Path, spec: &LaunchSpec) -> Result<(), VmmError> {
    let dir = run.join(DIRECTORY);
    make_directory(&dir, 0o750)?;
    give(&dir, 0, spec.gid)?;
    for (name, host) in NODES {
        let Ok(meta) = std::fs::metadata(host) else { continue };
        if !meta.file_type().is_char_device() {
            continue;
        }
        let node = dir.join(name);
        place(&node, FileType::CharacterDevice, meta.rdev(), spec.uid, spec.gid)?;
        confinement.replace_device(&node, Path::new(host))?;
    }
    confinement.show(&dir, DIRECTORY, Access::Devices)?;
    Ok(())
}

/// Makes the node of a block device for a user.
pub(super) fn make_disk(path: &Path, number: DeviceNumber, uid: u32, gid: u32) -> Result<(), VmmError> {
    place(path, FileType::BlockDevice, rustix::fs::makedev(number.major, number.minor), uid, gid)
}

fn place(path: &Path, kind: FileType, device: u64, uid: u32, gid: u32) -> Result<(), VmmError> {
    let failed = |error: io::Error| VmmError::io("make the device node", path, error);
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::RUSR | Mode::WUSR, device)
        .map_err(|error| failed(error.into()))?;
    give(path, uid, gid)
}

/// Gives a TAP to a user, who may then attach to it by its name, and closes it. Blocks.
pub(super) fn give_tap(tap: OwnedFd, uid: u32) -> Result<String, VmmError> {
    let given = || -> io::Result<String> {
        // SAFETY: all-zero bytes are a valid ifreq: integers, and a union of plain data.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and the kernel writes one ifreq, which lives through the call.
        check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })?;
        // SAFETY: the request takes a plain integer.
        check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOWNER as _, libc::c_ulong::from(uid)) })?;
        // SAFETY: the kernel ends the name with a nul within the array, which lives through the call.
        let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
        Ok(name.to_string_lossy().into_owned())
    };
    let name = given().map_err(|source| VmmError::io("hand over", Path::new("the TAP"), source))?;
    drop(tap);
    // A TAP has one user, and a child that is just being started has a copy of the descriptor.
    outlast_forks();
    Ok(name)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
