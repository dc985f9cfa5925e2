//! DNS for the guest: a forwarder per slot, from the namespace's side of the TAP to the host's name servers.
//!
//! The listening sockets belong to the slot's namespace, where the guest finds them at its gateway's address;
//! the sockets towards the name servers belong to the host's, so a stub on the host's loopback works too. The
//! forwarder reads no more of a message than it needs to pass it on, and answers nothing by itself but
//! "SERVFAIL" when no name server does. Names from the host's `/etc/hosts` are therefore not served.
//!
//! A guest may send as fast as it likes: each slot has a small number of queries in flight and all slots
//! together a larger one, and what exceeds it waits in the socket's buffer, where the kernel drops the surplus.

mod message;
mod resolv_conf;
mod resolver;

use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::address::{SlotIndex, TAP_ADDR};
use crate::error::{NetError, Result};
use crate::namespace::Resident;
use message::Query;
pub(crate) use resolver::Resolver;
use resolver::Transport;

const PORT: u16 = 53;

/// Queries over UDP that one guest may have in flight.
const UDP_IN_FLIGHT: usize = 32;

/// Connections over TCP that one guest may have open.
const TCP_CONNECTIONS: usize = 8;

/// The largest query accepted over UDP; real ones have a tenth of that.
const UDP_QUERY_MAX: usize = 4096;

/// How long a TCP connection may be silent or refuse to take its answer.
const TCP_PATIENCE: Duration = Duration::from_secs(10);

/// Pause after a socket failed, so that a lasting failure costs no processor.
const FAILURE_PAUSE: Duration = Duration::from_millis(200);

/// The DNS forwarder of a slot; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Forwarder {
    task: JoinHandle<()>,
}

impl Forwarder {
    /// Ends it and waits until its sockets are closed.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            tracing::error!(%error, "a DNS forwarder had panicked");
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves DNS in the namespace of `resident`.
pub(crate) async fn start(
    resolver: Arc<Resolver>,
    index: SlotIndex,
    resident: &Resident,
) -> Result<Forwarder> {
    let address = SocketAddr::V4(SocketAddrV4::new(TAP_ADDR, PORT));
    let (udp, tcp) = resident
        .run(move || bind(address))
        .await
        .map_err(NetError::refused("bind", format!("DNS at {address} in namespace {}", index.name())))?;
    let task = tokio::spawn(async move {
        tokio::join!(serve_udp(Arc::new(udp), &resolver), serve_tcp(tcp, &resolver));
    });
    Ok(Forwarder { task })
}

fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = StdUdpSocket::bind(address)?;
    udp.set_nonblocking(true)?;
    let tcp = StdTcpListener::bind(address)?;
    tcp.set_nonblocking(true)?;
    Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
}

/// The next permit; these semaphores are never closed, so there always is one.
async fn permit(permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(permits).acquire_owned().await.ok()
}

async fn serve_udp(socket: Arc<UdpSocket>, resolver: &Arc<Resolver>) {
    let permits = Arc::new(Semaphore::new(UDP_IN_FLIGHT));
    let mut queries = JoinSet::new();
    loop {
        tokio::select! {
            // Reaped at once: a finished task keeps its memory until somebody asks for its result.
            Some(_) = queries.join_next() => {}
            (permit, received) = next_query(&socket, &permits) => match received {
                Ok((bytes, peer)) => {
                    let (socket, resolver) = (Arc::clone(&socket), Arc::clone(resolver));
                    queries.spawn(async move {
                        answer_udp(&socket, &resolver, bytes, peer).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot receive a guest's DNS query");
                    sleep(FAILURE_PAUSE).await;
                }
            },
        }
    }
}

async fn next_query(
    socket: &UdpSocket,
    permits: &Arc<Semaphore>,
) -> (Option<OwnedSemaphorePermit>, io::Result<(Vec<u8>, SocketAddr)>) {
    let permit = permit(permits).await;
    loop {
        if let Err(error) = socket.readable().await {
            return (permit, Err(error));
        }
        match receive(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return (permit, received),
        }
    }
}

/// Not async, so that the buffer is on the stack for an instant and not in the state of an idle forwarder.
fn receive(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; UDP_QUERY_MAX];
    let (length, peer) = socket.try_recv_from(&mut buffer)?;
    Ok((buffer[..length].to_vec(), peer))
}

async fn answer_udp(socket: &UdpSocket, resolver: &Resolver, bytes: Vec<u8>, peer: SocketAddr) {
    // What is not a query gets no answer, or two forwarders could talk to each other for ever.
    let Some(query) = Query::parse(bytes) else { return };
    let answer = resolver.resolve(&query, Transport::Udp).await;
    if let Err(error) = socket.send_to(&answer, peer).await {
        tracing::debug!(%error, "cannot send a DNS answer to the guest");
    }
}

async fn serve_tcp(listener: TcpListener, resolver: &Arc<Resolver>) {
    let permits = Arc::new(Semaphore::new(TCP_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async { (permit(&permits).await, listener.accept().await) };
        tokio::select! {
            Some(_) = connections.join_next() => {}
            (permit, accepted) = next => match accepted {
                Ok((stream, _)) => {
                    let resolver = Arc::clone(resolver);
                    connections.spawn(async move {
                        if let Err(error) = answer_tcp(stream, &resolver).await {
                            tracing::debug!(%error, "a guest's DNS connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a guest's DNS connection");
                    sleep(FAILURE_PAUSE).await;
                }
            },
        }
    }
}

/// Answers the queries of one connection, one after the other.
async fn answer_tcp(mut stream: TcpStream, resolver: &Resolver) -> io::Result<()> {
    loop {
        let bytes = timeout(TCP_PATIENCE, read_framed(&mut stream)).await??;
        let Some(query) = Query::parse(bytes) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a DNS query"));
        };
        let answer = resolver.resolve(&query, Transport::Tcp).await;
        timeout(TCP_PATIENCE, write_framed(&mut stream, &answer)).await??;
    }
}

/// A message over TCP: its length in two bytes, then itself.
async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // In one write, because some servers read the length and the rest from separate segments badly.
    let framed = [&length.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}
