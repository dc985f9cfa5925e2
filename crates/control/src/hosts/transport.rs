//! How a host is reached: HTTP/1.1 over mutual TLS, one request at a time on each pooled connection.
//!
//! HTTP/1.1 is on purpose: a stream whose reader is slow then holds up nothing but itself. TLS sessions are never
//! resumed, because a resumed session keeps the certificates of the old one unchecked.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use connectrpc::client::{ClientBody, ClientConfig, ServiceTransport};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tower::Service;
use wrenn_core::{CapsuleId, HostId};
use wrenn_protocol::agent::AgentServiceClient;
use wrenn_protocol::identity;
use wrenn_protocol::tunnel::{self, TunnelError};

use crate::pki::{ControlIdentity, Pki, PkiError};

/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const POOL_IDLE: Duration = Duration::from_secs(60);
/// Largest RPC message that a host or guest may answer with, in bytes.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Read buffer of a connection in bytes; large, because file contents pass through it.
const READ_BUFFER: usize = 512 * 1024;

/// Why a request got no answer of its addressee.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// The host does not answer.
    #[error("the host cannot be reached")]
    Unreachable(#[source] legacy::Error),
    /// The host answered that the request does not reach the guest.
    #[error("the request did not reach the guest: {}", .0.as_str())]
    Tunnel(TunnelError),
}

impl HostError {
    /// Whether the host certainly knows nothing of the request.
    pub(crate) fn was_not_sent(&self) -> bool {
        match self {
            Self::Unreachable(error) => error.is_connect(),
            Self::Tunnel(_) => true,
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Boxed<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// Dials one address, whatever the URI says: the URI carries the name that the certificate must have.
#[derive(Debug, Clone)]
struct Dial {
    address: Arc<str>,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = std::io::Error;
    type Future = Boxed<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let address = self.address.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(&*address).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// [`Dial`] and TLS within [`CONNECT_TIMEOUT`].
#[derive(Clone)]
struct HostConnector {
    inner: HttpsConnector<Dial>,
}

impl Service<Uri> for HostConnector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Boxed<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.inner.call(uri);
        Box::pin(async move { tokio::time::timeout(CONNECT_TIMEOUT, connecting).await? })
    }
}

/// TLS towards hosts: the internal authority only, and our own current client certificate.
pub(crate) fn tls_config(pki: &Arc<Pki>) -> Result<Arc<rustls::ClientConfig>, PkiError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pki.ca_der().clone())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(ControlIdentity(pki.clone())));
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(tls))
}

/// A pool of connections to one host.
#[derive(Clone)]
pub(crate) struct HostTransport {
    client: legacy::Client<HostConnector, ClientBody>,
    base: Arc<str>,
}

impl std::fmt::Debug for HostTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HostTransport").field(&self.base).finish()
    }
}

impl HostTransport {
    pub(crate) fn new(host: HostId, address: &str, tls: &Arc<rustls::ClientConfig>) -> Self {
        let inner = HttpsConnectorBuilder::new()
            .with_tls_config((**tls).clone())
            .https_only()
            .enable_http1()
            .wrap_connector(Dial { address: address.into() });
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .http1_max_buf_size(READ_BUFFER)
            .build(HostConnector { inner });
        Self { client, base: format!("https://{}", identity::host_name(host)).into() }
    }

    /// The agent's own service.
    pub(crate) fn agent(&self) -> AgentServiceClient<ServiceTransport<Self>> {
        AgentServiceClient::new(ServiceTransport::new(self.clone()), rpc_config(self.uri("")))
    }

    /// Where RPC services of a guest are called.
    pub(crate) fn guest_rpc(&self, capsule: CapsuleId) -> ClientConfig {
        rpc_config(self.uri(tunnel::path(capsule, "").as_str()))
    }

    /// The URI of a guest's `path`, which begins with `/` and may carry a query.
    pub(crate) fn guest_uri(&self, capsule: CapsuleId, path: &str) -> Uri {
        self.uri(&tunnel::path(capsule, path))
    }

    fn uri(&self, path: &str) -> Uri {
        format!("{}{path}", self.base).parse().unwrap_or_default()
    }

    /// Sends one request.
    pub(crate) async fn send(&self, request: Request<ClientBody>) -> Result<Response<Incoming>, HostError> {
        let response = self.client.request(request).await.map_err(HostError::Unreachable)?;
        let marked = response.headers().get(tunnel::ERROR_HEADER).and_then(|value| value.to_str().ok());
        match marked.and_then(TunnelError::parse) {
            Some(error) => Err(HostError::Tunnel(error)),
            None => Ok(response),
        }
    }
}

fn rpc_config(base: Uri) -> ClientConfig {
    ClientConfig::new(base)
        .proto()
        .with_default_max_message_size(MAX_MESSAGE)
        .with_default_element_memory_limit(4 * MAX_MESSAGE)
}

impl Service<Request<ClientBody>> for HostTransport {
    type Response = Response<Incoming>;
    type Error = HostError;
    type Future = Boxed<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ClientBody>) -> Self::Future {
        let transport = self.clone();
        Box::pin(async move { transport.send(request).await })
    }
}

/// The [`HostError`] that an RPC failure stems from.
pub(crate) fn host_error(error: &connectrpc::ConnectError) -> Option<&HostError> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<HostError>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}
