//! The agent's listener: HTTP over mutual TLS, for the control plane and nobody else.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::routing::any;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use wrenn_protocol::agent::AgentServiceExt;
use wrenn_protocol::{identity, tunnel};

use crate::credentials::{Credentials, CredentialsError};
use crate::manager::Manager;
use crate::rpc::AgentRpc;

/// Limit of a TLS handshake, so that a silent peer does not hold a connection.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Limit between the first and the last byte of a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Pause after a failed accept (for example out of file descriptors), which would otherwise spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The TLS side of the listener, replaced whole when the certificate is renewed.
pub(crate) type SharedTls = Arc<ArcSwap<ServerConfig>>;

/// TLS with this host's certificate, demanding one that the internal CA gave to a control plane.
///
/// # Errors
/// Where the credentials cannot be used.
pub(crate) fn tls_config(credentials: &Credentials) -> Result<ServerConfig, CredentialsError> {
    let bad = |error: &dyn std::fmt::Display| CredentialsError::Certificate(error.to_string());
    let chain = CertificateDer::pem_slice_iter(credentials.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(&e))?;
    let key = PrivateKeyDer::from_pem_slice(credentials.key_pem.as_bytes()).map_err(|e| bad(&e))?;
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(credentials.ca_cert_pem.as_bytes()) {
        roots.add(ca.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(|e| bad(&e))?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| bad(&e))?;
    // A resumed session would carry the peer's old certificate past its end.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The routes: the RPC service, and the tunnel beside it.
fn router(manager: Manager) -> Router {
    let rpc = Arc::new(AgentRpc::new(manager.clone())).register(connectrpc::Router::new());
    Router::new()
        .route(&format!("{}{{*path}}", tunnel::PREFIX), any(crate::tunnel::handle))
        .fallback_service(rpc.into_axum_service())
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(manager)
}

/// Accepts connections until `shutdown`.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: SharedTls,
    manager: Manager,
    shutdown: CancellationToken,
) {
    let router = router(manager);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (router, tls) = (router.clone(), tls.load_full());
                let shutdown = shutdown.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = connection(stream, tls, router) => {}
                        () = shutdown.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, tls: Arc<ServerConfig>, router: Router) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!("cannot set TCP_NODELAY: {error}");
    }
    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, TlsAcceptor::from(tls).accept(stream)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return warn!("refused a connection: {error}"),
        Err(_elapsed) => return warn!("refused a connection: no TLS handshake in time"),
    };
    let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    if !peer.is_some_and(is_control_plane) {
        return warn!("refused a connection: the certificate is not a control plane's");
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(512 * 1024);
    let service = TowerToHyperService::new(router);
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        debug!("connection ended: {error}");
    }
}

/// Whether a certificate, already verified against the CA, names a control plane: hosts have certificates of the
/// same CA and must not command each other.
fn is_control_plane(cert: &CertificateDer<'_>) -> bool {
    let Ok((_, cert)) = x509_parser::parse_x509_certificate(cert) else { return false };
    let Ok(Some(names)) = cert.subject_alternative_name() else { return false };
    names
        .value
        .general_names
        .iter()
        .any(|name| matches!(name, x509_parser::extensions::GeneralName::DNSName(dns) if *dns == identity::CONTROL_PLANE))
}
