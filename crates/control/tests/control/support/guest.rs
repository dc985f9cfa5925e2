//! A guest daemon that acts out a few commands and keeps files in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use connectrpc::{ConnectError, InboundStream, RequestContext, ServiceRequest, ServiceResult, ServiceStream};
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use wrenn_protocol::guest::{GuestError, SPAWN_ERROR_HEADER, SpawnError};
use wrenn_protocol::process::__buffa::oneof::process_event::Event;
use wrenn_protocol::process::__buffa::oneof::process_event::data_event::Output;
use wrenn_protocol::process::__buffa::oneof::process_input::Input;
use wrenn_protocol::process::__buffa::oneof::process_selector::Selector;
use wrenn_protocol::process::process_event::{DataEvent, EndEvent, StartEvent};
use wrenn_protocol::process::*;

type Events = Vec<mpsc::UnboundedSender<ProcessEvent>>;

#[derive(Default)]
struct Running {
    tag: Option<String>,
    cmd: String,
    watchers: Events,
}

#[derive(Default)]
pub struct FakeGuest {
    processes: Mutex<HashMap<u32, Running>>,
    next: Mutex<u32>,
    pub files: Mutex<HashMap<String, Vec<u8>>>,
    pub broken_uploads: Mutex<u32>,
    pub sizes: Mutex<Vec<(u32, u32)>>,
}

fn event(event: impl Into<Event>) -> ProcessEvent {
    ProcessEvent { event: Some(event.into()), ..Default::default() }
}

fn output(output: Output) -> ProcessEvent {
    event(DataEvent { output: Some(output), ..Default::default() })
}

fn ended(exit_code: i32, exited: bool) -> ProcessEvent {
    event(EndEvent { exit_code, exited, ..Default::default() })
}

impl FakeGuest {
    pub fn router(self: &Arc<Self>) -> axum::Router {
        let rpc = connectrpc::Router::new().add_service(Arc::new(Daemon(self.clone()))).into_axum_service();
        axum::Router::new()
            .route("/files", axum::routing::get(read).post(write))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(self.clone())
            .fallback_service(rpc)
    }

    pub fn running(&self) -> usize {
        self.processes.lock().unwrap().len()
    }

    fn find(&self, selector: &ProcessSelector) -> Result<u32, ConnectError> {
        let processes = self.processes.lock().unwrap();
        let found = match selector.selector.clone() {
            Some(Selector::Pid(pid)) => processes.contains_key(&pid).then_some(pid),
            Some(Selector::Tag(tag)) => processes
                .iter()
                .find(|(_, running)| running.tag.as_deref() == Some(&*tag))
                .map(|(pid, _)| *pid),
            None => None,
        };
        found.ok_or_else(|| ConnectError::not_found("no such process"))
    }

    fn watch(&self, pid: u32) -> UnboundedReceiverStream<ProcessEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = sender.send(event(StartEvent { pid, ..Default::default() }));
        self.processes.lock().unwrap().entry(pid).or_default().watchers.push(sender);
        UnboundedReceiverStream::new(receiver)
    }

    fn tell(&self, pid: u32, what: &ProcessEvent) {
        if let Some(running) = self.processes.lock().unwrap().get_mut(&pid) {
            running.watchers.retain(|watcher| watcher.send(what.clone()).is_ok());
        }
    }

    fn end(&self, pid: u32, exit_code: i32, exited: bool) {
        self.tell(pid, &ended(exit_code, exited));
        self.processes.lock().unwrap().remove(&pid);
    }

    fn act(&self, pid: u32, cmd: &str, args: &[String]) {
        match cmd {
            "echo" => self.tell(pid, &output(Output::Stdout(args.join(" ").into_bytes()))),
            "binary" => {
                self.tell(pid, &output(Output::Stdout(vec![0xff])));
                self.tell(pid, &output(Output::Stderr(b"e".to_vec())));
            }
            "cut" => {
                self.tell(pid, &output(Output::Stdout(b"a\xe2\x82".to_vec())));
                self.tell(pid, &output(Output::Stderr(b"x".to_vec())));
                self.tell(pid, &output(Output::Stdout(b"\xac\xff".to_vec())));
            }
            "flood" => {
                for _ in 0..66 {
                    self.tell(pid, &output(Output::Stdout(vec![b'x'; 1024 * 1024])));
                }
            }
            "wait" | "/bin/bash" => return,
            _ => {}
        }
        let code = if cmd == "fail" { 3 } else { 0 };
        self.end(pid, code, true);
    }
}

#[derive(serde::Deserialize)]
struct FileQuery {
    path: String,
    username: String,
}

fn refuse(status: StatusCode, message: &str) -> Response {
    let body = GuestError { code: status.as_u16(), message: message.into() };
    (status, axum::Json(body)).into_response()
}

async fn read(State(guest): State<Arc<FakeGuest>>, Query(query): Query<FileQuery>) -> Response {
    assert_eq!(query.username, "root");
    match query.path.as_str() {
        "/dir" => refuse(StatusCode::BAD_REQUEST, "is a directory"),
        "/huge" => {
            let endless =
                futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0u8; 1 << 16])));
            ([("content-length", (300u64 << 20).to_string())], Body::from_stream(endless)).into_response()
        }
        "/breaks" => {
            let broken = futures::stream::once(async {
                // The beginning must have left first.
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                Err(std::io::Error::other("disk"))
            });
            let begin = futures::stream::iter([Ok(Bytes::from_static(b"begin"))]);
            Body::from_stream(begin.chain(broken)).into_response()
        }
        path => match guest.files.lock().unwrap().get(path) {
            Some(content) => content.clone().into_response(),
            None => refuse(StatusCode::NOT_FOUND, "no such file"),
        },
    }
}

async fn write(State(guest): State<Arc<FakeGuest>>, Query(query): Query<FileQuery>, body: Body) -> Response {
    assert_eq!(query.username, "root");
    let refused = match query.path.as_str() {
        "/dir" => Some(refuse(StatusCode::BAD_REQUEST, "is a directory")),
        "/full" => Some(refuse(StatusCode::INSUFFICIENT_STORAGE, "no space left")),
        _ => None,
    };
    if let Some(answer) = refused {
        // As the agent's tunnel does, lest the connection be reset before the answer has been read.
        tokio::spawn(body.collect());
        return answer;
    }
    match body.collect().await {
        Ok(content) => {
            guest.files.lock().unwrap().insert(query.path, content.to_bytes().to_vec());
            axum::Json(serde_json::json!([])).into_response()
        }
        Err(_) => {
            *guest.broken_uploads.lock().unwrap() += 1;
            refuse(StatusCode::BAD_REQUEST, "broken")
        }
    }
}

struct Daemon(Arc<FakeGuest>);

fn refused(spawn: SpawnError) -> ConnectError {
    let mut headers = HeaderMap::new();
    headers.insert(SPAWN_ERROR_HEADER, HeaderValue::from_static(spawn.as_str()));
    ConnectError::invalid_argument("cannot start").with_headers(headers)
}

fn started(events: impl Stream<Item = ProcessEvent> + Send + 'static) -> ServiceStream<StartResponse> {
    Box::pin(events.map(|event| Ok(StartResponse { event: event.into(), ..Default::default() })))
}

impl Process for Daemon {
    async fn list(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<ListResponse> {
        let processes = self.0.processes.lock().unwrap();
        let info = |(pid, running): (&u32, &Running)| ProcessInfo {
            pid: *pid,
            tag: running.tag.clone(),
            config: ProcessConfig { cmd: running.cmd.clone(), ..Default::default() }.into(),
            ..Default::default()
        };
        let processes = processes.iter().map(info).collect();
        connectrpc::Response::ok(ListResponse { processes, ..Default::default() })
    }

    async fn connect(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, ConnectRequest>,
    ) -> ServiceResult<ServiceStream<ConnectResponse>> {
        let pid = self.0.find(&request.to_owned_message().process)?;
        let events = self.0.watch(pid);
        connectrpc::Response::ok(Box::pin(
            events.map(|event| Ok(ConnectResponse { event: event.into(), ..Default::default() })),
        ))
    }

    async fn start(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, StartRequest>,
    ) -> ServiceResult<ServiceStream<StartResponse>> {
        let request = request.to_owned_message();
        let config = request.process.into_option().unwrap();
        match config.cmd.as_str() {
            "missing" => return Err(refused(SpawnError::NotFound)),
            _ if config.cwd.as_deref() == Some("/missing") => return Err(refused(SpawnError::BadCwd)),
            _ => {}
        }
        let pid = {
            let mut next = self.0.next.lock().unwrap();
            *next += 1;
            *next
        };
        let events = self.0.watch(pid);
        if let Some(running) = self.0.processes.lock().unwrap().get_mut(&pid) {
            running.tag = request.tag;
            running.cmd.clone_from(&config.cmd);
        }
        self.0.act(pid, &config.cmd, &config.args);
        connectrpc::Response::ok(started(events))
    }

    async fn update(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, UpdateRequest>,
    ) -> ServiceResult<UpdateResponse> {
        let request = request.to_owned_message();
        self.0.find(&request.process)?;
        self.0.sizes.lock().unwrap().push((request.pty.size.cols, request.pty.size.rows));
        connectrpc::Response::ok(UpdateResponse::default())
    }

    async fn stream_input(
        &self,
        _: RequestContext,
        _: InboundStream<StreamInputRequest>,
    ) -> ServiceResult<StreamInputResponse> {
        Err::<connectrpc::Response<StreamInputResponse>, _>(ConnectError::unimplemented("not acted out"))
    }

    async fn send_input(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, SendInputRequest>,
    ) -> ServiceResult<SendInputResponse> {
        let request = request.to_owned_message();
        let pid = self.0.find(&request.process)?;
        if let Some(Input::Pty(data)) = request.input.into_option().and_then(|input| input.input) {
            self.0.tell(pid, &output(Output::Pty(data.clone())));
            if data.ends_with(b"exit") {
                self.0.end(pid, 7, true);
            }
        }
        connectrpc::Response::ok(SendInputResponse::default())
    }

    async fn send_signal(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, SendSignalRequest>,
    ) -> ServiceResult<SendSignalResponse> {
        let pid = self.0.find(&request.to_owned_message().process)?;
        self.0.end(pid, 9, false);
        connectrpc::Response::ok(SendSignalResponse::default())
    }

    async fn close_stdin(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, CloseStdinRequest>,
    ) -> ServiceResult<CloseStdinResponse> {
        connectrpc::Response::ok(CloseStdinResponse::default())
    }
}
