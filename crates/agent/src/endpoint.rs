//! One guest's daemon, as the agent reaches it over the capsule's network slot.

mod processes;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::header::HeaderValue;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::net::TcpStream;
use wrenn_core::limits::GUEST_PORT;
use wrenn_protocol::datagram::Operation;
use wrenn_protocol::guest::{GuestError, InitRequest, InitResponse, PREPARE_PATH};
use wrenn_protocol::tunnel::ACCESS_TOKEN_HEADER;

pub use processes::Processes;

use crate::datagram;

/// Idle connections kept to one guest.
const IDLE_CONNECTIONS: usize = 4;
/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A guest that is up answers a connection attempt within some tens of milliseconds, one that is not swallows it.
const CONNECT_ATTEMPT: Duration = Duration::from_millis(200);
/// The same on a machine that has no time for anything.
const PATIENT_ATTEMPT: Duration = Duration::from_secs(5);
/// Pause between two attempts, of which several may be under way.
const CONNECT_BEAT: Duration = Duration::from_millis(25);
/// How long one way is tried to make a call that another way could.
const CALL_ATTEMPT: Duration = Duration::from_secs(2);
/// Pause after an attempt that failed.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);

/// Why the guest daemon was not reached, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The connection failed.
    #[error("the guest daemon did not answer: {0}")]
    Unreachable(String),
    /// It answered with an error.
    #[error("the guest daemon answered {status}: {message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Its message.
        message: String,
    },
    /// It did not run a program to its end.
    #[error("{program} did not run: {why}")]
    Process {
        /// The program.
        program: String,
        /// What the call came to.
        why: String,
    },
}

/// The daemon of one guest, with connections of its own: a slot's address is used again by later capsules, so
/// connections must not outlive theirs.
#[derive(Debug, Clone)]
pub struct Endpoint {
    addr: SocketAddr,
    datagrams: bool,
    token: HeaderValue,
    client: Client<HttpConnector, Body>,
    /// Keeps no connection: the daemon moves a whole file past its HTTP library where the file is a connection's first
    /// request.
    bulk: Client<HttpConnector, Body>,
}

impl Endpoint {
    /// The daemon at `addr` that demands `token` (which must be visible ASCII).
    pub fn new(addr: Ipv4Addr, token: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIMEOUT).http1_max_buf_size(512 * 1024);
        let client = builder.pool_max_idle_per_host(IDLE_CONNECTIONS).build(connector.clone());
        let bulk = builder.pool_max_idle_per_host(0).build(connector);
        let token = HeaderValue::from_str(token).unwrap_or_else(|_| HeaderValue::from_static(""));
        Self { addr: SocketAddr::from((addr, GUEST_PORT)), datagrams: false, token, client, bulk }
    }

    /// The same daemon, called by datagram where that is shorter. Only for one that is known to listen for them: else
    /// whoever does in its guest would be told the token.
    #[must_use]
    pub fn with_datagrams(self, datagrams: bool) -> Self {
        Self { datagrams, ..self }
    }

    /// The URI of `path_and_query` on the daemon.
    ///
    /// # Errors
    /// Where the path is not one.
    pub fn uri(&self, path_and_query: &str) -> Result<Uri, http::Error> {
        Uri::builder().scheme("http").authority(self.addr.to_string()).path_and_query(path_and_query).build()
    }

    /// Sends a request whose URI came from [`uri`](Self::uri), with the access token set.
    ///
    /// # Errors
    /// [`EndpointError::Unreachable`] where no answer's head arrived.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, EndpointError> {
        request.headers_mut().insert(ACCESS_TOKEN_HEADER, self.token.clone());
        let client = if request.uri().path() == "/files" { &self.bulk } else { &self.client };
        client.request(request).await.map_err(|error| EndpointError::Unreachable(chain(&error)))
    }

    /// Resolves when the daemon answers its health check; never gives up, so put a limit around it.
    pub async fn wait_until_healthy(&self) {
        loop {
            self.wait_until_connectable().await;
            if self.healthy().await {
                return;
            }
            tokio::time::sleep(CONNECT_PAUSE).await;
        }
    }

    /// Resolves when the daemon accepts connections.
    async fn wait_until_connectable(&self) {
        let patiently = async {
            while !matches!(
                tokio::time::timeout(PATIENT_ATTEMPT, TcpStream::connect(self.addr)).await,
                Ok(Ok(_))
            ) {
                tokio::time::sleep(CONNECT_BEAT).await;
            }
        };
        tokio::select! {
            () = patiently => {}
            () = self.wait_eagerly() => {}
        }
    }

    /// The same with a new attempt at each beat, so that the first moment is not missed.
    async fn wait_eagerly(&self) {
        let mut attempts = FuturesUnordered::new();
        let mut beat = tokio::time::interval(CONNECT_BEAT);
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    attempts.push(tokio::time::timeout(CONNECT_ATTEMPT, TcpStream::connect(self.addr)));
                }
                Some(Ok(Ok(_connected))) = attempts.next() => return,
            }
        }
    }

    /// Whether the daemon answers its health check within five seconds.
    pub async fn healthy(&self) -> bool {
        let Ok(uri) = self.uri("/health") else { return false };
        let Ok(request) = Request::builder().uri(uri).body(Body::empty()) else { return false };
        let answer = tokio::time::timeout(Duration::from_secs(5), self.send(request)).await;
        matches!(answer, Ok(Ok(response)) if response.status().is_success())
    }

    /// Tells the daemon who it is: see [`InitRequest`].
    ///
    /// # Errors
    /// Where it did not answer or refused.
    pub async fn init(&self, body: &InitRequest) -> Result<InitResponse, EndpointError> {
        let bytes = serde_json::to_vec(body).map_err(|error| unreachable(&error))?;
        let answer = self.post("/init", bytes).await?;
        serde_json::from_slice(&answer).map_err(|error| unreachable(&error))
    }

    /// As [`init`](Self::init) of a daemon that was just restored, again and again until it is there; never gives up on one
    /// that does not answer, so put a limit around it. `body` makes the request anew for each attempt, for the time is in
    /// it. `renewed` has the token that the body brings: a daemon that took it may have answered too late, and then knows no
    /// other. What no datagram brings about is tried by HTTP: the request may be too long for one.
    ///
    /// # Errors
    /// Where it refused.
    pub async fn init_when_there(
        &self,
        body: impl Fn() -> InitRequest,
        renewed: &Self,
    ) -> Result<InitResponse, EndpointError> {
        let ways = [Way::Datagram, Way::Http].into_iter().cycle();
        for way in ways.filter(|way| self.datagrams || *way == Way::Http) {
            let mut answer = self.attempt(way, &body).await;
            if let Err(EndpointError::Refused { status: StatusCode::UNAUTHORIZED, .. }) = answer {
                answer = renewed.attempt(way, &body).await;
            }
            match answer {
                Err(EndpointError::Unreachable(_)) => tokio::time::sleep(CONNECT_PAUSE).await,
                answered => return answered,
            }
        }
        Err(EndpointError::Unreachable("no way is left to try".to_owned()))
    }

    async fn attempt(
        &self,
        way: Way,
        body: &impl Fn() -> InitRequest,
    ) -> Result<InitResponse, EndpointError> {
        let attempt = async {
            match way {
                Way::Http => self.init(&body()).await,
                Way::Datagram => {
                    let body = || serde_json::to_vec(&body()).map_err(io::Error::other);
                    let answer = self.call(Operation::Init, body).await?;
                    serde_json::from_slice(&answer).map_err(|error| unreachable(&error))
                }
            }
        };
        let late = |_| Err(EndpointError::Unreachable("it took too long".to_owned()));
        tokio::time::timeout(CALL_ATTEMPT, attempt).await.unwrap_or_else(late)
    }

    /// Calls by datagram.
    async fn call(
        &self,
        operation: Operation,
        body: impl Fn() -> io::Result<Vec<u8>>,
    ) -> Result<Vec<u8>, EndpointError> {
        let called = datagram::call(self.addr, operation, self.token.as_bytes(), body).await;
        let (status, body) = called.map_err(|error| unreachable(&error))?;
        match StatusCode::from_u16(status) {
            Ok(status) if status.is_success() => Ok(body),
            Ok(status) => Err(refused(status, &body)),
            Err(error) => Err(unreachable(&error)),
        }
    }

    /// Has the daemon write everything back and let go of idle connections, before the guest is stopped for long.
    ///
    /// # Errors
    /// Where it did not answer or refused.
    pub async fn prepare(&self) -> Result<(), EndpointError> {
        if self.datagrams {
            let call = self.call(Operation::Prepare, || Ok(Vec::new()));
            // Where datagrams do not arrive, or the disk is slow: asking twice does no harm.
            match tokio::time::timeout(CALL_ATTEMPT, call).await {
                Ok(Err(EndpointError::Unreachable(_))) | Err(_) => {}
                Ok(called) => return called.map(drop),
            }
        }
        self.post(PREPARE_PATH, Vec::new()).await.map(drop)
    }

    async fn post(&self, path: &str, body: Vec<u8>) -> Result<bytes::Bytes, EndpointError> {
        let uri = self.uri(path).map_err(|error| unreachable(&error))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .map_err(|error| unreachable(&error))?;
        let response = self.send(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), 64 * 1024)
            .collect()
            .await
            .map_err(|error| EndpointError::Unreachable(error.to_string()))?
            .to_bytes();
        if status.is_success() { Ok(body) } else { Err(refused(status, &body)) }
    }
}

/// How a daemon is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Datagram,
    Http,
}

fn unreachable(error: &dyn std::error::Error) -> EndpointError {
    EndpointError::Unreachable(chain(error))
}

fn refused(status: StatusCode, body: &[u8]) -> EndpointError {
    let message = serde_json::from_slice::<GuestError>(body)
        .map_or_else(|_| String::from_utf8_lossy(body).into_owned(), |error| error.message);
    EndpointError::Refused { status, message }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::extract::State;
    use axum::routing::post;
    use http::HeaderMap;
    use tokio::net::TcpListener;

    use super::*;

    /// Takes the new token at the first call, and answers that one too late.
    async fn init(State(calls): State<Arc<AtomicU32>>, headers: HeaderMap) -> (StatusCode, &'static str) {
        if calls.fetch_add(1, Ordering::SeqCst) == 0 {
            tokio::time::sleep(CALL_ATTEMPT * 2).await;
        } else if headers[ACCESS_TOKEN_HEADER] != "new" {
            return (StatusCode::UNAUTHORIZED, r#"{"code": "unauthenticated", "message": "wrong"}"#);
        }
        (StatusCode::OK, r#"{"version": "1", "kernel": "6"}"#)
    }

    #[tokio::test]
    async fn a_daemon_that_took_its_new_token_and_answered_too_late_is_asked_with_that_one() {
        let address = Ipv4Addr::new(127, 83, 19, 7);
        let listener = TcpListener::bind((address, GUEST_PORT)).await.unwrap();
        let calls = Arc::new(AtomicU32::new(0));
        let daemon = axum::Router::new().route("/init", post(init)).with_state(Arc::clone(&calls));
        let serving = tokio::spawn(async move { axum::serve(listener, daemon).await });
        let endpoint = |token| Endpoint::new(address, token).with_datagrams(true);
        let (known, renewed) = (endpoint("old"), endpoint("new"));
        let answer = known.init_when_there(InitRequest::default, &renewed).await.unwrap();
        assert_eq!((answer.version.as_str(), calls.load(Ordering::SeqCst)), ("1", 3));
        let neither = Endpoint::new(address, "neither");
        let refused = known.init_when_there(InitRequest::default, &neither).await.unwrap_err();
        assert!(
            matches!(refused, EndpointError::Refused { status: StatusCode::UNAUTHORIZED, .. }),
            "{refused}"
        );
        serving.abort();
    }
}
