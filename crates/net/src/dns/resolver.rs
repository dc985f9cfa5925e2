//! Asking the host's name servers, one after the other.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::message::{self, Query};
use super::resolv_conf::ResolvConf;
use super::{read_framed, write_framed};

/// How long one server has for its answer. Three silent servers take six seconds, then the guest is told.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);

/// Queries of all slots in flight towards the servers, each with a descriptor of its own.
const IN_FLIGHT: usize = 1024;

/// How a query travels; a truncated answer over UDP goes to the guest, which then asks over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// The host's name servers, shared by all slots.
#[derive(Debug)]
pub(crate) struct Resolver {
    conf: ResolvConf,
    in_flight: Semaphore,
    /// The place in the list of the server that answered last, so that a dead one costs its delay once.
    preferred: AtomicUsize,
}

impl Resolver {
    /// The servers listed in the file at `resolv_conf`.
    pub(crate) fn new(resolv_conf: PathBuf) -> Self {
        Self {
            conf: ResolvConf::new(resolv_conf),
            in_flight: Semaphore::new(IN_FLIGHT),
            preferred: AtomicUsize::new(0),
        }
    }

    /// The answer of the first server that has one; failing that, the refusal of one that spoke; failing that,
    /// a "SERVFAIL" of our own.
    pub(super) async fn resolve(&self, query: &Query, transport: Transport) -> Vec<u8> {
        let _permit = self.in_flight.acquire().await;
        let servers = self.conf.servers();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut refusal = None;
        for step in 0..servers.len() {
            let place = (first + step) % servers.len();
            match timeout(SERVER_PATIENCE, ask(servers[place], query, transport)).await {
                Ok(Ok(reply)) if message::declines(&reply) => refusal = Some(reply),
                Ok(Ok(reply)) => {
                    self.preferred.store(place, Ordering::Relaxed);
                    return reply;
                }
                Ok(Err(error)) => tracing::debug!(server = %servers[place], %error, "name server failed"),
                Err(_) => tracing::debug!(server = %servers[place], "name server did not answer in time"),
            }
        }
        refusal.unwrap_or_else(|| query.servfail())
    }
}

async fn ask(server: SocketAddr, query: &Query, transport: Transport) -> io::Result<Vec<u8>> {
    match transport {
        Transport::Udp => ask_udp(server, query).await,
        Transport::Tcp => ask_tcp(server, query).await,
    }
}

async fn ask_udp(server: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A port of its own for each query, and connected: nobody but the server can answer, or guess.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query.as_bytes()).await?;
    loop {
        // A port where nobody listens is reported as an error that does not count as readable.
        let interest = Interest::READABLE | Interest::ERROR;
        let reply = socket.async_io(interest, || receive(&socket)).await?;
        if query.is_answered_by(&reply) {
            return Ok(reply);
        }
    }
}

/// Reads one datagram of any size, without keeping a buffer while waiting for it.
fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let (length, _) = rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT)?;
    Ok(buffer[..length].to_vec())
}

async fn ask_tcp(server: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, query.as_bytes()).await?;
    let reply = read_framed(&mut stream).await?;
    if query.is_answered_by(&reply) {
        Ok(reply)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another query"))
    }
}
