//! Sending a transaction to the kernel and reading its verdict.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::batch::{Batch, Family, table_query};
use super::wire::Writer;

const NLMSG_ERROR: u16 = 2;
const HEADER_LEN: usize = 16;

/// The kernel answers in the call that sends, so this is only ever reached by a fault.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// An answer of the kernel to one message.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    sequence: u32,
    /// Zero for success, else an `errno`.
    errno: i32,
}

impl Batch {
    /// Puts the transaction into effect in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel's first refusal; nothing has changed then.
    pub(crate) fn commit(self) -> io::Result<()> {
        let (writer, last) = self.finish();
        exchange(&writer, last)
    }
}

/// Whether the calling thread's namespace has a table of that name.
pub(crate) fn table_exists(family: Family, table: &str) -> io::Result<bool> {
    let (writer, last) = table_query(family, table);
    match exchange(&writer, last) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends messages and waits for the acknowledgement of number `last`, or the first refusal.
fn exchange(messages: &Writer, last: u32) -> io::Result<()> {
    let socket = open()?;
    let sent = rustix::net::send(&socket, messages.as_bytes(), SendFlags::empty())?;
    if sent != messages.as_bytes().len() {
        return Err(io::Error::other("the message to the kernel was sent in part"));
    }
    await_verdict(&socket, last)
}

fn open() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    Ok(socket)
}

/// Reads answers until the one to message `last`; every message but a batch's borders asks for one, and they come in order.
fn await_verdict(socket: &OwnedFd, last: u32) -> io::Result<()> {
    let mut buffer = vec![0; 8192];
    loop {
        let (length, _) = rustix::net::recv(socket, &mut buffer, RecvFlags::empty())?;
        for answer in answers(&buffer[..length]) {
            if answer.errno != 0 {
                return Err(io::Error::from_raw_os_error(answer.errno));
            }
            if answer.sequence == last {
                return Ok(());
            }
        }
    }
}

/// The answers in one datagram; whatever else it holds is passed over.
fn answers(mut datagram: &[u8]) -> Vec<Answer> {
    let mut found = Vec::new();
    while let Some((length, kind, sequence)) = header(datagram) {
        if length < HEADER_LEN || length > datagram.len() {
            break;
        }
        if kind == NLMSG_ERROR
            && let Some(code) = datagram[HEADER_LEN..length].first_chunk::<4>()
        {
            found.push(Answer { sequence, errno: i32::from_ne_bytes(*code).wrapping_neg() });
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Length, type and sequence number of the message at the front.
fn header(datagram: &[u8]) -> Option<(usize, u16, u32)> {
    let header = datagram.first_chunk::<HEADER_LEN>()?;
    let [l0, l1, l2, l3, t0, t1, _, _, s0, s1, s2, s3, ..] = *header;
    let length = u32::from_ne_bytes([l0, l1, l2, l3]);
    Some((usize::try_from(length).ok()?, u16::from_ne_bytes([t0, t1]), u32::from_ne_bytes([s0, s1, s2, s3])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(sequence: u32, code: i32) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend_from_slice(&36u32.to_ne_bytes());
        message.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
        message.extend_from_slice(&0u16.to_ne_bytes());
        message.extend_from_slice(&sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(&code.to_ne_bytes());
        message.resize(36, 0);
        message
    }

    #[test]
    fn several_answers_in_one_datagram_are_all_read() {
        let datagram = [answer(1, 0), answer(2, -libc::ENOENT)].concat();
        assert_eq!(
            answers(&datagram),
            [Answer { sequence: 1, errno: 0 }, Answer { sequence: 2, errno: libc::ENOENT }]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            answers(&bytes);
        }
    }
}
