//! The program as people run it, against a stub server: an in-process test double that speaks the wire format of the
//! API. What the platform itself does is tested end to end, elsewhere.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{DefaultBodyLimit, Json, Multipart, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post};
use axum::{Router, serve};
use serde_json::{Value, json};

const ID: &str = "cl-6dfzh5ik5vyvhrb0t267ptnew";

/// The files of the stub's one capsule; a path that ends in `/` is a directory.
type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

struct Stub {
    address: SocketAddr,
    files: Files,
    _runtime: tokio::runtime::Runtime,
}

impl Stub {
    fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let files = Files::default();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(Arc::clone(&files));
        runtime.spawn(async move { serve(listener, router).await });
        Self { address, files, _runtime: runtime }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = wrenn(args);
        command.env("WRENN_BASE_URL", format!("http://{}", self.address)).env("WRENN_API_KEY", "wrn_test");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.files.lock().unwrap().get(path).cloned()
    }

    fn put(&self, path: &str, content: &[u8]) {
        self.files.lock().unwrap().insert(path.to_owned(), content.to_owned());
    }
}

/// The program in an environment of its own.
fn wrenn(args: &[&str]) -> Command {
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

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn capsules_are_made_listed_and_destroyed_against_a_stub_server() {
    let stub = Stub::start();
    assert_eq!(stdout(&stub.run(&["capsule", "create"])), format!("{ID}\n"));
    assert_eq!(stdout(&stub.run(&["capsule", "ls", "-q"])), format!("{ID}\n"));
    assert!(stdout(&stub.run(&["capsule", "list"])).contains("running"));
    let all: Value = serde_json::from_slice(&stub.run(&["capsule", "ls", "--json"]).stdout).unwrap();
    assert_eq!(all[0]["id"], ID);
    assert_eq!(stdout(&stub.run(&["capsule", "rm", "6dfz"])), format!("{ID}\n"));
    let unknown = stub.run(&["capsule", "rm", "zz"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(stderr(&unknown), "error: no capsule's id begins with `zz`\n");
}

#[test]
fn exec_passes_output_and_exit_code_through_against_a_stub_server() {
    let stub = Stub::start();
    let output = stub.run(&["capsule", "exec", ID, "-e", "A=b", "--", "echo", "-n", "--json"]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert_eq!(stdout(&output), "[\"-n\",\"--json\"]{\"A\":\"b\"}\n");
    assert_eq!(stderr(&output), "careful\n");

    let lines = stdout(&stub.run(&["capsule", "exec", "--json", "cl-6d", "echo"]));
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last, json!({"type": "exit", "exit_code": 7}));

    let exact = stub.run(&["capsule", "exec", "--exact", ID, "echo"]);
    assert_eq!((exact.stdout.as_slice(), exact.status.code()), (&[0xff, 0][..], Some(4)));
    assert_eq!(stdout(&stub.run(&["capsule", "exec", "-b", ID, "echo"])), "42 proc-1\n");

    let failed = stub.run(&["capsule", "exec", ID, "fail"]);
    assert_eq!((failed.status.code(), stderr(&failed).as_str()), (Some(125), "error: no such directory\n"));
}

#[test]
fn an_interrupt_stops_the_remote_command_against_a_stub_server() {
    let stub = Stub::start();
    let mut child = stub.command(&["capsule", "exec", ID, "wait"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_reader_that_goes_away_is_no_error_against_a_stub_server() {
    let stub = Stub::start();
    let mut child = stub
        .command(&["capsule", "ls", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn files_and_directories_travel_both_ways_against_a_stub_server() {
    let stub = Stub::start();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let large: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    fs::create_dir_all(at("tree/sub/empty")).unwrap();
    fs::write(at("tree/large"), &large).unwrap();
    fs::write(at("tree/sub/small"), "s").unwrap();
    let copy = |from: &str, to: &str| {
        let output = stub.run(&["capsule", "cp", "--json", from, to]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let summary = copy(&at("tree"), &format!("{ID}:/new"));
    assert_eq!(summary, json!({"files": 2, "directories": 3, "bytes": 3_000_001, "skipped": []}));
    assert_eq!(stub.file("/new/large").unwrap(), large);
    assert!(stub.file("/new/sub/empty/").is_some());

    // Again into what exists now: under its own name, or merged.
    copy(&at("tree"), &format!("{ID}:/new"));
    assert!(stub.file("/new/tree/sub/small").is_some());
    copy(&format!("{}/.", at("tree")), &format!("{ID}:/new"));
    assert!(stub.file("/new/tree/tree/large").is_none());

    stub.files.lock().unwrap().retain(|path, _| !path.starts_with("/new/tree"));
    copy(&format!("{ID}:/new"), &at("back"));
    assert_eq!(fs::read(at("back/large")).unwrap(), large);
    assert!(Path::new(&at("back/sub/empty")).is_dir());
    copy(&format!("{ID}:/new/sub/small"), &at("back"));
    assert_eq!(fs::read(at("back/small")).unwrap(), b"s");
    let left: Vec<_> = fs::read_dir(at("back")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().starts_with(".wrenn-")), "{left:?}");
}

#[test]
fn standard_streams_are_ends_of_a_copy_against_a_stub_server() {
    let stub = Stub::start();
    let to = format!("{ID}:/in");
    let mut child = stub.command(&["capsule", "cp", "-", &to]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"a\xff\0b").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(stub.file("/in").unwrap(), b"a\xff\0b");
    assert_eq!(stub.run(&["capsule", "cp", &to, "-"]).stdout, b"a\xff\0b");
}

#[test]
fn copies_that_would_destroy_or_escape_are_refused_against_a_stub_server() {
    let stub = Stub::start();
    for path in ["/d/", "/d/taken/", "/evil/"] {
        stub.put(path, b"");
    }
    stub.put("/file", b"x");
    stub.put("/evil/good", b"g");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("taken"), "t").unwrap();
    fs::create_dir(at("tree")).unwrap();
    let refused = |from: &str, to: &str, why: &str| {
        let output = stub.run(&["capsule", "cp", from, to]);
        assert_eq!(output.status.code(), Some(1), "{from} {to}");
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    };
    refused(&at("taken"), &format!("{ID}:/d"), "/d/taken in the capsule is a directory");
    refused(&at("tree"), &format!("{ID}:/file"), "is a file, and is not replaced");
    refused(&format!("{ID}:/none"), &at("x"), "there is no /none in the capsule");
    refused(&format!("{ID}:/d"), &at("taken"), "is a file, and is not replaced");
    refused(&at("none"), &format!("{ID}:/d"), "there is no ");
    refused("a:/x", "b:/y", "one side must be on this machine");
    refused("/etc/hostname", "/tmp/x", "one side must be in a capsule");

    refused(&format!("{ID}:/evil"), &at("out"), "skipped /evil/../escaped");
    assert_eq!(fs::read(at("out/good")).unwrap(), b"g");
    assert!(!Path::new(&at("escaped")).exists());
}

/// The program on a terminal of its own, of which this end is returned.
fn on_terminal(mut command: Command, size: (u16, u16)) -> (Child, OwnedFd) {
    let pty = nix::pty::openpty(&winsize(size), None).unwrap();
    for stream in [Command::stdin, Command::stdout] {
        stream(&mut command, Stdio::from(pty.slave.try_clone().unwrap()));
    }
    command.stderr(Stdio::piped());
    // SAFETY: the closure makes two system calls and neither allocates nor takes locks.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
        });
    }
    (command.spawn().unwrap(), pty.master)
}

fn winsize((cols, rows): (u16, u16)) -> nix::pty::Winsize {
    nix::pty::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Reads from a terminal until `wanted` has appeared.
fn expect(terminal: &mut fs::File, wanted: &str) {
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    while !seen.contains(wanted) {
        let len = terminal.read(&mut buffer).unwrap_or_else(|e| panic!("{e} after {seen:?}"));
        seen.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
}

#[test]
fn a_shell_forwards_keys_and_sizes_and_restores_the_terminal_against_a_stub_server() {
    let stub = Stub::start();
    let (mut child, master) = on_terminal(stub.command(&["capsule", "shell", ID]), (100, 30));
    let before = rustix::termios::tcgetattr(master.as_fd()).unwrap();
    let mut terminal = fs::File::from(master.try_clone().unwrap());
    expect(&mut terminal, "\"start\" 100x30");
    expect(&mut terminal, "\"resize\" 100x30");
    // Ctrl-C is a key like any other.
    terminal.write_all(b"a\x03").unwrap();
    expect(&mut terminal, "<3>");
    let size = rustix::termios::Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master.as_fd(), size).unwrap();
    expect(&mut terminal, "\"resize\" 120x40");
    terminal.write_all(b"\x04").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let after = rustix::termios::tcgetattr(master.as_fd()).unwrap();
    assert_eq!((before.local_modes, before.input_modes), (after.local_modes, after.input_modes));
}

#[test]
fn a_lost_shell_tells_the_way_back_against_a_stub_server() {
    let stub = Stub::start();
    let (child, master) = on_terminal(stub.command(&["capsule", "shell", ID, "--attach", "pty-1"]), (80, 24));
    let mut terminal = fs::File::from(master);
    expect(&mut terminal, "\"connect\" 80x24");
    terminal.write_all(b"!").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(
        stderr(&output).contains(&format!("wrenn capsule shell {ID} --attach pty-1")),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_shell_without_a_terminal_is_refused() {
    let output = wrenn(&["capsule", "shell", ID]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("needs a terminal"));
}

#[test]
fn what_is_missing_is_told_with_its_cure() {
    let keyless = wrenn(&["capsule", "ls"]).output().unwrap();
    assert!(stderr(&keyless).starts_with("error: no API key: "), "{}", stderr(&keyless));
    let mut closed = wrenn(&["capsule", "ls", "--base-url", "http://127.0.0.1:1", "--api-key", "k"]);
    let text = stderr(&closed.output().unwrap());
    assert!(text.starts_with("error: cannot reach http://127.0.0.1:1: tcp connect error: "), "{text}");
    assert!(text.ends_with("hint: is the platform running? start it with `wrenn up`\n"), "{text}");
}

#[test]
fn the_console_of_a_local_capsule_is_read_from_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let capsule = dir.path().join("capsules").join(ID);
    fs::create_dir_all(&capsule).unwrap();
    fs::write(capsule.join("console.log"), "booted\n").unwrap();
    let dir = dir.path().to_str().unwrap();
    let output = wrenn(&["capsule", "logs", "6dfz", "--dir", dir]).output().unwrap();
    assert_eq!(stdout(&output), "booted\n", "{}", stderr(&output));
    let missing = wrenn(&["capsule", "logs", ID]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("hint: console logs exist only on the host"), "{}", stderr(&missing));
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&wrenn(&["completion", shell]).output().unwrap());
        assert!(script.contains("capsule") && script.contains("shell"), "{shell}");
    }
}
