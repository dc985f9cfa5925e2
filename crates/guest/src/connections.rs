//! The daemon's connections as the life of the machine sees them.
//!
//! A machine that is about to be snapshot should be in as few conversations as possible, and one that was restored is
//! in conversations whose other side does not exist any more: the client was told that its connection broke, and a
//! clone's never had one. Until the daemon lets go of such a socket, it holds the stream of a process for nobody, and
//! the kernel takes a new connection from the same port of the host for a part of the old one.
//!
//! Nothing is kept about connections while they are in use but the highest number that a descriptor of theirs has had.
//! To break them the daemon looks through its own descriptors up to that, which finds those of every kind: with the HTTP
//! library, in a transfer of a whole file, in a tunnel. The list in `/proc` would tell which of them are open, at the price
//! of many times the code.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::net::{Shutdown, getpeername, getsockname};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Where a request came from. Every request carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// All connections that the daemon accepted.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    port: u16,
    idle: Arc<Notify>,
    highest: Arc<AtomicI32>,
}

impl Connections {
    /// Those accepted on `port`.
    pub(crate) fn new(port: u16) -> Self {
        Self { port, idle: Arc::default(), highest: Arc::default() }
    }

    /// Takes note of one that was accepted, and is not given another descriptor.
    pub(crate) fn note(&self, connection: &impl AsRawFd) {
        self.highest.fetch_max(connection.as_raw_fd(), Ordering::Relaxed);
    }

    /// Has each connection closed as soon as it waits for a request; a call in progress is finished first.
    pub(crate) fn close_idle(&self) {
        self.idle.notify_waiters();
    }

    /// Completes when [`close_idle`](Self::close_idle) is called after this.
    pub(crate) fn closing(&self) -> Notified<'_> {
        self.idle.notified()
    }

    /// Breaks every connection but the one from `survivor`, whatever is going on in it, as if the other side had reset
    /// it. Returns how many there were.
    pub(crate) fn sever_others(&self, survivor: Option<Peer>) -> usize {
        let numbers = 0..=self.highest.load(Ordering::Relaxed);
        let sockets = numbers.filter_map(|number| self.accepted(number, survivor));
        sockets.map(|socket| sever(&socket)).count()
    }

    /// A hold of our own on the socket `number`, if that is one to break.
    fn accepted(&self, number: RawFd, survivor: Option<Peer>) -> Option<OwnedFd> {
        // SAFETY: the borrow lasts for the calls below, which work with whatever has this number now: one that nothing has
        // makes them fail, and one that changed hands meanwhile is looked at again through a hold of our own.
        let seen = unsafe { BorrowedFd::borrow_raw(number) };
        if !self.is_other(seen, survivor) {
            return None;
        }
        let held = rustix::io::fcntl_dupfd_cloexec(seen, 0).ok()?;
        self.is_other(held.as_fd(), survivor).then_some(held)
    }

    fn is_other(&self, socket: BorrowedFd<'_>, survivor: Option<Peer>) -> bool {
        let name = getsockname(socket).ok().and_then(|name| SocketAddr::try_from(name).ok());
        let peer = || SocketAddr::try_from(getpeername(socket).ok()??).ok();
        name.is_some_and(|name| name.port() == self.port)
            && peer().is_some_and(|peer| survivor != Some(Peer(peer)))
    }
}

fn sever(socket: &OwnedFd) {
    // Dissolving the association resets the connection at once, in both directions. The kernel may refuse while a thread
    // waits in the socket; it lets that thread go when both directions are shut.
    if rustix::net::connect_unspec(socket).is_err() {
        let _ = rustix::net::shutdown(socket, Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn all_but_one_are_reset_and_other_ports_are_left_alone() {
        let (ours, foreign) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let dial = |listener: &TcpListener| {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap())
        };
        let (mut survivor, (mut survives, peer)) = dial(&ours);
        let (mut lost, (mut breaks, _)) = dial(&ours);
        let (mut other, (mut stays, _)) = dial(&foreign);
        let connections = Connections::new(ours.local_addr().unwrap().port());
        assert_eq!(connections.sever_others(None), 0, "nothing was noted");
        [&survives, &breaks].into_iter().for_each(|accepted| connections.note(accepted));
        assert_eq!(connections.sever_others(Some(Peer(peer))), 1);
        let mut byte = [0];
        assert!(lost.read(&mut byte).is_err() && breaks.read(&mut byte).is_err());
        for (client, server) in [(&mut survivor, &mut survives), (&mut other, &mut stays)] {
            client.write_all(b"x").unwrap();
            server.read_exact(&mut byte).unwrap();
        }
        assert_eq!(connections.sever_others(Some(Peer(peer))), 0);
        assert_eq!(connections.sever_others(None), 1);
    }

    #[test]
    fn a_thread_that_waits_in_a_socket_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let connections = Connections::new(address.port());
        connections.note(&server);
        let waiting = std::thread::spawn(move || server.read(&mut [0]).unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(connections.sever_others(None), 1);
        assert_eq!(waiting.join().unwrap(), 0);
    }
}
