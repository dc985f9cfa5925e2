//! What the host says around a snapshot, by datagram.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

mod support;

use std::collections::BTreeMap;

use http::StatusCode;
use support::{Daemon, PATIENCE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use wrenn_protocol::datagram::{Answer, Call, MAX_BYTES, Operation};
use wrenn_protocol::guest::{GuestError, InitRequest, InitResponse};

/// Sends one datagram, and returns the answer's number, status and body.
async fn send(daemon: &Daemon, datagram: &[u8]) -> (u64, StatusCode, Vec<u8>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(datagram, ("127.0.0.1", daemon.port)).await.unwrap();
    let mut buffer = vec![0; MAX_BYTES];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    let Answer { number, status, body } = Answer::decode(&buffer[..length]).unwrap();
    (number, StatusCode::from_u16(status).unwrap(), body.to_vec())
}

async fn init(daemon: &Daemon, number: u64, token: &str, request: &InitRequest) -> (StatusCode, Vec<u8>) {
    let body = serde_json::to_vec(request).unwrap();
    let call = Call { number, operation: Operation::Init, token: token.as_bytes(), body: &body };
    let (answered, status, body) = send(daemon, &call.encode().unwrap()).await;
    assert_eq!(answered, number);
    (status, body)
}

fn with_variable(value: &str) -> InitRequest {
    let env = BTreeMap::from([("WORD".to_owned(), value.to_owned())]);
    InitRequest { env_vars: Some(env), ..InitRequest::default() }
}

async fn variable(daemon: &Daemon) -> String {
    let answer = daemon.get("/envs").await;
    let env: BTreeMap<String, String> = serde_json::from_slice(&answer.body).unwrap();
    env.get("WORD").cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_repeated_call_gets_the_same_answer_and_does_nothing() {
    let daemon = Daemon::start();
    let first = init(&daemon, 7, "", &with_variable("one")).await;
    assert_eq!(first.0, StatusCode::OK);
    let response: InitResponse = serde_json::from_slice(&first.1).unwrap();
    assert!(!response.version.is_empty() && !response.kernel.is_empty());
    assert_eq!(init(&daemon, 7, "", &with_variable("two")).await, first);
    assert_eq!(variable(&daemon).await, "one");
    init(&daemon, 8, "", &with_variable("two")).await;
    assert_eq!(variable(&daemon).await, "two");
}

#[tokio::test]
async fn a_call_needs_the_token_that_is_in_force() {
    let daemon = Daemon::with_token("old");
    let renewing = InitRequest { access_token: Some("new".into()), ..InitRequest::default() };
    for token in ["", "new", "olde"] {
        let (status, body) = init(&daemon, 1, token, &renewing).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(serde_json::from_slice::<GuestError>(&body).unwrap().message.contains("access token"));
    }
    assert_eq!(init(&daemon, 1, "old", &renewing).await.0, StatusCode::OK);
    // Its answer was lost, but not to somebody who does not know the token.
    assert_eq!(init(&daemon, 1, "old", &renewing).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(init(&daemon, 1, "new", &renewing).await.0, StatusCode::OK);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_or_not_answered_and_the_daemon_goes_on() {
    let daemon = Daemon::start();
    let bad = InitRequest { hostname: Some("a b".into()), ..InitRequest::default() };
    assert_eq!(init(&daemon, 1, "", &bad).await.0, StatusCode::BAD_REQUEST);
    let nonsense = Call { number: 2, operation: Operation::Init, token: b"", body: b"{" }.encode().unwrap();
    assert_eq!(send(&daemon, &nonsense).await.1, StatusCode::BAD_REQUEST);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for datagram in [&b""[..], b"WRN1", &nonsense[..12], &[0xff; 2000]] {
        socket.send_to(datagram, ("127.0.0.1", daemon.port)).await.unwrap();
    }
    assert_eq!(init(&daemon, 3, "", &with_variable("last")).await.0, StatusCode::OK);
    let unanswered =
        tokio::time::timeout(std::time::Duration::from_millis(200), socket.recv(&mut [0; 9])).await;
    assert!(unanswered.is_err());
}

#[tokio::test]
async fn preparing_closes_what_is_idle_and_a_restore_breaks_everything() {
    let daemon = Daemon::start();
    let prepare = Call { number: 1, operation: Operation::Prepare, token: b"", body: b"" }.encode().unwrap();
    let restored = InitRequest { restored: true, ..InitRequest::default() };
    for by_restore in [false, true] {
        let mut idle = TcpStream::connect(("127.0.0.1", daemon.port)).await.unwrap();
        // Accepted, once a later connection was served.
        assert_eq!(daemon.get("/health").await.status, StatusCode::NO_CONTENT);
        if by_restore {
            assert_eq!(init(&daemon, 2, "", &restored).await.0, StatusCode::OK);
        } else {
            assert_eq!(send(&daemon, &prepare).await.1, StatusCode::NO_CONTENT);
        }
        let ended = tokio::time::timeout(PATIENCE, idle.read(&mut [0])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
    assert_eq!(daemon.get("/health").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_late_attempt_of_a_restore_is_answered_and_breaks_nothing() {
    let daemon = Daemon::start();
    let restored =
        |number| InitRequest { restored: true, restore_number: Some(number), ..with_variable("first") };
    assert_eq!(init(&daemon, 1, "", &restored(5)).await.0, StatusCode::OK);
    let mut since = TcpStream::connect(("127.0.0.1", daemon.port)).await.unwrap();
    // Accepted, once a later connection was served.
    assert_eq!(daemon.get("/health").await.status, StatusCode::NO_CONTENT);
    let late = InitRequest { env_vars: with_variable("late").env_vars, ..restored(5) };
    assert_eq!(init(&daemon, 2, "", &late).await.0, StatusCode::OK);
    assert_eq!(variable(&daemon).await, "first");
    since.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(PATIENCE, since.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 204");
    // The next restore is another one.
    assert_eq!(init(&daemon, 3, "", &restored(6)).await.0, StatusCode::OK);
    // Whether with an error or without.
    let _ended = tokio::time::timeout(PATIENCE, since.read_to_end(&mut Vec::new())).await.unwrap();
}
