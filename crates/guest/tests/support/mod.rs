//! A daemon of one's own, and clients for it.

#![expect(dead_code, reason = "each test program uses its own part of this")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use buffa::MessageField;
use bytes::Bytes;
use connectrpc::ConnectError;
use connectrpc::client::{CallOptions, ClientConfig, HttpClient};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::Signal;
use wrenn_protocol::filesystem::FilesystemClient;
use wrenn_protocol::process::__buffa::oneof::process_event::{Event, data_event::Output};
use wrenn_protocol::process::__buffa::oneof::process_selector::Selector;
use wrenn_protocol::process::process_event::EndEvent;
use wrenn_protocol::process::{
    ProcessClient, ProcessConfig, ProcessEvent, ProcessSelector, StartRequest, StartResponse,
};

/// Only there to catch hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A running daemon, stopped together with everything it started when dropped.
pub(crate) struct Daemon {
    child: Child,
    stop: Signal,
    pub(crate) port: u16,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::run(&mut Command::new(env!("CARGO_BIN_EXE_wrenn-guest")), Signal::TERM)
    }

    pub(crate) fn with_token(token: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn-guest"));
        Self::run(command.args(["--token", token]), Signal::TERM)
    }

    /// As process 1 of a namespace of its own.
    pub(crate) fn as_process_one() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child", env!("CARGO_BIN_EXE_wrenn-guest")]);
        // `unshare` does not listen to SIGTERM, and takes the whole namespace with it when it is killed.
        Self::run(command.env("WRENN_GUEST_SERVE_ONLY", "1"), Signal::KILL)
    }

    fn run(command: &mut Command, stop: Signal) -> Self {
        let mut child = command
            .env("WRENN_GUEST_ADDR", "127.0.0.1")
            .env("WRENN_GUEST_PORT", "0")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
        Self { child, stop, port }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn config(&self) -> ClientConfig {
        ClientConfig::new(self.url("").parse().unwrap())
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn processes(&self) -> ProcessClient<HttpClient> {
        ProcessClient::new(HttpClient::plaintext(), self.config().json())
    }

    pub(crate) fn files(&self) -> FilesystemClient<HttpClient> {
        FilesystemClient::new(HttpClient::plaintext(), self.config().json())
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(self.url(path)), Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str, content_type: &str, body: impl Into<Bytes>) -> Answer {
        let request = Request::builder().method(Method::POST).uri(self.url(path));
        self.send(request.header("content-type", content_type), body.into()).await
    }

    pub(crate) async fn send(&self, request: http::request::Builder, body: Bytes) -> Answer {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request.body(Full::new(body)).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, self.stop);
        let _ = self.child.wait();
    }
}

/// A complete HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// `/bin/sh -c script` without stdin.
pub(crate) fn shell(script: &str) -> StartRequest {
    command("/bin/sh", &["-c", script])
}

pub(crate) fn command(cmd: &str, args: &[&str]) -> StartRequest {
    let args = args.iter().map(|a| (*a).to_owned()).collect();
    let process = ProcessConfig { cmd: cmd.to_owned(), args, ..ProcessConfig::default() };
    StartRequest { process: MessageField::some(process), stdin: Some(false), ..StartRequest::default() }
}

/// A message within a message.
pub(crate) type Field<T> = MessageField<T, buffa::Inline<T>>;

pub(crate) fn by_pid(pid: u32) -> Field<ProcessSelector> {
    MessageField::some(ProcessSelector { selector: Some(Selector::Pid(pid)), ..ProcessSelector::default() })
}

/// What a process wrote, and how it ended.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    pub(crate) pid: u32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) pty: Vec<u8>,
    pub(crate) end: Option<EndEvent>,
    pub(crate) keepalives: usize,
}

impl Ran {
    /// Takes an event in and checks that it may come at this place.
    pub(crate) fn take(&mut self, event: ProcessEvent) {
        assert!(self.end.is_none(), "an event after the end");
        match event.event.expect("an empty event") {
            Event::Start(start) => {
                assert_eq!(self.pid, 0, "a second start");
                self.pid = start.pid;
                return;
            }
            Event::Data(data) => match data.output.unwrap() {
                Output::Stdout(bytes) => self.stdout.extend(bytes),
                Output::Stderr(bytes) => self.stderr.extend(bytes),
                Output::Pty(bytes) => self.pty.extend(bytes),
            },
            Event::End(end) => self.end = Some(*end),
            Event::Keepalive(_) => self.keepalives += 1,
        }
        assert_ne!(self.pid, 0, "something before the start");
    }

    pub(crate) fn exit_code(&self) -> i32 {
        self.end.as_ref().expect("no end event").exit_code
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Starts a process and follows it to its end.
pub(crate) async fn run(
    client: &ProcessClient<HttpClient>,
    request: StartRequest,
    options: CallOptions,
) -> Result<Ran, ConnectError> {
    let follow = async {
        let mut stream = client.start_with_options(request, options).await?;
        let mut ran = Ran::default();
        while let Some(message) = stream.message::<StartResponse>().await? {
            ran.take(message.to_owned_message().event.into_option().unwrap());
        }
        Ok(ran)
    };
    tokio::time::timeout(PATIENCE, follow).await.expect("the process hangs")
}

/// Whether a process exists and is no zombie.
pub(crate) fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

/// Waits for something that is bound to happen.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}
