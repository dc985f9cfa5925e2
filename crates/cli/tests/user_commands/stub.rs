//! A server that speaks the wire format of the API with one capsule behind it, in the process of the tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{DefaultBodyLimit, Json, Multipart, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post};
use axum::{Router, serve};
use serde_json::{Value, json};

pub const ID: &str = "cl-6dfzh5ik5vyvhrb0t267ptnew";

/// The files of the stub's one capsule; a path that ends in `/` is a directory.
pub type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

pub struct Stub {
    address: SocketAddr,
    pub files: Files,
    _runtime: tokio::runtime::Runtime,
}

impl Stub {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let files = Files::default();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(Arc::clone(&files));
        runtime.spawn(async move { serve(listener, router).await });
        Self { address, files, _runtime: runtime }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = wrenn(args);
        command.env("WRENN_BASE_URL", format!("http://{}", self.address)).env("WRENN_API_KEY", "wrn_test");
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.files.lock().unwrap().get(path).cloned()
    }

    pub fn put(&self, path: &str, content: &[u8]) {
        self.files.lock().unwrap().insert(path.to_owned(), content.to_owned());
    }
}

/// The program in an environment of its own.
pub fn wrenn(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn"));
    command.args(args).env_clear().current_dir("/").stdin(Stdio::null());
    command.env("WRENN_DIR", "/nonexistent/wrenn");
    command
}

fn capsule(status: &str) -> Value {
    json!({
        "id": ID, "status": status, "template": "minimal", "vcpus": 1, "memory_mb": 512, "timeout_sec": 0,
        "disk_size_mb": 5120, "created_at": "2026-01-02T03:04:05Z", "last_updated": "2026-01-02T03:04:05Z",
    })
}

fn router(files: Files) -> Router {
    let at = |rest: &str| format!("/v1/capsules/{ID}{rest}");
    Router::new()
        .route(
            "/v1/capsules",
            get(|| async { Json(json!([capsule("running")])) })
                .post(|| async { (StatusCode::CREATED, Json(capsule("running"))) }),
        )
        .route(
            "/v1/capsules/{id}",
            delete(|| async { StatusCode::NO_CONTENT }).get(|| async { Json(capsule("stopped")) }),
        )
        .route(&at("/pause"), post(|| async { Json(capsule("paused")) }))
        .route(&at("/resume"), post(|| async { refusal(StatusCode::CONFLICT, "invalid_state") }))
        .route(&at("/fork"), post(fork))
        .route("/v1/snapshots", get(templates).post(snapshot))
        .route("/v1/snapshots/{name}", delete(delete_template))
        .route(&at("/exec"), post(exec))
        .route(
            &at("/exec/stream"),
            any(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(exec_stream) }),
        )
        .route(&at("/pty"), any(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(pty) }))
        .route(&at("/files/stream/write"), post(write))
        .route(&at("/files/stream/read"), post(read))
        .route(&at("/files/list"), post(list))
        .route(&at("/files/mkdir"), post(mkdir))
        .layer(DefaultBodyLimit::disable())
        .with_state(files)
}

fn refusal(status: StatusCode, code: &str) -> Response {
    (status, Json(json!({"error": {"code": code, "message": "because"}}))).into_response()
}

async fn fork(Json(body): Json<Value>) -> Response {
    assert_eq!(body["metadata"], json!({"a": "b"}));
    let copies = vec![capsule("running"); usize::try_from(body["count"].as_u64().unwrap()).unwrap()];
    (StatusCode::CREATED, Json(json!({"capsules": copies}))).into_response()
}

async fn templates(uri: axum::http::Uri) -> Response {
    let template = |name: &str, kind: &str| json!({"name": name, "type": kind, "size_bytes": 0, "created_at": "2026-01-02T03:04:05Z"});
    let mut all = vec![template("mine", "snapshot"), template("minimal", "base")];
    all.retain(|template| {
        uri.query().is_none_or(|query| query == format!("type={}", template["type"].as_str().unwrap()))
    });
    Json(all).into_response()
}

async fn snapshot(uri: axum::http::Uri, Json(body): Json<Value>) -> Response {
    if body["name"] == "mine" && uri.query().is_none() {
        return refusal(StatusCode::CONFLICT, "conflict");
    }
    let mut made = capsule("running");
    made["name"] = body["name"].clone();
    made["type"] = json!("snapshot");
    (StatusCode::CREATED, Json(made)).into_response()
}

async fn delete_template(axum::extract::Path(name): axum::extract::Path<String>) -> Response {
    if name == "mine" {
        StatusCode::NO_CONTENT.into_response()
    } else {
        refusal(StatusCode::NOT_FOUND, "not_found")
    }
}

async fn exec(Json(body): Json<Value>) -> Response {
    if body["background"] == true {
        return Json(json!({"sandbox_id": ID, "cmd": "x", "pid": 42, "tag": "proc-1"})).into_response();
    }
    Json(json!({"stdout": "/wA=", "stderr": "ZQ==", "exit_code": 4, "duration_ms": 1, "encoding": "base64"}))
        .into_response()
}

async fn say(socket: &mut WebSocket, value: Value) {
    socket.send(Message::text(value.to_string())).await.unwrap();
}

async fn hear(socket: &mut WebSocket) -> Value {
    match socket.recv().await.unwrap().unwrap() {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Plays the command: `echo`, `fail`, or `wait`, which ends when it is told to stop.
async fn exec_stream(mut socket: WebSocket) {
    let start = hear(&mut socket).await;
    if start["cmd"] == "fail" {
        return say(&mut socket, json!({"type": "error", "data": "no such directory"})).await;
    }
    say(&mut socket, json!({"type": "start", "pid": 5})).await;
    say(&mut socket, json!({"type": "stdout", "data": format!("{}{}\n", start["args"], start["envs"])}))
        .await;
    say(&mut socket, json!({"type": "stderr", "data": "careful\n"})).await;
    let mut code = 7;
    if start["cmd"] == "wait" {
        assert_eq!(hear(&mut socket).await, json!({"type": "stop"}));
        code = -1;
    }
    say(&mut socket, json!({"type": "exit", "exit_code": code})).await;
}

/// A terminal that tells its sizes, echoes keys, and ends at Ctrl-D.
async fn pty(mut socket: WebSocket) {
    let first = hear(&mut socket).await;
    say(&mut socket, json!({"type": "started", "tag": "pty-1", "pid": 9})).await;
    let hello = format!("{} {}x{}\r\n", first["type"], first["cols"], first["rows"]);
    socket.send(Message::Binary(hello.into())).await.unwrap();
    while let Some(Ok(message)) = socket.recv().await {
        match message {
            Message::Binary(keys) if keys.contains(&4) => {
                return say(&mut socket, json!({"type": "exit", "exit_code": 3})).await;
            }
            // Cut the connection without an exit.
            Message::Binary(keys) if keys.contains(&b'!') => return,
            Message::Binary(keys) => socket.send(Message::text_of(&keys)).await.unwrap(),
            Message::Text(text) => {
                let control: Value = serde_json::from_str(&text).unwrap();
                let told = format!("{} {}x{}\r\n", control["type"], control["cols"], control["rows"]);
                socket.send(Message::Binary(told.into())).await.unwrap();
            }
            _ => {}
        }
    }
}

/// Keys as a terminal would show them: control characters by number.
trait Echo {
    fn text_of(keys: &[u8]) -> Self;
}

impl Echo for Message {
    fn text_of(keys: &[u8]) -> Self {
        let shown: String = keys.iter().map(|key| format!("<{key}>")).collect();
        Self::Binary(shown.into())
    }
}

async fn write(State(files): State<Files>, mut parts: Multipart) -> Response {
    let path = parts.next_field().await.unwrap().unwrap().text().await.unwrap();
    let content = parts.next_field().await.unwrap().unwrap().bytes().await.unwrap().to_vec();
    files.lock().unwrap().insert(path, content);
    StatusCode::NO_CONTENT.into_response()
}

async fn read(State(files): State<Files>, Json(body): Json<Value>) -> Response {
    match files.lock().unwrap().get(body["path"].as_str().unwrap()) {
        Some(content) => content.clone().into_response(),
        None => refusal(StatusCode::NOT_FOUND, "not_found"),
    }
}

async fn mkdir(State(files): State<Files>, Json(body): Json<Value>) -> Response {
    let path = format!("{}/", body["path"].as_str().unwrap());
    if files.lock().unwrap().insert(path.clone(), Vec::new()).is_some() {
        return refusal(StatusCode::CONFLICT, "already_exists");
    }
    Json(json!({"entry": entry(&path, 0)})).into_response()
}

async fn list(State(files): State<Files>, Json(body): Json<Value>) -> Response {
    let directory = format!("{}/", body["path"].as_str().unwrap().trim_end_matches('/'));
    let files = files.lock().unwrap();
    if files.contains_key(directory.trim_end_matches('/')) {
        return refusal(StatusCode::BAD_REQUEST, "invalid_request");
    }
    if !files.contains_key(&directory) {
        return refusal(StatusCode::NOT_FOUND, "not_found");
    }
    let inside = files.iter().filter_map(|(path, content)| {
        let rest = path.strip_prefix(&directory)?.trim_end_matches('/');
        (!rest.is_empty() && !rest.contains('/')).then(|| entry(path, content.len()))
    });
    let mut entries: Vec<Value> = inside.collect();
    if directory == "/evil/" {
        let mut escape = entry("x", 1);
        escape["name"] = json!("../escaped");
        entries.push(escape);
    }
    Json(json!({"entries": entries})).into_response()
}

fn entry(path: &str, size: usize) -> Value {
    let directory = path.ends_with('/');
    let path = path.trim_end_matches('/');
    json!({
        "name": path.rsplit('/').next().unwrap(), "path": path, "size": size, "mode": 0o644,
        "type": if directory { "directory" } else { "file" },
        "permissions": if directory { "drwxr-xr-x" } else { "-rw-r--r--" },
        "owner": "root", "group": "root", "modified_at": 0,
    })
}
