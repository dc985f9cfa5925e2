//! Links, addresses and routes through rtnetlink: the one module that knows that crate.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread;

use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::net::{AddressFamily, SocketType, netdevice};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

/// The loopback's index, which is 1 in every namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// A netlink connection to the namespace of the calling thread, served by the current runtime until the last
/// clone of the handle is dropped.
pub(crate) fn connect() -> io::Result<Handle> {
    let (connection, handle, _unsolicited) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// A netlink connection to the host's namespace, served by a thread of its own until the last clone of the
/// handle is dropped: the kernel takes tens of milliseconds to remove a link, within the call that asks for it.
pub(crate) async fn connect_apart() -> io::Result<Handle> {
    let (deliver, delivery) = oneshot::channel();
    let serve = move || {
        let opened = Builder::new_current_thread().enable_io().build().and_then(|runtime| {
            let context = runtime.enter();
            let (connection, handle, _unsolicited) = rtnetlink::new_connection()?;
            drop(context);
            Ok((runtime, connection, handle))
        });
        match opened {
            Ok((runtime, connection, handle)) => {
                if deliver.send(Ok(handle)).is_ok() {
                    runtime.block_on(connection);
                }
            }
            // Nobody to tell means nobody needs the connection.
            Err(error) => drop(deliver.send(Err(error))),
        }
    };
    thread::Builder::new().name("wrenn-netlink".to_owned()).spawn(serve)?;
    delivery.await.map_err(io::Error::other)?
}

/// The index of a link of the calling thread's namespace, if there is one of that name.
pub(crate) fn find(name: &str) -> io::Result<Option<u32>> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    match netdevice::name_to_index(&socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The index of a link that must be there.
pub(crate) fn index_of(name: &str) -> io::Result<u32> {
    find(name)?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no link {name}")))
}

/// Makes a veth pair: one end here, up, and its peer in `namespace`, still down, because a veth without its
/// other end cannot be opened.
pub(crate) async fn add_veth(
    handle: &Handle,
    name: &str,
    peer: &str,
    namespace: BorrowedFd<'_>,
) -> io::Result<()> {
    let inside = LinkMessageBuilder::<LinkUnspec>::new()
        .name(peer.to_owned())
        .append_extra_attribute(LinkAttribute::NetNsFd(namespace.as_raw_fd()))
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name.to_owned())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(inside)))
        .up()
        .build();
    handle.link().add(pair).execute().await.map_err(into_io)
}

/// Gives a link a hardware address.
pub(crate) async fn set_mac(handle: &Handle, link: u32, mac: [u8; 6]) -> io::Result<()> {
    let message = LinkMessageBuilder::<LinkUnspec>::new().index(link).address(mac.to_vec()).build();
    handle.link().change(message).execute().await.map_err(into_io)
}

/// Enters a neighbour for good, so that it is never asked for its hardware address.
pub(crate) async fn add_neighbour(
    handle: &Handle,
    link: u32,
    addr: Ipv4Addr,
    mac: [u8; 6],
) -> io::Result<()> {
    let request = handle.neighbours().add(link, IpAddr::V4(addr)).link_layer_address(&mac);
    request.state(NeighbourState::Permanent).execute().await.map_err(into_io)
}

/// Brings a link up.
pub(crate) async fn set_up(handle: &Handle, link: u32) -> io::Result<()> {
    let message = LinkUnspec::new_with_index(link).up().build();
    handle.link().change(message).execute().await.map_err(into_io)
}

/// Removes a link of the host by name, with its peer, addresses and routes; none of that name is no error.
pub(crate) async fn remove(handle: &Handle, name: &str) -> io::Result<()> {
    let Some(link) = find(name)? else { return Ok(()) };
    match handle.link().del(link).execute().await.map_err(into_io) {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

/// Gives a link an address.
pub(crate) async fn add_address(handle: &Handle, link: u32, addr: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mut request = handle.address().add(link, IpAddr::V4(addr), prefix);
    // The crate derives a broadcast address, which in a network of two is the peer.
    request.message_mut().attributes.retain(|attr| !matches!(attr, AddressAttribute::Broadcast(_)));
    request.execute().await.map_err(into_io)
}

/// Adds the default route.
pub(crate) async fn add_default_route(handle: &Handle, gateway: Ipv4Addr) -> io::Result<()> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
    handle.route().add(route).execute().await.map_err(into_io)
}

/// Adds the route to the single address `to`; a route to it that exists already is an error.
pub(crate) async fn add_host_route(
    handle: &Handle,
    to: Ipv4Addr,
    gateway: Ipv4Addr,
    link: u32,
) -> io::Result<()> {
    handle.route().add(host_route(to, gateway, link)).execute().await.map_err(into_io)
}

/// Makes the route of [`add_host_route`] be there and be right, whatever was there before.
pub(crate) async fn restore_host_route(
    handle: &Handle,
    to: Ipv4Addr,
    gateway: Ipv4Addr,
    link: u32,
) -> io::Result<()> {
    handle.route().add(host_route(to, gateway, link)).replace().execute().await.map_err(into_io)
}

fn host_route(to: Ipv4Addr, gateway: Ipv4Addr, link: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(to, 32)
        .gateway(gateway)
        .output_interface(link)
        .build()
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
