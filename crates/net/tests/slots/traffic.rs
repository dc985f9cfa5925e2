//! Who can reach whom.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};
use wrenn_net::{GUEST_ADDR, Network, NetworkConfig, Slot, TAP_ADDR};

use crate::guest::{Guest, appears_as, inside, is_unreachable, tell_peers, tell_peers_at};
use crate::machine::{on_own_machine, shell};
use crate::outside::{self, HOST, METADATA, PRIVATE, PUBLIC};
use crate::{config, open};

fn at(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(addr.parse().expect("address"), port)
}

/// The two ends of the veth pair of a slot: the host's, then the namespace's.
fn veth_addrs(slot: &Slot) -> [IpAddr; 2] {
    let host = u32::from(slot.index().get()) * 2;
    [host, host + 1].map(|low| Ipv4Addr::from_bits(Ipv4Addr::new(10, 12, 0, 0).to_bits() | low).into())
}

async fn take(network: &Network) -> Slot {
    network.acquire().await.expect("a slot")
}

/// Which of these a guest reaches; all are tried at once, since each refusal takes its time.
fn reached(guest: &Guest, targets: &[SocketAddr]) -> Vec<SocketAddr> {
    let reaches = |to: SocketAddr| guest.run(|| !is_unreachable(to));
    thread::scope(|scope| {
        let attempts: Vec<_> = targets.iter().map(|&to| (to, scope.spawn(move || reaches(to)))).collect();
        let succeeded = |(to, attempt): (_, thread::ScopedJoinHandle<'_, bool>)| {
            attempt.join().expect("attempt ends").then_some(to)
        };
        attempts.into_iter().filter_map(succeeded).collect()
    })
}

#[test]
fn the_host_reaches_the_guest_and_appears_as_its_gateway() {
    on_own_machine(|| async {
        let network = open("a").await;
        let slot = take(&network).await;
        let guest = Guest::boot(&slot);
        tell_peers(guest.netns(), 8000);
        let to = SocketAddr::new(slot.guest_addr().into(), 8000);
        assert_eq!(appears_as(to).unwrap(), IpAddr::V4(TAP_ADDR));
        drop(guest);
        slot.release().await.unwrap();
    });
}

#[test]
fn a_guest_reaches_the_internet_and_appears_as_the_host() {
    on_own_machine(|| async {
        outside::build();
        let network = open("a").await;
        let slot = take(&network).await;
        let guest = Guest::boot(&slot);
        let seen = guest.run(|| appears_as(at(PUBLIC, outside::PORT))).unwrap();
        assert_eq!(seen.to_string(), HOST);
    });
}

#[test]
fn a_guest_may_ping_its_gateway() {
    on_own_machine(|| async {
        let network = open("a").await;
        let slot = take(&network).await;
        let guest = Guest::boot(&slot);
        let reply = guest.run(|| {
            let socket =
                rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).unwrap();
            let patience = Some(Duration::from_secs(20));
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, patience).unwrap();
            rustix::net::connect(&socket, &SocketAddrV4::new(TAP_ADDR, 0)).unwrap();
            // An echo request with number 1 and sequence 1, and its checksum.
            rustix::net::send(&socket, &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1], SendFlags::empty()).unwrap();
            let mut packet = [0; 64];
            let (length, _) = rustix::net::recv(&socket, &mut packet, RecvFlags::empty()).unwrap();
            packet[20..length].to_vec()
        });
        assert_eq!(reply, [0, 0, 0xff, 0xfd, 0, 1, 0, 1]);
    });
}

/// A host with listeners everywhere, two slots with guests, and everything the first guest could try to reach.
async fn besieged(network: &Network) -> (Guest, Guest, Vec<SocketAddr>, Vec<SocketAddr>) {
    outside::build();
    let (slot, other) = (take(network).await, take(network).await);
    let (guest, neighbour) = (Guest::boot(&slot), Guest::boot(&other));
    tell_peers(neighbour.netns(), 8000);
    tell_peers_at(TcpListener::bind("0.0.0.0:9000").expect("listens"));
    tell_peers(&format!("wrenn-{}", slot.index()), 9000);
    let mut never = vec![at(HOST, 9000), at(METADATA, outside::PORT)];
    never.extend(veth_addrs(&slot).map(|addr| SocketAddr::new(addr, 9000)));
    never.extend(veth_addrs(&other).map(|addr| SocketAddr::new(addr, 9000)));
    never.push(SocketAddr::new(other.guest_addr().into(), 8000));
    never.push(SocketAddr::new(TAP_ADDR.into(), 9000));
    let private = PRIVATE.map(|addr| at(addr, outside::PORT)).to_vec();
    (guest, neighbour, never, private)
}

#[test]
fn a_guest_reaches_neither_the_host_nor_other_slots_nor_private_networks() {
    on_own_machine(|| async {
        let network = open("a").await;
        let (guest, _neighbour, never, private) = besieged(&network).await;
        for open in
            [at(HOST, 9000), at(METADATA, outside::PORT), private[0], private[1], private[2], never[6]]
        {
            assert!(!is_unreachable(open), "{open} does not even answer the host, so this proves nothing");
        }
        assert_eq!(reached(&guest, &[never, private].concat()), []);
        assert_eq!(reached(&guest, &[at(PUBLIC, outside::PORT)]), [at(PUBLIC, outside::PORT)]);
    });
}

#[test]
fn private_networks_can_be_opened_and_the_rest_stays_closed() {
    on_own_machine(|| async {
        let network = Network::open(NetworkConfig { allow_private: true, ..config("a") }).await.unwrap();
        let (guest, _neighbour, never, private) = besieged(&network).await;
        assert_eq!(reached(&guest, &[never, private.clone()].concat()), private);
    });
}

#[test]
fn nobody_outside_opens_a_connection_to_a_guest() {
    on_own_machine(|| async {
        outside::build();
        let network = open("a").await;
        let slot = take(&network).await;
        let guest = Guest::boot(&slot);
        tell_peers(guest.netns(), 8000);
        let to = SocketAddr::new(slot.guest_addr().into(), 8000);
        assert!(!is_unreachable(to), "the guest does not listen");
        assert!(inside(outside::NETNS, || is_unreachable(to)));
        assert!(inside(outside::NETNS, || is_unreachable(SocketAddr::new(veth_addrs(&slot)[1], 8000))));
    });
}

#[test]
fn a_guest_does_not_reach_what_the_host_publishes_for_others() {
    on_own_machine(|| async {
        outside::build();
        shell(&format!(
            "nft add table ip publish
             nft add chain ip publish pre '{{ type nat hook prerouting priority dstnat; }}'
             nft add rule ip publish pre ip daddr {HOST} tcp dport 5000 dnat to {PUBLIC}:{}
             nft add chain ip publish post '{{ type nat hook postrouting priority srcnat; }}'
             nft add rule ip publish post oifname uplink masquerade",
            outside::PORT
        ));
        let network = open("a").await;
        let slot = take(&network).await;
        let guest = Guest::boot(&slot);
        assert!(inside(outside::NETNS, || !is_unreachable(at(HOST, 5000))), "nothing is published");
        assert_eq!(reached(&guest, &[at(HOST, 5000)]), []);
    });
}

#[test]
fn a_packet_with_a_forged_sender_goes_nowhere() {
    on_own_machine(|| async {
        outside::build();
        let network = open("a").await;
        let slot = take(&network).await;
        let guest = Guest::boot(&slot);
        shell(&format!("ip -n {} addr add 198.51.100.9/32 dev guest0", guest.netns()));
        let listener = inside(outside::NETNS, || UdpSocket::bind((PUBLIC, 7000)).unwrap());
        listener.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        guest.run(|| {
            // The honest packet goes last, over the same path: whatever arrives first tells.
            for (from, text) in [("198.51.100.9".to_owned(), "forged"), (GUEST_ADDR.to_string(), "honest")] {
                let socket = UdpSocket::bind((from.as_str(), 0)).unwrap();
                socket.send_to(text.as_bytes(), (PUBLIC, 7000)).unwrap();
            }
        });
        let mut buffer = [0; 16];
        let (length, from) = listener.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"honest");
        assert_eq!(from.ip().to_string(), HOST);
    });
}

#[test]
fn qemu_takes_the_tap_as_an_inherited_descriptor() {
    on_own_machine(|| async {
        let network = open("a").await;
        let slot = take(&network).await;
        let script = "exec 3<&0; printf 'info network\\nquit\\n' | \
                      qemu-system-x86_64 -M none -nodefaults -display none -monitor stdio -netdev tap,id=n0,fd=3";
        let tap = Stdio::from(slot.open_tap().unwrap());
        let output = Command::new("sh").args(["-c", script]).stdin(tap).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("type=tap,fd=3"), "{text}");
        slot.release().await.unwrap();
    });
}

#[test]
fn nft_lists_the_rules_that_were_written_by_netlink() {
    on_own_machine(|| async {
        let network = open("a").await;
        let slot = take(&network).await;
        let list = |format| shell(&format!("ip netns exec wrenn-{} nft {format} list ruleset", slot.index()));
        let json: serde_json::Value = serde_json::from_str(&list("-j")).unwrap();
        let objects = json["nftables"].as_array().unwrap();
        let count = |kind| objects.iter().filter(|object| object.get(kind).is_some()).count();
        assert_eq!((count("table"), count("chain"), count("rule")), (2, 7, 27));
        let text = list("-n");
        for rule in [
            "iifname \"wrenn-veth\" ip daddr 10.11.0.1 dnat to 169.254.0.21",
            "oifname \"wrenn-veth\" masquerade",
            "iifname \"wrenn-tap\" ip daddr 100.64.0.0/10 drop",
            "iifname \"wrenn-tap\" ip saddr != 169.254.0.21 drop",
            "iifname \"wrenn-tap\" oifname \"wrenn-veth\" accept",
            "ip saddr 169.254.0.21 ip daddr 169.254.0.22 udp dport 53 accept",
            "icmp type 8 accept",
            "type filter hook forward priority 0; policy drop;",
        ] {
            assert!(text.contains(rule), "{rule} is not in\n{text}");
        }
    });
}
