//! The TAP between a namespace and its virtual machine.
//!
//! The device is persistent, so it outlives both the agent and the VMM, and carries a virtio header in front
//! of each frame: QEMU asks the descriptor for that and Firecracker demands it, and it lets the guest leave
//! checksums and segmentation to the host.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::address::TAP_NAME;
use crate::links;

pub(crate) const TUN_DEVICE: &str = "/dev/net/tun";

/// How long a TAP that was closed may still be busy: a child that another thread was just starting has a copy of the
/// descriptor until its exec closes that.
const INHERITED: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_persist, libc::TUNSETPERSIST);

/// Makes the TAP in the calling thread's namespace, to stay until the namespace ends, and returns it open.
pub(crate) fn create() -> io::Result<OwnedFd> {
    let device = attach()?;
    // SAFETY: the descriptor is an attached TAP and the request takes a plain integer.
    unsafe { tun_set_persist(device.as_raw_fd(), 1) }?;
    Ok(OwnedFd::from(device))
}

/// Opens the TAP of the calling thread's namespace. One opener at a time: a second gets `EBUSY`.
pub(crate) fn open() -> io::Result<OwnedFd> {
    // Attaching to a name that does not exist would make a device.
    links::index_of(TAP_NAME)?;
    let mut patience = INHERITED;
    loop {
        match attach() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && !patience.is_zero() => {
                patience = patience.saturating_sub(LOOK);
                std::thread::sleep(LOOK);
            }
            attached => return attached.map(OwnedFd::from),
        }
    }
}

fn attach() -> io::Result<File> {
    let device = OpenOptions::new().read(true).write(true).open(TUN_DEVICE)?;
    // SAFETY: all-zero bytes are a valid ifreq: integers, and a union of plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP_NAME.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open and the pointer is to an ifreq that lives through the call.
    unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) }?;
    Ok(device)
}
