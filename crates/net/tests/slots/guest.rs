//! A guest without a virtual machine: a namespace whose only link is the other end of a slot's TAP.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use wrenn_net::{GUEST_ADDR, GUEST_MAC, GUEST_PREFIX_LEN, Slot, TAP_ADDR};

use crate::machine::shell;

/// How long a connection may take that ought to succeed; only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long to wait for a connection that ought not to succeed.
const DOUBT: Duration = Duration::from_millis(1500);

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);

/// Runs `job` in a named namespace.
pub(crate) fn inside<T: Send>(netns: &str, job: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let visit = || {
            let netns = File::open(format!("/run/netns/{netns}")).expect("namespace");
            setns(netns, CloneFlags::CLONE_NEWNET).expect("enters");
            job()
        };
        scope.spawn(visit).join().expect("job ends well")
    })
}

/// Serves TCP at `port` in a namespace until the process ends: tells each peer the address it appears to have.
pub(crate) fn tell_peers(netns: &str, port: u16) {
    let listener = inside(netns, || TcpListener::bind(("0.0.0.0", port)).expect("listens"));
    tell_peers_at(listener);
}

/// The same with a listener of any namespace.
pub(crate) fn tell_peers_at(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().expect("peer").ip();
            let _ = stream.write_all(peer.to_string().as_bytes());
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

/// As which address a connection to `to` arrives there.
pub(crate) fn appears_as(to: SocketAddr) -> io::Result<IpAddr> {
    asked(to, PATIENCE)
}

/// Whether a connection to `to` fails, or nobody answers.
pub(crate) fn is_unreachable(to: SocketAddr) -> bool {
    asked(to, DOUBT).is_err()
}

fn asked(to: SocketAddr, patience: Duration) -> io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.parse().map_err(io::Error::other)
}

/// A guest in a slot.
pub(crate) struct Guest {
    netns: String,
    stop: Arc<AtomicBool>,
    pump: Option<JoinHandle<()>>,
}

impl Guest {
    /// Connects a guest to the slot's TAP.
    pub(crate) fn boot(slot: &Slot) -> Self {
        let netns = format!("guest-{}", slot.index());
        shell(&format!("ip netns add {netns}"));
        let near = File::from(slot.open_tap().expect("TAP opens"));
        let far = inside(&netns, make_tap);
        let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        shell(&format!(
            "ip -n {netns} link set lo up; ip -n {netns} link set guest0 address {mac} up
             ip -n {netns} addr add {GUEST_ADDR}/{GUEST_PREFIX_LEN} dev guest0
             ip -n {netns} route add default via {TAP_ADDR}"
        ));
        let stop = Arc::new(AtomicBool::new(false));
        let pump = thread::spawn({
            let stop = Arc::clone(&stop);
            move || pump(&near, &far, &stop)
        });
        Self { netns, stop, pump: Some(pump) }
    }

    /// The name of the guest's namespace.
    pub(crate) fn netns(&self) -> &str {
        &self.netns
    }

    /// Runs `job` as the guest.
    pub(crate) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        inside(&self.netns, job)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
        shell(&format!("ip netns del {}", self.netns));
    }
}

fn make_tap() -> File {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("tun");
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"guest0") {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("flags fit");
    // SAFETY: the descriptor is open and the request lives through the call.
    unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) }.expect("TAP is made");
    device
}

/// Carries frames, with their virtio headers, between two TAPs.
fn pump(near: &File, far: &File, stop: &AtomicBool) {
    let mut frame = vec![0; 70_000];
    let tick = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(near, PollFlags::IN), PollFd::new(far, PollFlags::IN)];
        if poll(&mut fds, Some(&tick)).is_err() {
            return;
        }
        let ready = fds.map(|fd| fd.revents().contains(PollFlags::IN));
        for (mut from, mut to, ready) in [(near, far, ready[0]), (far, near, ready[1])] {
            if ready && let Ok(length) = from.read(&mut frame) {
                // A frame for a link that is still down is lost, as on a wire.
                let _ = to.write(&frame[..length]);
            }
        }
    }
}
