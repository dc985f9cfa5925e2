//! The tunnel's agent end: see [`wrenn_protocol::tunnel`] for the contract.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::debug;
use wrenn_core::CapsuleId;
use wrenn_protocol::drained::Drained;
use wrenn_protocol::tunnel::{self, TunnelError};

use crate::gathered::Gathered;
use crate::manager::Manager;
use crate::traffic::Lease;

/// Headers that concern one connection only (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Passes a request to the guest it names.
pub(crate) async fn handle(State(manager): State<Manager>, request: Request) -> Response {
    match forward(&manager, request).await {
        Ok(response) => response,
        Err((error, message)) => refuse(error, message),
    }
}

async fn forward(manager: &Manager, request: Request) -> Result<Response, (TunnelError, String)> {
    let (mut head, body) = request.into_parts();
    let uri = std::mem::take(&mut head.uri);
    let whole = uri.path_and_query().map_or("", |path| path.as_str());
    let (id, path) = tunnel::split(whole)
        .ok_or_else(|| (TunnelError::UnknownCapsule, format!("`{whole}` names no capsule")))?;
    let capsule = id
        .parse::<CapsuleId>()
        .ok()
        .and_then(|id| manager.get(id))
        .ok_or_else(|| (TunnelError::UnknownCapsule, format!("capsule {id} is not on this host")))?;
    let closed = || (TunnelError::NotRunning, format!("capsule {id} takes no traffic now"));
    let lease = capsule.gate().lease().ok_or_else(closed)?;
    let endpoint = capsule.endpoint().ok_or_else(closed)?;
    if tunnel::counts_as_activity(path) {
        capsule.touch();
    }
    head.uri = endpoint.uri(path).map_err(|error| (TunnelError::GuestUnreachable, error.to_string()))?;
    head.version = http::Version::HTTP_11;
    drop_hop_by_hop(&mut head.headers);
    head.headers.remove(header::HOST);
    let body = Body::new(Drained::new(Gathered::new(body)));
    let answer = tokio::select! {
        answer = endpoint.send(Request::from_parts(head, body)) => answer,
        () = lease.revoked() => return Err(closed()),
    };
    let (mut head, body) = answer
        .map_err(|error| {
            debug!(capsule = %capsule.id(), "{error}");
            (TunnelError::GuestUnreachable, error.to_string())
        })?
        .into_parts();
    drop_hop_by_hop(&mut head.headers);
    Ok(Response::from_parts(head, Body::new(LeasedBody::new(body, lease))))
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn refuse(error: TunnelError, message: String) -> Response {
    let mut response = Response::new(Body::from(message));
    *response.status_mut() = error.status();
    response.headers_mut().insert(tunnel::ERROR_HEADER, HeaderValue::from_static(error.as_str()));
    response
}

/// An answer's body that holds its lease to the end, and breaks off when the lease is revoked: the guest is gone
/// then, and would leave the connection hanging.
struct LeasedBody {
    body: Incoming,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    _lease: Lease,
}

impl LeasedBody {
    fn new(body: Incoming, lease: Lease) -> Self {
        Self { body, revoked: Box::pin(lease.revocation().cancelled_owned()), _lease: lease }
    }
}

/// The capsule stopped while its answer was on the way.
#[derive(Debug, thiserror::Error)]
enum BrokenOff {
    #[error("the capsule stopped")]
    Stopped,
    #[error(transparent)]
    Guest(#[from] hyper::Error),
}

impl HttpBody for LeasedBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.revoked.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(BrokenOff::Stopped)));
        }
        Pin::new(&mut self.body).poll_frame(cx).map_err(BrokenOff::from)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_hop_stay_on_it() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close, X-Mine"));
        headers.insert("x-mine", HeaderValue::from_static("1"));
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("a/b"));
        drop_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [header::CONTENT_TYPE]);
    }

    #[test]
    fn a_refusal_says_that_it_is_the_agents_own() {
        let response = refuse(TunnelError::NotRunning, "no".to_owned());
        assert_eq!(response.status(), http::StatusCode::CONFLICT);
        let marker = response.headers()[tunnel::ERROR_HEADER].to_str().unwrap();
        assert_eq!(TunnelError::parse(marker), Some(TunnelError::NotRunning));
    }
}
