//! Calls of a guest's daemon by UDP: see [`wrenn_protocol::datagram`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};
use wrenn_protocol::datagram::{Answer, Call, MAX_BYTES, Operation};

/// Pauses between two datagrams of the same call. A guest that was just restored takes some tens of milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Calls the daemon at `to`, again and again under the same number, until it answers with a status and a body; never gives
/// up on one that does not, so put a limit around it. `body` makes the body anew each time.
///
/// # Errors
/// Where nobody listens there, or the call is too long for a datagram.
pub(crate) async fn call(
    to: SocketAddr,
    operation: Operation,
    token: &[u8],
    body: impl Fn() -> io::Result<Vec<u8>>,
) -> io::Result<(u16, Vec<u8>)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    // So that the kernel tells of a port where nobody listens.
    socket.connect(to).await?;
    let number = rand::random();
    let mut buffer = vec![0; MAX_BYTES];
    let mut pause = FIRST_PAUSE;
    loop {
        let body = body()?;
        let datagram = Call { number, operation, token, body: &body }.encode();
        let datagram = datagram.ok_or(io::ErrorKind::FileTooLarge)?;
        let answer = async {
            socket.send(&datagram).await?;
            loop {
                let length = socket.recv(&mut buffer).await?;
                if let Some(Answer { number: of, status, body }) = Answer::decode(&buffer[..length])
                    && of == number
                {
                    return io::Result::Ok((status, body.to_vec()));
                }
            }
        };
        match timeout(pause, answer).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::HostUnreachable => sleep(FIRST_PAUSE).await,
            Ok(outcome) => return outcome,
            Err(_) => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_is_repeated_under_its_number_until_it_is_answered() {
        let daemon = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = daemon.local_addr().unwrap();
        let answering = async {
            let mut buffer = vec![0; MAX_BYTES];
            let mut receive = async || {
                let (length, from) = daemon.recv_from(&mut buffer).await.unwrap();
                let call = Call::decode(&buffer[..length]).unwrap();
                assert_eq!((call.operation, call.token, call.body), (Operation::Init, &b"t"[..], &b"{}"[..]));
                (call.number, from)
            };
            let (first, from) = receive().await;
            // Lost, and then an answer to somebody else.
            assert_eq!(receive().await.0, first);
            let answer = |number, status| Answer { number, status, body: b"fine" }.encode();
            daemon.send_to(&answer(first ^ 1, 500), from).await.unwrap();
            daemon.send_to(b"WRN", from).await.unwrap();
            daemon.send_to(&answer(first, 200), from).await.unwrap();
        };
        let calling = call(to, Operation::Init, b"t", || Ok(b"{}".to_vec()));
        let (answer, ()) = tokio::join!(calling, answering);
        assert_eq!(answer.unwrap(), (200, b"fine".to_vec()));
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_told_at_once_and_a_long_call_is_not_sent() {
        let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = taken.local_addr().unwrap();
        let long = call(to, Operation::Init, b"", || Ok(vec![0; MAX_BYTES])).await.unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::FileTooLarge);
        drop(taken);
        let refused = call(to, Operation::Prepare, b"", || Ok(Vec::new())).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
