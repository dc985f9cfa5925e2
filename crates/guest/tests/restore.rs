//! What the host says around a snapshot, to a daemon that is in the middle of its work.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

mod support;

use bytes::Bytes;
use http::{Request, StatusCode};
use support::{Answer, Daemon, PATIENCE, alive, eventually, run, shell};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use wrenn_protocol::guest::{InitRequest, PREPARE_PATH};
use wrenn_protocol::process::__buffa::oneof::process_event::Event;
use wrenn_protocol::process::StartResponse;

/// A connection of one's own, without a library that would dial again.
struct Raw(TcpStream);

impl Raw {
    async fn dial(daemon: &Daemon) -> Self {
        Self(TcpStream::connect(("127.0.0.1", daemon.port)).await.unwrap())
    }

    /// Sends a request and returns the head of the answer; a short body comes with it.
    async fn ask(&mut self, request: &str) -> String {
        self.0.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let length = tokio::time::timeout(PATIENCE, self.0.read(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    async fn health(&mut self) -> String {
        self.ask("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await
    }

    /// Bytes until the connection ends, in whatever way.
    async fn rest(&mut self) -> usize {
        let (mut sum, mut buffer) = (0, vec![0; 1 << 16]);
        while let Ok(count @ 1..) = tokio::time::timeout(PATIENCE, self.0.read(&mut buffer)).await.unwrap() {
            sum += count;
        }
        sum
    }
}

fn init_request(body: &InitRequest) -> String {
    let body = serde_json::to_string(body).unwrap();
    format!("POST /init HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

async fn prepare(daemon: &Daemon) -> Answer {
    daemon.post(PREPARE_PATH, "application/json", "").await
}

/// A script that says its id, waits for the file `go` and then makes the file `done`.
fn waiting(directory: &std::path::Path) -> String {
    let dir = directory.display();
    format!("echo $$; while [ ! -e {dir}/go ]; do sleep 0.02; done; touch {dir}/done; echo over")
}

#[tokio::test]
async fn preparing_closes_what_is_idle_and_finishes_what_is_not() {
    let (daemon, directory) = (Daemon::start(), tempfile::tempdir().unwrap());
    let (mut silent, mut used) = (Raw::dial(&daemon).await, Raw::dial(&daemon).await);
    assert!(used.health().await.starts_with("HTTP/1.1 204"));
    let mut stream = daemon.processes().start(shell(&waiting(directory.path()))).await.unwrap();
    let mut ran = support::Ran::default();
    while ran.stdout.is_empty() {
        let message = stream.message::<StartResponse>().await.unwrap().unwrap();
        ran.take(message.to_owned_message().event.into_option().unwrap());
    }
    assert_eq!(prepare(&daemon).await.status, StatusCode::NO_CONTENT);
    assert_eq!((silent.rest().await, used.rest().await), (0, 0));
    std::fs::write(directory.path().join("go"), "").unwrap();
    while let Some(message) = stream.message::<StartResponse>().await.unwrap() {
        ran.take(message.to_owned_message().event.into_option().unwrap());
    }
    assert!(ran.text().ends_with("over\n") && ran.exit_code() == 0, "{ran:?}");
    assert_eq!(daemon.get("/health").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn preparing_needs_the_token() {
    let daemon = Daemon::with_token("t");
    assert_eq!(prepare(&daemon).await.status, StatusCode::UNAUTHORIZED);
    let known = Request::post(daemon.url(PREPARE_PATH)).header("x-access-token", "t");
    assert_eq!(daemon.send(known, Bytes::new()).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_restore_breaks_every_connection_but_its_own_and_no_process() {
    let (daemon, directory) = (Daemon::start(), tempfile::tempdir().unwrap());
    let (mut own, mut idle) = (Raw::dial(&daemon).await, Raw::dial(&daemon).await);
    assert!(idle.health().await.starts_with("HTTP/1.1 204"));
    let mut stream = daemon.processes().start(shell(&waiting(directory.path()))).await.unwrap();
    let first = stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message();
    let Some(Event::Start(start)) = first.event.into_option().unwrap().event else { panic!("no start") };
    let pid = i32::try_from(start.pid).unwrap();
    let request = InitRequest { restored: true, disk_bytes: Some(1 << 50), ..InitRequest::default() };
    assert!(own.ask(&init_request(&request)).await.starts_with("HTTP/1.1 200"));
    assert_eq!(idle.rest().await, 0);
    let mut next = async || tokio::time::timeout(PATIENCE, stream.message::<StartResponse>()).await.unwrap();
    while let Ok(Some(message)) = next().await {
        let event = message.to_owned_message().event.into_option().unwrap().event;
        assert!(!matches!(event, Some(Event::End(_))), "the end of a process that goes on");
    }
    assert!(alive(pid));
    assert!(own.health().await.starts_with("HTTP/1.1 204"));
    std::fs::write(directory.path().join("go"), "").unwrap();
    eventually("the process goes on", || directory.path().join("done").exists()).await;
    eventually("the process ends", || !alive(pid)).await;
}

#[tokio::test]
async fn a_restore_breaks_tunnels_and_transfers_of_whole_files() {
    let (daemon, directory) = (Daemon::start(), tempfile::tempdir().unwrap());
    let inside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut own, mut tunnel, mut download, mut upload) = (
        Raw::dial(&daemon).await,
        Raw::dial(&daemon).await,
        Raw::dial(&daemon).await,
        Raw::dial(&daemon).await,
    );
    let port = inside.local_addr().unwrap().port();
    let connect = format!(
        "GET /connect?port={port} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: wrenn-tcp\r\n\r\n"
    );
    assert!(tunnel.ask(&connect).await.starts_with("HTTP/1.1 101"));
    let (mut service, _) = inside.accept().await.unwrap();
    let big = directory.path().join("big");
    std::fs::File::create(&big).unwrap().set_len(1 << 30).unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let get = format!("GET /files?path={} HTTP/1.1\r\nhost: x\r\n\r\n", path("big"));
    assert!(download.ask(&get).await.starts_with("HTTP/1.1 200"));
    let head = "content-type: application/octet-stream\r\ncontent-length: 1000000";
    let put = format!("POST /files?path={} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\npart", path("new"));
    upload.0.write_all(put.as_bytes()).await.unwrap();
    let new = directory.path().join("new");
    eventually("the upload begins", || new.exists()).await;
    let request = InitRequest { restored: true, ..InitRequest::default() };
    assert!(own.ask(&init_request(&request)).await.starts_with("HTTP/1.1 200"));
    let end = tokio::time::timeout(PATIENCE, service.read(&mut [0; 16])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert_eq!((tunnel.rest().await, upload.rest().await), (0, 0));
    assert!(download.rest().await < 1 << 30);
    let pid = daemon.pid();
    eventually("nothing holds a broken connection", || sockets(pid) == sockets_of_an_idle_daemon()).await;
}

/// Sockets that a process has open.
fn sockets(pid: u32) -> usize {
    let names = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = names.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

/// Of a fresh daemon with one connection.
fn sockets_of_an_idle_daemon() -> usize {
    let fresh = Daemon::start();
    let _one = std::net::TcpStream::connect(("127.0.0.1", fresh.port)).unwrap();
    // The connection counts once it was accepted; answering another takes longer.
    std::thread::sleep(std::time::Duration::from_millis(100));
    sockets(fresh.pid())
}

#[tokio::test]
async fn a_clone_gets_a_token_of_its_own_and_the_old_one_opens_nothing() {
    let daemon = Daemon::with_token("old");
    let body = |token: &str| {
        let request =
            InitRequest { access_token: Some(token.into()), restored: true, ..InitRequest::default() };
        Bytes::from(serde_json::to_vec(&request).unwrap())
    };
    let init = |token: &str| Request::post(daemon.url("/init")).header("x-access-token", token);
    assert_eq!(daemon.send(init("new"), body("new")).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(daemon.send(init("old"), body("new")).await.status, StatusCode::OK);
    assert_eq!(daemon.send(init("old"), body("old")).await.status, StatusCode::UNAUTHORIZED);
    let metrics = |token: &str| Request::get(daemon.url("/metrics")).header("x-access-token", token);
    assert_eq!(daemon.send(metrics("old"), Bytes::new()).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(daemon.send(metrics("new"), Bytes::new()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_environment_of_new_processes_is_replaced_as_a_whole() {
    let daemon = Daemon::start();
    for body in [r#"{"envVars":{"ID":"one","OLD":"1"}}"#, r#"{"restored":true,"envVars":{"ID":"two"}}"#] {
        assert_eq!(daemon.post("/init", "application/json", body).await.status, StatusCode::OK);
    }
    let options = connectrpc::client::CallOptions::default();
    let ran = run(&daemon.processes(), shell("echo $ID-$OLD-"), options).await.unwrap();
    assert_eq!(ran.text(), "two--\n");
}
