//! The client against a stub server: an in-process test double that speaks the wire format and plays faults that a
//! real platform shows rarely. What the platform itself does is tested end to end, elsewhere.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Json, Multipart, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Router, serve};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use wrenn_client::{
    CapsuleId, Client, Command, CreateCapsule, CreateSnapshot, Error, ForkCapsule, ProcessEvent, PtyCommand,
    PtyEvent, TemplateKind, TerminalSize,
};

const SIZE: TerminalSize = TerminalSize { cols: 100, rows: 30 };

async fn start(router: Router) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let prefixed = Router::new().nest("/api", router);
    tokio::spawn(async move { serve(listener, prefixed).await });
    Client::new(&format!("http://{address}/api/"), "wrn_test").unwrap()
}

fn capsule(id: &str, status: &str) -> Value {
    json!({
        "id": id, "status": status, "template": "minimal", "vcpus": 1, "memory_mb": 512, "timeout_sec": 0,
        "disk_size_mb": 5120, "created_at": "2026-01-02T03:04:05Z", "last_updated": "2026-01-02T03:04:05Z",
    })
}

fn refusal(status: StatusCode, code: &str) -> Response {
    let body = Json(json!({"error": {"code": code, "message": "because"}}));
    (status, [("x-request-id", "r-7")], body).into_response()
}

#[tokio::test]
async fn a_capsule_is_created_and_waited_for_against_a_stub_server() {
    let looks = Arc::new(AtomicUsize::new(0));
    let id = CapsuleId::random().to_string();
    let created = id.clone();
    let create = move |headers: HeaderMap, Json(body): Json<Value>| async move {
        assert_eq!(headers["x-api-key"], "wrn_test");
        assert_eq!(body, json!({"template": "minimal", "memory_mb": 256}));
        (StatusCode::ACCEPTED, Json(capsule(&created, "starting")))
    };
    let look = move |State(looks): State<Arc<AtomicUsize>>, Path(id): Path<String>| async move {
        let status = if looks.fetch_add(1, Ordering::SeqCst) == 0 { "starting" } else { "running" };
        Json(capsule(&id, status))
    };
    let router = Router::new()
        .route("/v1/capsules", post(create))
        .route("/v1/capsules/{id}", get(look))
        .with_state(Arc::clone(&looks));
    let client = start(router).await;
    let made = client.create_running(&CreateCapsule::new("minimal").memory_mb(256)).await.unwrap();
    assert_eq!(made.id.to_string(), id);
    assert_eq!(looks.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_boot_that_fails_ends_the_wait_against_a_stub_server() {
    let look = |Path(id): Path<String>| async move { Json(capsule(&id, "error")) };
    let client = start(Router::new().route("/v1/capsules/{id}", get(look))).await;
    let patience = std::time::Duration::from_secs(60);
    let result = client.wait_for(CapsuleId::random(), "running".parse().unwrap(), patience).await;
    assert!(matches!(result, Err(Error::Lost { .. })), "{result:?}");
}

/// A server whose capsule is in these states, one after the other, whatever is asked.
fn states(states: &'static [&'static str]) -> Router {
    let next = Arc::new(AtomicUsize::new(0));
    let answer = move |Path(path): Path<String>| {
        let at = next.fetch_add(1, Ordering::SeqCst).min(states.len() - 1);
        let id = path.split('/').next().unwrap().to_owned();
        async move { Json(capsule(&id, states[at])) }
    };
    Router::new().route("/v1/capsules/{*path}", any(answer))
}

#[tokio::test]
async fn pauses_and_resumes_are_waited_for_against_a_stub_server() {
    let id = CapsuleId::random();
    let client = start(states(&["pausing", "pausing", "paused"])).await;
    assert_eq!(client.pause_and_wait(id).await.unwrap().status.as_str(), "paused");
    let client = start(states(&["resuming", "running"])).await;
    assert_eq!(client.resume_and_wait(id).await.unwrap().status.as_str(), "running");
    for (failed, call) in [(&["pausing", "running"], "pause"), (&["resuming", "paused"], "resume")] {
        let client = start(states(failed)).await;
        let result = match call {
            "pause" => client.pause_and_wait(id).await,
            _ => client.resume_and_wait(id).await,
        };
        assert!(matches!(result, Err(Error::Lost { .. })), "{call}: {result:?}");
    }
}

#[tokio::test]
async fn forks_are_waited_for_against_a_stub_server() {
    let id = CapsuleId::random();
    let fork = |Path(id): Path<String>, Json(body): Json<Value>| async move {
        assert_eq!(body, json!({"count": 2, "metadata": {"a": "b"}}));
        let copies = [capsule(&id, "running"), capsule(&id, "starting")];
        (StatusCode::ACCEPTED, Json(json!({"capsules": copies})))
    };
    let look = |Path(id): Path<String>| async move { Json(capsule(&id, "running")) };
    let router =
        Router::new().route("/v1/capsules/{id}/fork", post(fork)).route("/v1/capsules/{id}", get(look));
    let client = start(router).await;
    let copies = client.fork_and_wait(id, &ForkCapsule::copies(2).label("a", "b")).await.unwrap();
    assert!(copies.len() == 2 && copies.iter().all(|copy| copy.status.as_str() == "running"));
}

fn template(name: &str, created_at: &str) -> Value {
    json!({"name": name, "type": "snapshot", "vcpus": 1, "memory_mb": 512, "size_bytes": 1, "platform": false,
        "protected": false, "created_at": created_at})
}

/// A server that takes its time to make template `a`, and then has one of `created_at`.
fn slow_snapshots(created_at: &'static str) -> Router {
    let lists = Arc::new(AtomicUsize::new(0));
    let list = move || {
        let first = lists.fetch_add(1, Ordering::SeqCst) == 0;
        let at = if first { "2026-01-02T03:04:05Z" } else { created_at };
        async move { Json(json!([template("a", at)])) }
    };
    let make = |uri: axum::http::Uri, Json(body): Json<Value>| async move {
        assert_eq!((uri.query(), &body["name"]), (Some("overwrite=true"), &json!("a")));
        let mut answer = capsule(body["sandbox_id"].as_str().unwrap(), "snapshotting");
        answer["name"] = json!("a");
        answer["type"] = json!("snapshot");
        (StatusCode::ACCEPTED, Json(answer))
    };
    states(&["snapshotting", "running"]).route("/v1/snapshots", get(list).post(make))
}

#[tokio::test]
async fn a_slow_overwrite_is_told_from_a_failed_one_against_a_stub_server() {
    let request = CreateSnapshot::new(CapsuleId::random()).name("a").overwrite();
    let client = start(slow_snapshots("2026-01-02T03:05:00Z")).await;
    let made = client.create_snapshot_and_wait(&request).await.unwrap();
    assert_eq!((made.name.as_str(), made.kind), ("a", TemplateKind::Snapshot));
    let client = start(slow_snapshots("2026-01-02T03:04:05Z")).await;
    let failed = client.create_snapshot_and_wait(&request).await;
    assert!(matches!(failed, Err(Error::NotMade { .. })), "{failed:?}");
}

#[tokio::test]
async fn templates_are_listed_by_kind_and_deleted_by_name_against_a_stub_server() {
    let list = |uri: axum::http::Uri| async move {
        assert_eq!(uri.query(), Some("type=base"));
        let mut base = template("minimal", "2026-01-02T03:04:05Z");
        base["type"] = json!("base");
        base["vcpus"] = Value::Null;
        Json(json!([base]))
    };
    let delete = |Path(name): Path<String>| async move {
        assert_eq!(name, "a/b");
        StatusCode::NO_CONTENT
    };
    let router = Router::new()
        .route("/v1/snapshots", get(list))
        .route("/v1/snapshots/{name}", axum::routing::delete(delete));
    let client = start(router).await;
    let found = client.list_templates(Some(TemplateKind::Base)).await.unwrap();
    assert_eq!((found[0].kind, found[0].vcpus), (TemplateKind::Base, None));
    client.delete_template("a/b").await.unwrap();
}

#[tokio::test]
async fn refusals_carry_code_status_and_request_id_against_a_stub_server() {
    let refuse = || async { refusal(StatusCode::NOT_FOUND, "not_found") };
    let client = start(Router::new().route("/v1/capsules/{id}", get(refuse).delete(refuse))).await;
    let Err(Error::Api(error)) = client.get(CapsuleId::random()).await else { panic!("not refused") };
    assert_eq!((error.status, error.code.as_str(), error.message.as_str()), (404, "not_found", "because"));
    assert_eq!(error.request_id.as_deref(), Some("r-7"));
    client.wait_gone(CapsuleId::random(), std::time::Duration::ZERO).await.unwrap();
}

/// A server that hangs up on the first `failures` connections and answers the others; gives the connection count.
async fn flaky(failures: usize) -> (Client, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()), "k").unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = connection.read(&mut request).await;
            if seen.fetch_add(1, Ordering::SeqCst) >= failures {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]";
                let _ = connection.write_all(answer).await;
            }
        }
    });
    (client, count)
}

#[tokio::test]
async fn reads_survive_two_lost_connections_and_writes_are_sent_once_against_a_stub_server() {
    let (client, count) = flaky(2).await;
    assert_eq!(client.list().await.unwrap(), []);
    assert_eq!(count.load(Ordering::SeqCst), 3);

    let (client, count) = flaky(9).await;
    assert!(matches!(client.list().await, Err(Error::Transport { .. })));
    assert_eq!(count.load(Ordering::SeqCst), 3);

    let (client, count) = flaky(1).await;
    assert!(client.create(&CreateCapsule::default()).await.is_err());
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_closed_port_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(&format!("http://{address}"), "k").unwrap();
    assert!(matches!(client.list().await, Err(Error::Unreachable { .. })));
}

#[tokio::test]
async fn exec_returns_exact_bytes_against_a_stub_server() {
    let exec = |Json(body): Json<Value>| async move {
        assert_eq!(body["args"], json!(["-c", "x"]));
        Json(json!({"sandbox_id": "cl-", "cmd": "/bin/sh", "stdout": "/w==", "stderr": "", "exit_code": 3,
            "duration_ms": 12, "encoding": "base64"}))
    };
    let client = start(Router::new().route("/v1/capsules/{id}/exec", post(exec))).await;
    let result = client.exec(CapsuleId::random(), &Command::shell("x")).await.unwrap();
    assert_eq!((&result.stdout[..], result.exit_code), (&[0xff][..], 3));
}

#[tokio::test]
async fn selectors_are_encoded_against_a_stub_server() {
    let kill = |Path((_, selector)): Path<(String, String)>| async move {
        assert_eq!(selector, "a/b c");
        StatusCode::NO_CONTENT
    };
    let router = Router::new().route("/v1/capsules/{id}/processes/{selector}", axum::routing::delete(kill));
    start(router).await.kill(CapsuleId::random(), "a/b c").await.unwrap();
}

#[tokio::test]
async fn uploads_stream_from_a_reader_against_a_stub_server() {
    const LEN: u64 = 32 * 1024 * 1024;
    let write = |headers: HeaderMap, mut parts: Multipart| async move {
        assert_eq!(headers["transfer-encoding"], "chunked");
        let path = parts.next_field().await.unwrap().unwrap();
        assert_eq!(path.name(), Some("path"));
        assert_eq!(path.text().await.unwrap(), "/data/ü");
        let mut file = parts.next_field().await.unwrap().unwrap();
        let mut len = 0;
        while let Some(chunk) = file.chunk().await.unwrap() {
            len += chunk.len() as u64;
        }
        assert_eq!(len, LEN);
        StatusCode::NO_CONTENT
    };
    let router = Router::new()
        .route("/v1/capsules/{id}/files/stream/write", post(write))
        .layer(axum::extract::DefaultBodyLimit::disable());
    let client = start(router).await;
    client.upload(CapsuleId::random(), "/data/ü", tokio::io::repeat(7).take(LEN)).await.unwrap();
}

#[tokio::test]
async fn a_download_that_breaks_off_ends_in_an_error_against_a_stub_server() {
    let read = |Json(body): Json<Value>| async move {
        if body["path"] == "/missing" {
            return refusal(StatusCode::NOT_FOUND, "not_found");
        }
        let chunks = [Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("the guest died"))];
        // The pause lets the first chunk leave before the connection is cut.
        let slow = stream::iter(chunks).then(|item| async move {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            item
        });
        Body::from_stream(slow).into_response()
    };
    let client = start(Router::new().route("/v1/capsules/{id}/files/stream/read", post(read))).await;
    let id = CapsuleId::random();
    assert!(client.download(id, "/missing").await.is_err_and(|e| e.is_not_found()));
    let items: Vec<_> = client.download(id, "/f").await.unwrap().collect().await;
    assert_eq!(items[0].as_ref().unwrap(), "half");
    assert!(items.last().unwrap().is_err());
}

fn socket_route<F, Fut>(path: &str, session: F) -> Router
where
    F: FnOnce(WebSocket) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let upgrade = move |headers: HeaderMap, upgrade: WebSocketUpgrade| async move {
        assert_eq!(headers["x-api-key"], "wrn_test");
        upgrade.on_upgrade(session)
    };
    Router::new().route(path, any(upgrade))
}

async fn say(socket: &mut WebSocket, value: Value) {
    socket.send(Message::text(value.to_string())).await.unwrap();
}

async fn hear(socket: &mut WebSocket) -> Value {
    loop {
        match socket.recv().await.unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_command_streams_and_is_stopped_against_a_stub_server() {
    let session = |mut socket: WebSocket| async move {
        let start = hear(&mut socket).await;
        assert_eq!(
            start,
            json!({"type": "start", "cmd": "sleep", "args": ["9"], "envs": {"A": "b"}, "timeout_sec": 4})
        );
        say(&mut socket, json!({"type": "start", "pid": 5})).await;
        say(&mut socket, json!({"type": "stderr", "data": "é"})).await;
        assert_eq!(hear(&mut socket).await, json!({"type": "stop"}));
        say(&mut socket, json!({"type": "exit", "exit_code": -1})).await;
    };
    let client = start(socket_route("/v1/capsules/{id}/exec/stream", session)).await;
    let command = Command::new("sleep").arg("9").env("A", "b").timeout_sec(4);
    let mut events = client.exec_stream(CapsuleId::random(), &command).await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap(), ProcessEvent::Start { pid: 5 });
    assert_eq!(events.next().await.unwrap().unwrap(), ProcessEvent::Stderr { data: "é".into() });
    events.stop().await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap(), ProcessEvent::Exit { exit_code: -1 });
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_session_that_breaks_off_is_told_from_one_that_failed_against_a_stub_server() {
    let attach = |mut socket: WebSocket| async move {
        say(&mut socket, json!({"type": "start", "pid": 5})).await;
    };
    let exec = |mut socket: WebSocket| async move {
        say(&mut socket, json!({"type": "error", "data": "no such capsule"})).await;
    };
    let router = socket_route("/v1/capsules/{id}/processes/{selector}/stream", attach)
        .merge(socket_route("/v1/capsules/{id}/exec/stream", exec));
    let client = start(router).await;
    let mut events = client.attach(CapsuleId::random(), "proc-1").await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap(), ProcessEvent::Start { pid: 5 });
    assert!(matches!(events.next().await, Some(Err(Error::Disconnected))));
    assert!(events.next().await.is_none());

    let mut events = client.exec_stream(CapsuleId::random(), &Command::new("true")).await.unwrap();
    assert!(matches!(events.next().await, Some(Err(Error::Session(text))) if text == "no such capsule"));
}

#[tokio::test]
async fn a_malformed_handshake_answer_is_an_error_against_a_stub_server() {
    let refuse = || async { refusal(StatusCode::BAD_REQUEST, "invalid_request") };
    let client = start(Router::new().route("/v1/capsules/{id}/exec/stream", get(refuse))).await;
    let error = client.exec_stream(CapsuleId::random(), &Command::new("true")).await.unwrap_err();
    assert_eq!(error.code(), Some("invalid_request"));
}

#[tokio::test]
async fn a_terminal_echoes_resizes_answers_pings_and_exits_against_a_stub_server() {
    let session = |mut socket: WebSocket| async move {
        let start = hear(&mut socket).await;
        assert_eq!(start, json!({"type": "start", "cols": 100, "rows": 30, "cmd": "sh"}));
        say(&mut socket, json!({"type": "started", "tag": "pty-1", "pid": 9})).await;
        say(&mut socket, json!({"type": "ping"})).await;
        say(&mut socket, json!({"type": "error", "data": "slow"})).await;
        assert_eq!(hear(&mut socket).await, json!({"type": "pong"}));
        let Message::Binary(keys) = socket.recv().await.unwrap().unwrap() else { panic!("not binary") };
        socket.send(Message::Binary(keys)).await.unwrap();
        assert_eq!(hear(&mut socket).await, json!({"type": "resize", "cols": 1, "rows": 2}));
        assert_eq!(hear(&mut socket).await, json!({"type": "kill"}));
        say(&mut socket, json!({"type": "exit", "exit_code": -1})).await;
    };
    let client = start(socket_route("/v1/capsules/{id}/pty", session)).await;
    let command = PtyCommand { cmd: Some("sh".into()), ..PtyCommand::default() };
    let pty = client.pty(CapsuleId::random(), &command, SIZE).await.unwrap();
    assert_eq!((pty.tag.as_str(), pty.pid), ("pty-1", 9));
    let (writer, mut reader) = pty.split();
    assert_eq!(reader.next().await.unwrap().unwrap(), PtyEvent::Notice("slow".into()));
    writer.write(vec![0xff, 3]).await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), PtyEvent::Output(Bytes::from_static(&[0xff, 3])));
    writer.resize(TerminalSize { cols: 1, rows: 2 }).await.unwrap();
    writer.kill().await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), PtyEvent::Exit(-1));
    assert!(reader.next().await.is_none());
}

#[tokio::test]
async fn attaching_to_an_unknown_terminal_fails_against_a_stub_server() {
    let session = |mut socket: WebSocket| async move {
        assert_eq!(hear(&mut socket).await["type"], "connect");
        say(&mut socket, json!({"type": "error", "data": "unknown tag", "fatal": true})).await;
    };
    let client = start(socket_route("/v1/capsules/{id}/pty", session)).await;
    let result = client.pty_attach(CapsuleId::random(), "pty-x", SIZE).await;
    assert!(matches!(result, Err(Error::Session(text)) if text == "unknown tag"));
}
