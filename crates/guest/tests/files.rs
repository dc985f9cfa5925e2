//! Files over plain HTTP and over RPC.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use connectrpc::ErrorCode;
use http::{Method, Request, StatusCode};
use support::{Daemon, eventually};
use wrenn_protocol::filesystem::{
    CreateWatcherRequest, EventType, GetWatcherEventsRequest, ListDirRequest, MakeDirRequest,
    RemoveWatcherRequest, StatRequest,
};
use wrenn_protocol::guest::{GuestError, InitRequest, UploadedFile};

const OCTETS: &str = "application/octet-stream";

fn files(path: &Path) -> String {
    format!("/files?path={}", path.display())
}

fn message(body: &Bytes) -> String {
    serde_json::from_slice::<GuestError>(body).unwrap().message
}

/// A directory that is removed, and unmounted before if it was mounted on.
struct Disk(tempfile::TempDir);

impl Disk {
    fn of(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", directory.path(), "tmpfs", flags, Some(options.as_c_str())).unwrap();
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn an_upload_makes_its_parents_and_comes_back_unchanged() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/er/file");
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let answer = daemon.post(&files(&path), OCTETS, data.clone()).await;
    assert_eq!(answer.status, StatusCode::OK);
    let uploaded: Vec<UploadedFile> = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((uploaded[0].name.as_str(), Path::new(&uploaded[0].path)), ("file", path.as_path()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o755);
    let answer = daemon.get(&files(&path)).await;
    assert_eq!(answer.headers["content-length"], data.len().to_string());
    assert!(answer.body == data);
    daemon.post(&files(&path), OCTETS, "short").await;
    assert_eq!(std::fs::read(&path).unwrap(), b"short");
    daemon.post(&files(&path), OCTETS, "").await;
    assert_eq!(daemon.get(&files(&path)).await.body, "");
}

#[tokio::test]
async fn files_belong_to_the_user_they_are_for() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sub/file");
    let target = format!("{}&username=nobody", files(&path));
    assert_eq!(daemon.post(&target, OCTETS, "x").await.status, StatusCode::OK);
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), 65534);
    assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().uid(), 65534);
    let stranger = format!("{}&username=stranger", files(&path));
    assert_eq!(daemon.post(&stranger, OCTETS, "x").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(daemon.get(&stranger).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_is_no_file_is_refused_without_being_opened() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [fifo, directory.path().to_owned(), file.join("below"), PathBuf::from("/dev/null")] {
        let answer = daemon.post(&files(&path), OCTETS, "x").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "write {}", path.display());
        let answer = daemon.get(&files(&path)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "read {}", path.display());
    }
    let missing = daemon.get(&files(&directory.path().join("missing"))).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn links_are_followed_by_reads_and_writes() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let (target, link) = (directory.path().join("target"), directory.path().join("link"));
    std::os::unix::fs::symlink("target", &link).unwrap();
    assert_eq!(daemon.post(&files(&link), OCTETS, "through").await.status, StatusCode::OK);
    assert_eq!(std::fs::read(&target).unwrap(), b"through");
    assert_eq!(daemon.get(&files(&link)).await.body, "through");
}

#[tokio::test]
async fn a_full_disk_has_a_status_of_its_own() {
    let daemon = Daemon::start();
    let disk = Disk::of("1m");
    let answer = daemon.post(&files(&disk.path().join("big")), OCTETS, vec![1; 8 << 20]).await;
    assert_eq!(answer.status, StatusCode::INSUFFICIENT_STORAGE, "{}", message(&answer.body));
}

#[tokio::test]
async fn parts_of_files_can_be_read() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("digits");
    std::fs::write(&path, "0123456789").unwrap();
    let ask = async |header: &str, value: &str| {
        let request = Request::get(daemon.url(&files(&path))).header(header, value);
        daemon.send(request, Bytes::new()).await
    };
    let part = ask("range", "bytes=2-4").await;
    assert_eq!((part.status, part.body.as_ref()), (StatusCode::PARTIAL_CONTENT, &b"234"[..]));
    assert_eq!(part.headers["content-range"], "bytes 2-4/10");
    assert_eq!(ask("range", "bytes=10-").await.status, StatusCode::RANGE_NOT_SATISFIABLE);
    let etag = part.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(ask("if-none-match", &etag).await.status, StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn multipart_carries_many_files_by_their_names() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let names = ["a b", "sub/ü", "quo\"te"];
    let mut body = String::from("--X\r\ncontent-disposition: form-data; name=\"other\"\r\n\r\nskip\r\n");
    for name in names {
        let name = directory.path().join(name).display().to_string().replace('"', "%22");
        body += &format!(
            "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{name}\r\n"
        );
    }
    body += "--X--\r\n";
    let answer = daemon.post("/files", "multipart/form-data; boundary=X", body).await;
    let uploaded: Vec<UploadedFile> = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(uploaded.len(), 3);
    for (file, name) in uploaded.iter().zip(names) {
        let path = directory.path().join(name);
        assert_eq!(Path::new(&file.path), path);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), path.display().to_string().replace('"', "%22"));
    }
}

#[tokio::test]
async fn compressed_bodies_are_unpacked_and_damaged_ones_refused() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let data = b"text ".repeat(100_000);
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(&data[..], flate2::Compression::fast()).read_to_end(&mut packed).unwrap();
    let send = async |coding: &str, body: &[u8]| {
        let request = Request::builder().method(Method::POST).uri(daemon.url(&files(&path)));
        let request = request.header("content-type", OCTETS).header("content-encoding", coding);
        daemon.send(request, Bytes::copy_from_slice(body)).await.status
    };
    assert_eq!(send("gzip", &packed).await, StatusCode::OK);
    assert!(std::fs::read(&path).unwrap() == data);
    assert_eq!(send("gzip", b"no gzip at all, but long enough").await, StatusCode::BAD_REQUEST);
    assert_eq!(send("br", &packed).await, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn memory_stays_flat_whatever_the_size() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large");
    let before = peak_memory(daemon.pid());
    let (port, target) = (daemon.port, files(&path));
    tokio::task::spawn_blocking(move || stream_through(port, &target, 256)).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 256 << 20);
    let grown = peak_memory(daemon.pid()) - before;
    assert!(grown < 48 << 20, "grew by {} MiB", grown >> 20);
}

/// Beyond their beginning, large files pass the page cache by where the file system can, in whole pages.
#[tokio::test]
async fn large_files_come_back_unchanged_from_disks_and_from_memory() {
    let daemon = Daemon::start();
    let (directory, memory) = (tempfile::tempdir().unwrap(), Disk::of("64m"));
    for place in [directory.path(), memory.path()] {
        for size in [4 << 20, (4 << 20) + 1, 6 << 20, (9 << 20) + 4096 + 123] {
            let path = place.join(format!("large-{size}"));
            let data: Vec<u8> = (0..size).map(|i: u32| (i % 251) as u8).collect();
            let (port, target, sent) = (daemon.port, files(&path), data.clone());
            tokio::task::spawn_blocking(move || send_in_chunks(port, &target, &sent)).await.unwrap();
            assert!(std::fs::read(&path).unwrap() == data, "{}", path.display());
            forget_cached(&path);
            assert!(daemon.get(&files(&path)).await.body == data, "{}", path.display());
            forget_cached(&path);
            for start in [4096, 4097] {
                let request =
                    Request::get(daemon.url(&files(&path))).header("range", format!("bytes={start}-"));
                let part = daemon.send(request, Bytes::new()).await;
                assert!(part.body == data[start..], "{} from {start}", path.display());
            }
        }
    }
}

/// Chunks of sizes that fit no buffer.
fn send_in_chunks(port: u16, target: &str, data: &[u8]) {
    let mut connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(
        connection,
        "POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: {OCTETS}\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .unwrap();
    for (chunk, size) in data.chunks(70_001).zip([70_001, 1, 4096, 33].into_iter().cycle()) {
        for part in chunk.chunks(size.max(1021)) {
            write!(connection, "{:x}\r\n", part.len()).unwrap();
            connection.write_all(part).unwrap();
            connection.write_all(b"\r\n").unwrap();
        }
    }
    connection.write_all(b"0\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

/// The next read of the file asks its disk.
fn forget_cached(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    rustix::fs::fsync(&file).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Sends and fetches `mebibytes` without ever holding them.
fn stream_through(port: u16, target: &str, mebibytes: usize) {
    let piece = vec![0xA5_u8; 1 << 20];
    let mut connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = mebibytes << 20;
    write!(
        connection,
        "POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: {OCTETS}\r\ncontent-length: {length}\r\n\r\n"
    )
    .unwrap();
    for _ in 0..mebibytes {
        connection.write_all(&piece).unwrap();
    }
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let mut connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(connection, "GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let received = std::io::copy(&mut connection, &mut std::io::sink()).unwrap();
    assert!(received > length as u64);
}

/// High-water mark of resident memory, bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn once_a_token_is_set_only_its_holder_gets_in() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, "secret").unwrap();
    let init = |token: &str| {
        serde_json::to_vec(&InitRequest { access_token: Some(token.into()), ..InitRequest::default() })
            .unwrap()
    };
    assert_eq!(daemon.post("/init", "application/json", init("first")).await.status, StatusCode::OK);
    assert_eq!(
        daemon.post("/init", "application/json", init("second")).await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(daemon.get("/health").await.status, StatusCode::NO_CONTENT);
    assert_eq!(daemon.get("/metrics").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(daemon.get(&files(&path)).await.status, StatusCode::UNAUTHORIZED);
    let stat = StatRequest { path: path.display().to_string(), ..StatRequest::default() };
    let error = daemon.files().stat(stat.clone()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    let known = connectrpc::client::CallOptions::default().with_header("x-access-token", "first");
    daemon.files().stat_with_options(stat, known).await.unwrap();
    let ask = Request::get(daemon.url(&files(&path))).header("x-access-token", "first");
    assert_eq!(daemon.send(ask, Bytes::new()).await.body, "secret");
}

#[tokio::test]
async fn init_configures_what_processes_get() {
    let daemon = Daemon::with_token("t");
    let body = r#"{"envVars":{"GREETING":"hello"},"defaultUser":"nobody","entropy":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#;
    let request = Request::post(daemon.url("/init")).header("x-access-token", "t");
    assert_eq!(daemon.send(request, Bytes::from_static(body.as_bytes())).await.status, StatusCode::OK);
    let known = connectrpc::client::CallOptions::default().with_header("x-access-token", "t");
    let ran =
        support::run(&daemon.processes(), support::shell("echo $GREETING; id -un"), known).await.unwrap();
    assert_eq!(ran.text(), "hello\nnobody\n");
}

#[tokio::test]
async fn listings_and_directories_follow_the_rights_of_the_user() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let closed = directory.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    rustix::fs::chmod(&closed, 0o700.into()).unwrap();
    rustix::fs::chmod(directory.path(), 0o777.into()).unwrap();
    let as_nobody =
        || connectrpc::client::CallOptions::default().with_header("authorization", "Basic bm9ib2R5Og==");
    let list = ListDirRequest { path: closed.display().to_string(), ..ListDirRequest::default() };
    let error = daemon.files().list_dir_with_options(list.clone(), as_nobody()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PermissionDenied);
    daemon.files().list_dir(list).await.unwrap();
    let own = directory.path().join("own/deep");
    let make = MakeDirRequest { path: own.display().to_string(), ..MakeDirRequest::default() };
    daemon.files().make_dir_with_options(make.clone(), as_nobody()).await.unwrap();
    assert_eq!(std::fs::metadata(&own).unwrap().uid(), 65534);
    let error = daemon.files().make_dir(make).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists);
}

#[tokio::test]
async fn a_new_upload_is_three_events_and_they_are_there_at_once() {
    let daemon = Daemon::start();
    let client = daemon.files();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    let create = CreateWatcherRequest { path, ..CreateWatcherRequest::default() };
    let watcher_id = client.create_watcher(create).await.unwrap().into_owned().watcher_id;
    daemon.post(&files(&directory.path().join("new")), OCTETS, "content").await;
    let ask =
        GetWatcherEventsRequest { watcher_id: watcher_id.clone(), ..GetWatcherEventsRequest::default() };
    let events = client.get_watcher_events(ask.clone()).await.unwrap().into_owned().events;
    let kinds: Vec<_> = events.iter().map(|e| e.r#type.as_known().unwrap()).collect();
    let expected = [EventType::EVENT_TYPE_CREATE, EventType::EVENT_TYPE_CHMOD, EventType::EVENT_TYPE_WRITE];
    assert_eq!(kinds, expected);
    assert!(events.iter().all(|e| e.name == "new"));
    assert!(client.get_watcher_events(ask.clone()).await.unwrap().into_owned().events.is_empty());
    let remove = RemoveWatcherRequest { watcher_id, ..RemoveWatcherRequest::default() };
    client.remove_watcher(remove).await.unwrap();
    assert_eq!(client.get_watcher_events(ask).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn metadata_stay_with_their_file_until_the_next_upload() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
    let path = directory.path().join("file");
    let request = Request::post(daemon.url(&files(&path))).header("content-type", OCTETS);
    daemon.send(request.header("X-Metadata-Author", "Ann"), Bytes::from_static(b"x")).await;
    let stat = || StatRequest { path: path.display().to_string(), ..StatRequest::default() };
    let metadata = async || {
        daemon.files().stat(stat()).await.unwrap().into_owned().entry.into_option().unwrap().metadata
    };
    assert_eq!(metadata().await.get("author").map(String::as_str), Some("Ann"));
    daemon.post(&files(&path), OCTETS, "y").await;
    assert!(metadata().await.is_empty());
}

#[tokio::test]
async fn a_port_inside_is_reached_through_an_upgrade() {
    let daemon = Daemon::with_token("t");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = [0; 5];
        stream.read_exact(&mut line).unwrap();
        stream.write_all(&line).unwrap();
    });
    let dial = |port: u16, token: &str| {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        let head = "host: x\r\nconnection: upgrade\r\nupgrade: wrenn-tcp";
        write!(connection, "GET /connect?port={port} HTTP/1.1\r\n{head}\r\nx-access-token: {token}\r\n\r\n")
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            connection.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        (connection, String::from_utf8(answer).unwrap())
    };
    let (mut inside, answer) = dial(port, "t");
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    inside.write_all(b"hello").unwrap();
    let mut line = String::new();
    inside.read_to_string(&mut line).unwrap();
    assert_eq!(line, "hello");
    echo.join().unwrap();
    eventually("the port is closed", || dial(port, "t").1.starts_with("HTTP/1.1 502")).await;
    assert!(dial(port, "wrong").1.starts_with("HTTP/1.1 401"));
    assert!(dial(0, "t").1.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn one_connection_serves_files_and_calls_in_any_order() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let (port, target) = (daemon.port, files(&directory.path().join("file")));
    let talk = move || {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let chunked = "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
        let post = format!("POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: {OCTETS}\r\n{chunked}");
        assert!(exchange(&mut connection, &post).0.starts_with("HTTP/1.1 200"));
        let get = format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(exchange(&mut connection, &get).1, "hello world");
        let missing = get.replace("file HTTP", "none HTTP");
        assert!(exchange(&mut connection, &missing).0.starts_with("HTTP/1.1 404"));
        let envs = "GET /envs HTTP/1.1\r\nhost: x\r\n\r\n";
        assert_eq!(exchange(&mut connection, envs).1, "{}");
        assert_eq!(exchange(&mut connection, &get).1, "hello world");
        assert!(exchange(&mut connection, &post).0.starts_with("HTTP/1.1 200"));
    };
    tokio::task::spawn_blocking(talk).await.unwrap();
}

/// Sends one request and reads one answer of known length: its head and its body.
fn exchange(connection: &mut std::net::TcpStream, request: &str) -> (String, String) {
    connection.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase().replace("http/", "HTTP/");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    connection.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}
