//! Putting the control plane together, serving it, and ending it in order.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api;
use crate::auth::{self, KeyCache};
use crate::config::ControlConfig;
use crate::error::{Error, Result};
use crate::hosts::{self, HostTokens, Hosts};
use crate::pki::Pki;
use crate::state::{App, Control};
use crate::store::Store;

/// A client must have sent its headers by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after the system refused to hand over a connection, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs the control plane until `shutdown` is cancelled, then ends open requests and sockets within
/// [`ControlConfig::drain`].
///
/// # Errors
/// [`Error`] where the database, the certificates or the address cannot be used at the start. Afterwards nothing but
/// the shutdown ends it.
pub async fn serve(config: ControlConfig, shutdown: CancellationToken) -> Result<()> {
    let address = config.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    serve_on(listener, config, shutdown).await
}

/// [`serve`] on a listener that is open already.
///
/// # Errors
/// As [`serve`].
pub async fn serve_on(
    listener: TcpListener,
    config: ControlConfig,
    shutdown: CancellationToken,
) -> Result<()> {
    let store = Store::connect(&config.database_url).await?;
    store.migrate().await?;
    let pki = Arc::new(Pki::open_or_create(&config.pki_dir)?);
    let app: App = Arc::new(Control {
        hosts: Hosts::new(&pki)?,
        host_tokens: HostTokens::new(&config.jwt_secret)?,
        keys: KeyCache::default(),
        tasks: TaskTracker::new(),
        shutdown: shutdown.clone(),
        config,
        store,
        pki,
    });
    app.tasks.spawn(hosts::supervise(app.clone()));
    app.tasks.spawn(auth::record_uses(app.clone()));
    let connections = accept(&listener, &app).await;
    drop(listener);
    end(&app, connections).await;
    Ok(())
}

/// Serves connections until shutdown.
async fn accept(listener: &TcpListener, app: &App) -> GracefulShutdown {
    let service = api::service(api::router(app.clone()));
    let connections = GracefulShutdown::new();
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(HEADER_TIMEOUT);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = app.shutdown.cancelled() => return connections,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        spawn_connection(&server, &connections, stream, service.clone());
    }
}

fn spawn_connection(
    server: &auto::Builder<TokioExecutor>,
    connections: &GracefulShutdown,
    stream: TcpStream,
    service: api::Service,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone before it was served");
        return;
    }
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
