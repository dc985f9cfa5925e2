//! `process.Process` on the wire.

use std::sync::Arc;
use std::time::Duration;

use connectrpc::{
    ConnectError, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::StreamExt as _;
use rustix::process::Signal as KernelSignal;
use tokio::sync::mpsc;
use tokio::time::Instant;
use wrenn_protocol::process::__buffa::oneof::process_event::{Event as Kind, data_event::Output};
use wrenn_protocol::process::__buffa::oneof::process_input::Input as InputKind;
use wrenn_protocol::process::__buffa::oneof::stream_input_request::Event as InputEvent;
use wrenn_protocol::process::process_event::{DataEvent, KeepAlive, StartEvent};
use wrenn_protocol::process::{
    CloseStdinRequest, CloseStdinResponse, ConnectRequest, ConnectResponse, ListRequest, ListResponse,
    Process as ProcessService, ProcessEvent, ProcessInfo, ProcessInput, SendInputRequest, SendInputResponse,
    SendSignalRequest, SendSignalResponse, Signal, StartRequest, StartResponse, StreamInputRequest,
    StreamInputResponse, UpdateRequest, UpdateResponse,
};

use super::input::Data;
use super::launch::{Launch, Launched, clamp};
use super::table::Table;
use super::{Event, Process, Stream};
use crate::auth;
use crate::error::{Error, Kind as Refusal, Result};
use crate::reaper::Reaper;
use crate::settings::Settings;

/// Silence after which a stream says that it is alive, unless the client asks for another.
const KEEPALIVE: Duration = Duration::from_secs(90);

/// How long a killed process may take to be gone.
const DYING: Duration = Duration::from_secs(2);

/// The service.
#[derive(Debug)]
pub(crate) struct Processes {
    table: Table,
    reaper: Reaper,
    settings: Settings,
}

impl Processes {
    /// A service without processes.
    pub(crate) fn new(reaper: Reaper, settings: Settings) -> Self {
        Self { table: Table::default(), reaper, settings }
    }

    /// Kills every process. Blocks.
    pub(crate) fn stop(&self) {
        for process in self.table.live() {
            process.signal(KernelSignal::KILL);
        }
    }

    async fn launch(&self, ctx: &RequestContext, request: StartRequest) -> Result<Launched> {
        let values = self.settings.get();
        let deadline = ctx.deadline().map(Instant::from_std);
        let user = auth::rpc_user(ctx.headers(), &values)?;
        let launch = Launch { request, user, values, deadline };
        let (reaper, table) = (self.reaper.clone(), self.table.clone());
        // Loading an executable may wait for the disk. Once begun it runs to its end even if the caller goes away, so
        // no process escapes the table.
        tokio::task::spawn_blocking(move || launch.run(&reaper, &table))
            .await
            .map_err(|e| Error::new(Refusal::Internal, format!("the start was interrupted: {e}")))?
    }
}

/// The interval of `keepalive-ping-interval`, whole seconds.
pub(crate) fn keepalive(ctx: &RequestContext) -> Duration {
    ctx.header("keepalive-ping-interval")
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .filter(|seconds| *seconds > 0)
        .map_or(KEEPALIVE, Duration::from_secs)
}

/// One RPC stream over a process: `start`, then what the subscription brings.
struct Feed {
    pid: u32,
    events: mpsc::Receiver<Event>,
    keepalive: Duration,
    deadline: Option<Instant>,
    bounds: Bounds,
    next: Next,
}

/// What the time limit of a call applies to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bounds {
    /// The process, which is killed; its stream ends when it is gone.
    Process,
    /// The stream alone.
    Stream,
}

/// What a feed says next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Start,
    Events,
    Nothing,
}

impl Feed {
    fn new(process: &Process, events: mpsc::Receiver<Event>, bounds: Bounds, ctx: &RequestContext) -> Self {
        let deadline = ctx.deadline().map(Instant::from_std);
        Self {
            pid: process.pid.cast_unsigned(),
            events,
            keepalive: keepalive(ctx),
            deadline,
            bounds,
            next: Next::Start,
        }
    }

    fn stream<M: Send + 'static>(self, wrap: fn(ProcessEvent) -> M) -> ServiceStream<M> {
        let events = futures::stream::unfold(self, |mut feed| async move {
            let event = feed.event().await?;
            Some((event, feed))
        });
        Box::pin(events.map(move |event| event.map(wrap).map_err(ConnectError::from)))
    }

    async fn event(&mut self) -> Option<Result<ProcessEvent>> {
        match self.next {
            Next::Nothing => None,
            Next::Start => {
                self.next = Next::Events;
                Some(Ok(wire(StartEvent { pid: self.pid, ..StartEvent::default() })))
            }
            Next::Events => Some(self.wait().await),
        }
    }

    async fn wait(&mut self) -> Result<ProcessEvent> {
        let quiet = Instant::now() + self.keepalive;
        let wake = self.deadline.map_or(quiet, |deadline| quiet.min(deadline));
        if self.is_late() {
            return self.expire().await;
        }
        match tokio::time::timeout_at(wake, self.events.recv()).await {
            Ok(Some(Event::Output(stream, bytes))) => Ok(data(stream, bytes.into())),
            _ if self.is_late() => self.expire().await,
            Ok(Some(Event::End(end))) => {
                self.next = Next::Nothing;
                Ok(wire(end))
            }
            Ok(None) => {
                self.next = Next::Nothing;
                Err(Error::new(Refusal::Internal, "the process was lost"))
            }
            Err(_elapsed) => Ok(wire(KeepAlive::default())),
        }
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Whoever hears that the time is up may count on the process being dead.
    async fn expire(&mut self) -> Result<ProcessEvent> {
        self.next = Next::Nothing;
        if self.bounds == Bounds::Process {
            let dying = async { while let Some(Event::Output(..)) = self.events.recv().await {} };
            // One stuck in the kernel is not waited for.
            let _ = tokio::time::timeout(DYING, dying).await;
        }
        Err(Error::new(Refusal::Deadline, "the time limit of the call has passed"))
    }
}

fn wire(event: impl Into<Kind>) -> ProcessEvent {
    ProcessEvent { event: Some(event.into()), ..ProcessEvent::default() }
}

fn data(stream: Stream, bytes: Vec<u8>) -> ProcessEvent {
    let output = match stream {
        Stream::Stdout => Output::Stdout(bytes),
        Stream::Stderr => Output::Stderr(bytes),
        Stream::Pty => Output::Pty(bytes),
    };
    wire(DataEvent { output: Some(output), ..DataEvent::default() })
}

fn input(input: Option<ProcessInput>) -> Result<Data> {
    match input.and_then(|input| input.input) {
        Some(InputKind::Stdin(bytes)) => Ok(Data::Stdin(bytes)),
        Some(InputKind::Pty(bytes)) => Ok(Data::Pty(bytes)),
        None => Err(Error::invalid("the request brings no input; give stdin or pty")),
    }
}

#[expect(refining_impl_trait, reason = "the plain types say what the generated `impl Encodable` hides")]
impl ProcessService for Processes {
    async fn list(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<ListResponse> {
        let info = |process: &Arc<Process>| ProcessInfo {
            config: Some(process.config.clone()).into(),
            pid: process.pid.cast_unsigned(),
            tag: process.tag.clone(),
            ..ProcessInfo::default()
        };
        let processes = self.table.live().iter().map(info).collect();
        Response::ok(ListResponse { processes, ..ListResponse::default() })
    }

    async fn start(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StartRequest>,
    ) -> ServiceResult<ServiceStream<StartResponse>> {
        let (process, events) = self.launch(&ctx, request.to_owned_message()).await?;
        let feed = Feed::new(&process, events, Bounds::Process, &ctx);
        Response::ok(
            feed.stream(|event| StartResponse { event: Some(event).into(), ..StartResponse::default() }),
        )
    }

    async fn connect(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ConnectRequest>,
    ) -> ServiceResult<ServiceStream<ConnectResponse>> {
        let request = request.to_owned_message();
        let process = self.table.find(request.process.as_option())?;
        let feed = Feed::new(&process, process.subscribe(), Bounds::Stream, &ctx);
        Response::ok(
            feed.stream(|event| ConnectResponse { event: Some(event).into(), ..ConnectResponse::default() }),
        )
    }

    async fn update(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, UpdateRequest>,
    ) -> ServiceResult<UpdateResponse> {
        let request = request.to_owned_message();
        let process = self.table.find_live(request.process.as_option())?;
        if let Some(size) = request.pty.as_option().and_then(|pty| pty.size.as_option()) {
            process.input.resize(clamp(size.cols), clamp(size.rows))?;
        }
        Response::ok(UpdateResponse::default())
    }

    async fn stream_input(
        &self,
        _ctx: RequestContext,
        mut requests: InboundStream<StreamInputRequest>,
    ) -> ServiceResult<StreamInputResponse> {
        let mut target: Option<Arc<Process>> = None;
        while let Some(request) = requests.next().await {
            match request?.to_owned_message().event {
                Some(InputEvent::Start(start)) => {
                    target = Some(self.table.find_live(start.process.as_option())?);
                }
                Some(InputEvent::Data(event)) => {
                    let process = target.as_ref().ok_or_else(|| Error::invalid("data came before start"))?;
                    process.input.write(&input(event.input.into_option())?, &process.ended).await?;
                }
                Some(InputEvent::Keepalive(_)) | None => {}
            }
        }
        Response::ok(StreamInputResponse::default())
    }

    async fn send_input(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, SendInputRequest>,
    ) -> ServiceResult<SendInputResponse> {
        let request = request.to_owned_message();
        let process = self.table.find_live(request.process.as_option())?;
        process.input.write(&input(request.input.into_option())?, &process.ended).await?;
        Response::ok(SendInputResponse::default())
    }

    async fn send_signal(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, SendSignalRequest>,
    ) -> ServiceResult<SendSignalResponse> {
        let request = request.to_owned_message();
        let process = self.table.find_live(request.process.as_option())?;
        let signal = match request.signal.as_known() {
            Some(Signal::SIGNAL_SIGKILL) => KernelSignal::KILL,
            Some(Signal::SIGNAL_SIGTERM) => KernelSignal::TERM,
            _ => return Err(Error::invalid("the signal must be SIGNAL_SIGKILL or SIGNAL_SIGTERM").into()),
        };
        // A failure to join would be a panic of the closure, which has nothing to panic about.
        let _ = tokio::task::spawn_blocking(move || process.signal(signal)).await;
        Response::ok(SendSignalResponse::default())
    }

    async fn close_stdin(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, CloseStdinRequest>,
    ) -> ServiceResult<CloseStdinResponse> {
        let request = request.to_owned_message();
        let process = self.table.find_live(request.process.as_option())?;
        process.input.close(&process.ended).await?;
        Response::ok(CloseStdinResponse::default())
    }
}
