//! DNS through the slot's forwarder.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use wrenn_net::{Slot, TAP_ADDR};

use crate::guest::Guest;
use crate::machine::{on_own_machine, shell};
use crate::open;

const PATIENCE: Duration = Duration::from_secs(30);

/// A query for the address of `wrenn.example`.
fn query(id: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(b"\x05wrenn\x07example\0\0\x01\0\x01");
    bytes
}

/// The answer of the server whose last digit is `digit`, marked as truncated to see that pass.
fn reply(query: &[u8], digit: u8) -> Vec<u8> {
    let mut bytes = query.to_vec();
    bytes[2] |= 0x82;
    bytes.push(digit);
    bytes
}

/// A name server on the host's loopback, over UDP and TCP, until the process ends.
fn serve(digit: u8) {
    let addr = SocketAddr::from(([127, 0, 53, digit], 53));
    let udp = UdpSocket::bind(addr).expect("binds");
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
            let query = &buffer[..length];
            // Answers to other queries come first, and must not be taken for this one's.
            let mut stray = reply(query, 99);
            stray[1] ^= 1;
            for answer in [stray, query.to_vec(), reply(query, digit)] {
                let _ = udp.send_to(&answer, peer);
            }
        }
    });
    let tcp = TcpListener::bind(addr).expect("binds");
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let query = read_framed(&mut stream);
            write_framed(&mut stream, &reply(&query, digit));
        }
    });
}

fn read_framed(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("length");
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).expect("message");
    bytes
}

fn write_framed(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).expect("fits");
    stream.write_all(&[&length.to_be_bytes(), message].concat()).expect("sends");
}

fn nameservers(digits: &[u8]) {
    let lines: String = digits.iter().map(|digit| format!("nameserver 127.0.53.{digit}\n")).collect();
    std::fs::write("/run/resolv.conf", lines).expect("resolv.conf");
}

fn ask_udp(guest: &Guest, id: u16) -> Vec<u8> {
    guest.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        socket.connect((TAP_ADDR, 53)).expect("connects");
        socket.send(&query(id)).expect("sends");
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).expect("an answer");
        buffer[..length].to_vec()
    })
}

async fn with_guest(test: impl FnOnce(&Slot, &Guest)) {
    let network = open("a").await;
    let slot = network.acquire().await.expect("a slot");
    let guest = Guest::boot(&slot);
    test(&slot, &guest);
    drop(guest);
    slot.release().await.expect("released");
}

#[test]
fn queries_over_udp_reach_the_hosts_name_server_and_only_their_own_answer_comes_back() {
    on_own_machine(|| async {
        nameservers(&[1]);
        serve(1);
        with_guest(|_, guest| {
            for id in [7, 0xbeef] {
                assert_eq!(ask_udp(guest, id), reply(&query(id), 1));
            }
        })
        .await;
    });
}

#[test]
fn several_queries_go_over_one_tcp_connection() {
    on_own_machine(|| async {
        nameservers(&[1]);
        serve(1);
        with_guest(|_, guest| {
            guest.run(|| {
                let mut stream = TcpStream::connect((TAP_ADDR, 53)).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                for id in [1, 2, 3] {
                    write_framed(&mut stream, &query(id));
                    assert_eq!(read_framed(&mut stream), reply(&query(id), 1));
                }
            });
        })
        .await;
    });
}

#[test]
fn a_dead_server_is_passed_over_and_a_changed_resolv_conf_is_noticed() {
    on_own_machine(|| async {
        nameservers(&[66, 2]);
        serve(2);
        serve(31);
        with_guest(|_, guest| {
            assert_eq!(ask_udp(guest, 1), reply(&query(1), 2));
            nameservers(&[31]);
            assert_eq!(ask_udp(guest, 2), reply(&query(2), 31));
        })
        .await;
    });
}

#[test]
fn without_any_server_the_guest_is_told_so() {
    on_own_machine(|| async {
        nameservers(&[66]);
        with_guest(|_, guest| {
            let answer = ask_udp(guest, 0x0102);
            assert_eq!(answer[..4], [1, 2, 0x81, 0x82]);
        })
        .await;
    });
}

#[test]
fn a_flood_of_queries_to_a_silent_server_keeps_few_descriptors_open() {
    on_own_machine(|| async {
        nameservers(&[5]);
        let _silent = UdpSocket::bind("127.0.53.5:53").unwrap();
        with_guest(|_, guest| {
            guest.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                for id in 0..2000 {
                    socket.send_to(&query(id), (TAP_ADDR, 53)).unwrap();
                }
            });
            let asking = shell("ss -Hun state established dst 127.0.53.5").lines().count();
            assert!((1..=32).contains(&asking), "{asking} sockets ask the server");
        })
        .await;
    });
}
