//! What every request passes through before and after its handler.

use std::any::Any;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Uri};
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt};
use tower_http::ServiceBuilderExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, RequestId};
use tower_http::trace::{DefaultOnResponse, TraceLayer};
use tracing::Level;

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
    let trace = TraceLayer::new_for_http()
        .make_span_with(|request: &Request| {
            // Without the query, which may carry a token.
            let id = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
            tracing::info_span!("request", method = %request.method(), path = request.uri().path(), id)
        })
        .on_response(DefaultOnResponse::new().level(Level::INFO));
    let stack = ServiceBuilder::new()
        .map_request(|request: http::Request<hyper::body::Incoming>| drop_odd_id(request.map(Body::new)))
        .set_request_id(REQUEST_ID, RandomId)
        .layer(trace)
        .propagate_request_id(REQUEST_ID)
        .layer(CatchPanicLayer::custom(panicked))
        .map_request(without_prefix)
        .service(router);
    BoxCloneSyncService::new(stack.map_response(IntoResponse::into_response))
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
    use super::*;

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
