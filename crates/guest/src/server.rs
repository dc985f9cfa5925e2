//! The listener: Connect RPC and plain HTTP on one port, HTTP/1.1 and HTTP/2 by what the client sends first.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::Request;
use axum::Router;
use connectrpc::{ConnectRpcService, Limits, Router as RpcRouter};
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use wrenn_protocol::filesystem::FilesystemExt as _;
use wrenn_protocol::process::ProcessExt as _;

use crate::auth;
use crate::config::Config;
use crate::connections::{Connections, Peer};
use crate::datagram;
use crate::filesystem::Files;
use crate::http;
use crate::http::bulk::Bulk;
use crate::http::configure::Machine;
use crate::process::Processes;
use crate::reaper::Reaper;
use crate::settings::Settings;

/// How long an idle connection is kept: longer than any client keeps its own.
const IDLE: Duration = Duration::from_secs(640);

/// Most bytes read from a connection at once. Large, because each read is a piece that is written to disk by itself.
const READ_BUFFER: usize = 256 * 1024;

/// Largest RPC message, bytes. Input is the largest thing that arrives.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// Threads that run tasks. More than one, so that a flood on one connection holds up no other on a one-CPU machine.
const MIN_WORKERS: usize = 2;

/// The daemon cannot serve.
#[derive(Debug, Error)]
pub(crate) enum ServerError {
    /// No thread or no event queue.
    #[error("the runtime cannot start; raise the limit of threads or open files")]
    Runtime(#[source] io::Error),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}; choose another with --addr and --port")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Serves until SIGTERM or SIGINT, then ends what was started.
pub(crate) fn run(config: &Config) -> Result<(), ServerError> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let reaper = Reaper::start().map_err(ServerError::Runtime)?;
    let workers = std::thread::available_parallelism().map_or(MIN_WORKERS, |n| n.get().max(MIN_WORKERS));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .map_err(ServerError::Runtime)?;
    let settings = Settings::new(config.token.clone());
    let address = SocketAddr::new(config.address, config.port);
    let processes = Arc::new(Processes::new(reaper, settings.clone()));
    let served = runtime.block_on(async {
        let stop = told_to_stop().map_err(ServerError::Runtime)?;
        let cannot = |source| ServerError::Listen { address, source };
        let listener = listen(address).map_err(cannot)?;
        let address = listener.local_addr().unwrap_or(address);
        let machine = Machine { settings: settings.clone(), connections: Connections::new(address.port()) };
        datagram::serve(address, machine.clone()).map_err(cannot)?;
        // Tells whoever started the daemon which port it got.
        println!("wrenn-guest: listening on {address}");
        let app = app(machine.clone(), Arc::clone(&processes));
        tokio::select! {
            () = accept(&listener, &app, &machine) => {}
            () = stop => {}
        }
        Ok(())
    });
    processes.stop();
    runtime.shutdown_background();
    served
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// The whole service behind its guard.
fn app(machine: Machine, processes: Arc<Processes>) -> Router {
    let settings = machine.settings.clone();
    let files = Arc::new(Files::new(settings.clone()));
    let rpc = files.register(processes.register(RpcRouter::new()));
    let limits = Limits::default().with_max_message_size(MAX_MESSAGE).with_max_request_body_size(MAX_MESSAGE);
    http::router(machine)
        .fallback_service(ConnectRpcService::new(rpc).with_limits(limits))
        .layer(axum::middleware::from_fn_with_state(settings, auth::guard))
}

async fn accept(listener: &TcpListener, app: &Router, machine: &Machine) {
    let Machine { settings, connections } = machine;
    let builder = builder();
    let bulk = Bulk::new(settings.clone(), IDLE);
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                connections.note(&stream);
                let connection = Connection {
                    peer: Peer(peer),
                    bulk: bulk.clone(),
                    app: app.clone(),
                    builder: builder.clone(),
                    settings: settings.clone(),
                    connections: connections.clone(),
                };
                tokio::spawn(connection.serve(stream));
            }
            // Out of descriptors, most likely: those in use will be freed.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(READ_BUFFER);
    builder.http2().timer(TokioTimer::new());
    builder
}

/// What it takes to serve one connection.
struct Connection {
    peer: Peer,
    bulk: Bulk,
    app: Router,
    builder: auto::Builder<TokioExecutor>,
    settings: Settings,
    connections: Connections,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        self.settings.settled().await;
        // Output comes in small pieces that somebody waits for.
        let _ = stream.set_nodelay(true);
        let mut closing = pin!(self.connections.closing());
        // Whole files first; whatever else comes, and all that follows it, is for the HTTP library.
        let stream = tokio::select! {
            stream = self.bulk.serve(stream) => stream,
            // A transfer in progress has a thread of its own, which finishes it and closes the connection.
            () = &mut closing => None,
        };
        let Some(stream) = stream else { return };
        let (peer, app) = (self.peer, TowerToHyperService::new(self.app));
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            app.call(request)
        });
        let connection = self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = pin!(connection.into_owned());
        // A connection that breaks is the client's matter; there is nobody here to tell.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = &mut closing => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }
}

/// Listens for the two signals that end the daemon. One that arrived before this would find nobody who waits for it.
fn told_to_stop() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
