//! Loopback and the one link to the host, set up with the classic ioctls: three addresses that never change need no
//! netlink. They are the same in every capsule, so that a snapshot fits any.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketType};

use super::{InitError, Step};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 252);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);

// The calls of linux/sockios.h, in the type that `ioctl` takes on each target.
const SIOCADDRT: libc::Ioctl = 0x890B;
const SIOCGIFFLAGS: libc::Ioctl = 0x8913;
const SIOCSIFFLAGS: libc::Ioctl = 0x8914;
const SIOCSIFADDR: libc::Ioctl = 0x8916;
const SIOCSIFNETMASK: libc::Ioctl = 0x891C;

/// `IFF_UP` of linux/if.h, in the width of an interface's flags.
const IFF_UP: libc::c_short = 1;

/// The address family of IPv4, in the width of an address.
const AF_INET: libc::sa_family_t = 2;

/// `RTF_UP | RTF_GATEWAY` of linux/route.h.
const UP_VIA_GATEWAY: libc::c_ushort = 0x0003;

/// `struct rtentry` of linux/route.h, which libc has for no musl target.
#[repr(C)]
struct RouteEntry {
    pad1: libc::c_ulong,
    destination: libc::sockaddr,
    gateway: libc::sockaddr,
    mask: libc::sockaddr,
    flags: libc::c_ushort,
    pad2: libc::c_short,
    pad3: libc::c_ulong,
    pad4: *mut libc::c_void,
    metric: libc::c_short,
    device: *mut libc::c_char,
    mtu: libc::c_ulong,
    window: libc::c_ulong,
    irtt: libc::c_ushort,
}

/// Brings both links up. A machine without a card has none, which is how it was configured.
pub(super) fn bring_up() -> Result<(), InitError> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).step("open a socket")?;
    raise(&socket, "lo").step("bring lo up")?;
    match set_address(&socket, "eth0") {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        result => result.step("give eth0 its address")?,
    }
    raise(&socket, "eth0").step("bring eth0 up")?;
    add_default_route(&socket).step("add the default route")
}

fn set_address(socket: &OwnedFd, link: &str) -> io::Result<()> {
    let mut request = request(link);
    request.ifr_ifru.ifru_addr = socket_address(ADDRESS);
    interface_call(socket, SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_netmask = socket_address(NETMASK);
    interface_call(socket, SIOCSIFNETMASK, &mut request)
}

fn raise(socket: &OwnedFd, link: &str) -> io::Result<()> {
    let mut request = request(link);
    interface_call(socket, SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel has just filled in this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | IFF_UP;
    interface_call(socket, SIOCSIFFLAGS, &mut request)
}

fn request(link: &str) -> libc::ifreq {
    // SAFETY: all zeros is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *place = byte.cast_signed() as libc::c_char;
    }
    request
}

fn interface_call(socket: &OwnedFd, call: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every interface call reads and writes at most one ifreq through the pointer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), call, std::ptr::from_mut(request)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (place, byte) in data[2..].iter_mut().zip(address.octets()) {
        *place = byte.cast_signed() as libc::c_char;
    }
    libc::sockaddr { sa_family: AF_INET, sa_data: data }
}

fn add_default_route(socket: &OwnedFd) -> io::Result<()> {
    let route = RouteEntry {
        pad1: 0,
        destination: socket_address(Ipv4Addr::UNSPECIFIED),
        gateway: socket_address(GATEWAY),
        mask: socket_address(Ipv4Addr::UNSPECIFIED),
        flags: UP_VIA_GATEWAY,
        pad2: 0,
        pad3: 0,
        pad4: std::ptr::null_mut(),
        metric: 0,
        device: std::ptr::null_mut(),
        mtu: 0,
        window: 0,
        irtt: 0,
    };
    // SAFETY: the call reads one rtentry, whose layout RouteEntry has, through the pointer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCADDRT, &raw const route) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_route_entry_has_the_kernels_layout() {
        assert_eq!(size_of::<RouteEntry>(), 120);
        assert_eq!(std::mem::offset_of!(RouteEntry, flags), 56);
        assert_eq!(std::mem::offset_of!(RouteEntry, device), 88);
    }

    #[test]
    fn addresses_are_laid_out_as_sockaddr_in() {
        let address = socket_address(GATEWAY);
        let bytes: Vec<u8> = address.sa_data[2..6].iter().map(|b| b.cast_unsigned()).collect();
        assert_eq!(bytes, [169, 254, 0, 22]);
    }
}
