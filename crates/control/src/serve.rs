//! Putting the control plane together, serving it, and ending it in order.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use axum::Router;

use crate::accounts;
use crate::api;
use crate::auth::{self, KeyCache, Limits, Passwords, Peer, Signer, UserTokens};
use crate::config::ControlConfig;
use crate::error::{Error, Result};
use crate::hosts::{self, HostTokens, Hosts};
use crate::pki::Pki;
use crate::post::{self, Post};
use crate::state::{App, Control};
use crate::store::Store;
use crate::vault::Vault;
use wrenn_mail::Mailer;

/// A client must have sent its headers by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after the system refused to hand over a connection, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Wrap = Box<dyn FnOnce(Router, &App) -> Router + Send>;
type Worker = Box<dyn FnOnce(App) -> BoxFuture<'static, ()> + Send>;

/// A control plane, and what a program adds to it before it runs.
pub struct ControlPlane {
    config: ControlConfig,
    added: Router<App>,
    wraps: Vec<Wrap>,
    workers: Vec<Worker>,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane").field("listen", &self.config.listen).finish_non_exhaustive()
    }
}

impl ControlPlane {
    /// A control plane with nothing added.
    pub fn new(config: ControlConfig) -> Self {
        Self { config, added: Router::new(), wraps: Vec::new(), workers: Vec::new() }
    }

    /// Adds routes. Their handlers may take whatever this server's own take: the [`App`] as state, and
    /// [`crate::auth::Caller`] and its kin, which authenticate. They are not in the OpenAPI document. Panics where a path
    /// is served already.
    #[must_use]
    pub fn routes(mut self, routes: Router<App>) -> Self {
        self.added = self.added.merge(routes);
        self
    }

    /// Wraps all routes, for example in a layer of `tower`. What is added later is further outside; all of it is inside
    /// of the request's id, its log line and the guard against panics, and sees paths without the `/api` prefix.
    #[must_use]
    pub fn middleware(mut self, wrap: impl FnOnce(Router, &App) -> Router + Send + 'static) -> Self {
        self.wraps.push(Box::new(wrap));
        self
    }

    /// Adds work in the background. It is begun before the first request and has to end when
    /// [`Control::shutdown`] is cancelled.
    #[must_use]
    pub fn worker<F, Fut>(mut self, worker: F) -> Self
    where
        F: FnOnce(App) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.workers.push(Box::new(|app| Box::pin(worker(app))));
        self
    }

    /// Runs until `shutdown` is cancelled, then ends open requests and sockets within [`ControlConfig::drain`].
    ///
    /// # Errors
    /// [`Error`] where the database, the certificates, the mail server's settings or the address cannot be used at the
    /// start. Afterwards nothing but the shutdown ends it.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<()> {
        let address = self.config.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        self.serve_on(listener, shutdown).await
    }

    /// [`ControlPlane::serve`] on a listener that is open already.
    ///
    /// # Errors
    /// As [`ControlPlane::serve`].
    pub async fn serve_on(self, listener: TcpListener, shutdown: CancellationToken) -> Result<()> {
        let Self { config, added, wraps, workers } = self;
        let app = open(config, shutdown).await?;
        app.tasks.spawn(hosts::supervise(app.clone()));
        app.tasks.spawn(auth::record_uses(app.clone()));
        app.tasks.spawn(post::deliver(app.clone()));
        app.tasks.spawn(accounts::sweep(app.clone()));
        for worker in workers {
            app.tasks.spawn(worker(app.clone()));
        }
        let router = api::router(app.clone(), added);
        let router = wraps.into_iter().fold(router, |router, wrap| wrap(router, &app));
        let connections = accept(&listener, &app, &api::service(router)).await;
        drop(listener);
        end(&app, connections).await;
        Ok(())
    }
}

/// Runs a control plane with nothing added.
///
/// # Errors
/// As [`ControlPlane::serve`].
pub async fn serve(config: ControlConfig, shutdown: CancellationToken) -> Result<()> {
    ControlPlane::new(config).serve(shutdown).await
}

/// Opens everything that the server needs.
async fn open(config: ControlConfig, shutdown: CancellationToken) -> Result<App> {
    let store = Store::connect(&config.database_url).await?;
    store.migrate().await?;
    let pki = Arc::new(Pki::open_or_create(&config.pki_dir)?);
    let mailer = config.smtp.as_ref().map(Mailer::new).transpose()?;
    // A hash takes a while.
    let passwords = tokio::task::spawn_blocking(Passwords::new).await;
    Ok(Arc::new(Control {
        hosts: Hosts::new(&pki)?,
        host_tokens: HostTokens::new(&config.jwt_secret)?,
        keys: KeyCache::default(),
        tokens: UserTokens::new(&config.jwt_secret),
        signer: Signer::new(&config.jwt_secret),
        passwords: passwords.ok().and_then(std::result::Result::ok).ok_or(Error::Password)?,
        limits: Limits::new(&config.auth_limits),
        vault: Vault::new(&config.secrets),
        post: Post::new(mailer),
        tasks: TaskTracker::new(),
        shutdown,
        config,
        store,
        pki,
    }))
}

/// Serves connections until shutdown.
async fn accept(listener: &TcpListener, app: &App, service: &api::Service) -> GracefulShutdown {
    let connections = GracefulShutdown::new();
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(HEADER_TIMEOUT);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = app.shutdown.cancelled() => return connections,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        spawn_connection(&server, &connections, stream, peer, service.clone());
    }
}

fn spawn_connection(
    server: &auto::Builder<TokioExecutor>,
    connections: &GracefulShutdown,
    stream: TcpStream,
    peer: SocketAddr,
    service: api::Service,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone before it was served");
        return;
    }
    let service = service.map_request(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        request
    });
    let serving =
        server.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    let serving = connections.watch(serving.into_owned());
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::debug!(error, "a connection ended early");
        }
    });
}

/// Lets requests, sockets and background work end, for as long as the configuration allows.
async fn end(app: &App, connections: GracefulShutdown) {
    app.tasks.close();
    let all = async {
        connections.shutdown().await;
        app.tasks.wait().await;
    };
    if timeout(app.config.drain, all).await.is_err() {
        tracing::warn!("some requests were cut off by the shutdown");
    }
    app.store.close().await;
}
