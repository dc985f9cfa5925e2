//! What every request passes through before and after its handler.

use std::any::Any;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Uri};
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt};
use tower_http::ServiceBuilderExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::classify::ServerErrorsFailureClass;
use tower_http::request_id::{MakeRequestId, RequestId};
use tower_http::trace::TraceLayer;
use tracing::{Level, Span};

use wrenn_protocol::drained::Drained;

use super::ApiError;

/// The whole API as one service.
pub(crate) type Service =
    BoxCloneSyncService<http::Request<hyper::body::Incoming>, Response, std::convert::Infallible>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID: usize = 128;

#[derive(Debug, Clone, Copy)]
struct RandomId;

impl MakeRequestId for RandomId {
    fn make_request_id<B>(&mut self, _: &http::Request<B>) -> Option<RequestId> {
        HeaderValue::from_str(&crate::secret::random_hex::<8>()).ok().map(RequestId::new)
    }
}

/// Wraps the routes. Outermost first: the id of the request, its trace, the guard against panics, the `/api` prefix.
pub(crate) fn service(router: Router) -> Service {
    let trace = TraceLayer::new_for_http().make_span_with(span).on_response(log_answer).on_failure(
        |failure: ServerErrorsFailureClass, _: Duration, _: &Span| {
            // A status is in the line of its answer; what is left is an answer that broke off.
            if let ServerErrorsFailureClass::Error(cause) = failure {
                tracing::warn!(cause, "an answer broke off");
            }
        },
    );
    let stack = ServiceBuilder::new()
        .map_request(|request: http::Request<hyper::body::Incoming>| {
            drop_odd_id(request.map(|body| Body::new(Drained::new(body))))
        })
        .set_request_id(REQUEST_ID, RandomId)
        .layer(trace)
        .propagate_request_id(REQUEST_ID)
        .layer(CatchPanicLayer::custom(panicked))
        .map_request(without_prefix)
        .service(router);
    BoxCloneSyncService::new(stack.map_response(IntoResponse::into_response))
}

/// What all that is logged during a request carries. A health check, which comes every few seconds for ever, is of
/// interest only to whoever looks for it.
fn span(request: &Request) -> Span {
    let id = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    // Without the query, which may carry a token.
    let (method, path) = (request.method(), request.uri().path());
    if matches!(path, "/health" | "/api/health") {
        tracing::debug_span!("request", %method, path, id)
    } else {
        tracing::info_span!("request", %method, path, id)
    }
}

/// The one line of a request, as loud as its span; a span that nobody wants has no level.
fn log_answer<B>(response: &http::Response<B>, latency: Duration, span: &Span) {
    let status = response.status().as_u16();
    let latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
    if span.metadata().is_some_and(|of| *of.level() <= Level::INFO) {
        tracing::info!(status, latency_ms, "answered");
    } else {
        tracing::debug!(status, latency_ms, "answered");
    }
}

/// An id that a client sends is kept where it is short and printable, so that it can go into logs.
fn drop_odd_id(mut request: Request) -> Request {
    let odd = |id: &HeaderValue| id.len() > MAX_REQUEST_ID || !id.as_bytes().iter().all(u8::is_ascii_graphic);
    if request.headers().get(&REQUEST_ID).is_some_and(odd) {
        request.headers_mut().remove(&REQUEST_ID);
    }
    request
}

/// `/api/<x>` is the same resource as `/<x>`.
fn without_prefix(mut request: Request) -> Request {
    if let Some(uri) = strip(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

fn strip(uri: &Uri) -> Option<Uri> {
    let rest = uri.path_and_query()?.as_str().strip_prefix("/api")?;
    if !rest.starts_with('/') {
        return None;
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(rest.parse().ok()?);
    Uri::from_parts(parts).ok()
}

fn panicked(cause: Box<dyn Any + Send>) -> Response {
    let text = cause
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| cause.downcast_ref::<&str>().copied())
        .unwrap_or("without a message");
    tracing::error!("a handler panicked: {text}");
    ApiError::internal().into_response()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged of a request at a level.
    fn logged(path: &str, level: Level) -> String {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(level)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let request = http::Request::get(path).header(REQUEST_ID, "id-1").body(Body::empty()).unwrap();
            let span = span(&request);
            let response = http::Response::builder().status(503).body(()).unwrap();
            span.in_scope(|| log_answer(&response, Duration::from_millis(7), &span));
        });
        String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_request_is_one_line_without_its_query_and_a_health_check_is_none_unless_asked_for() {
        let line = logged("/v1/capsules?token=secret", Level::INFO);
        assert_eq!(line.lines().count(), 1, "{line}");
        for part in ["INFO", "GET", "/v1/capsules", "id-1", "status=503", "latency_ms=7"] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!line.contains("secret"), "{line}");
        for path in ["/health", "/api/health?x=1"] {
            assert_eq!(logged(path, Level::INFO), "");
            assert!(logged(path, Level::DEBUG).contains("DEBUG request{method=GET"));
        }
        assert_eq!(logged("/v1/capsules", Level::WARN), "");
    }

    #[test]
    fn the_prefix_is_stripped_once_and_only_as_a_whole_segment() {
        let strip = |path: &'static str| strip(&Uri::from_static(path)).map(|uri| uri.to_string());
        assert_eq!(strip("/api/v1/capsules?x=1").as_deref(), Some("/v1/capsules?x=1"));
        assert_eq!(strip("/api/api/v1").as_deref(), Some("/api/v1"));
        assert_eq!(strip("/apiary"), None);
        assert_eq!(strip("/api"), None);
        assert_eq!(strip("/v1/api/x"), None);
    }
}
