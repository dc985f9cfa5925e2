//! `GET /connect?port=N`: from here on the connection is one to `N` inside the guest. It reaches servers bound to
//! loopback, in the moment they listen.

use std::num::NonZeroU16;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::error::{Error, Result};

/// Value of `Upgrade` on both sides.
const PROTOCOL: &str = "wrenn-tcp";

/// Bytes per copy in each direction.
const COPY_BYTES: usize = 64 * 1024;

/// The query of the call.
#[derive(Debug, Deserialize)]
pub(super) struct PortQuery {
    port: NonZeroU16,
}

/// Dials first, so that a closed port is a plain answer (502) and not a broken connection.
pub(super) async fn connect(
    query: Result<Query<PortQuery>, QueryRejection>,
    mut request: Request,
) -> Result<Response> {
    let Query(PortQuery { port }) =
        query.map_err(|_| Error::invalid("port must be a number from 1 to 65535"))?;
    let asked = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if !asked.is_some_and(|protocol| protocol.eq_ignore_ascii_case(PROTOCOL)) {
        return Err(Error::invalid(format!("send Connection: upgrade and Upgrade: {PROTOCOL}")));
    }
    let inside = match dial(port.get()).await {
        Ok(inside) => inside,
        Err(error) => {
            let text = format!("port {port} is not open: {error}");
            return Ok((StatusCode::BAD_GATEWAY, text).into_response());
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(outside) = upgrade.await {
            copy(TokioIo::new(outside), inside).await;
        }
    });
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(PROTOCOL)),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

async fn dial(port: u16) -> std::io::Result<TcpStream> {
    let stream = match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(stream) => stream,
        Err(error) => TcpStream::connect(("::1", port)).await.map_err(|_| error)?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn copy(mut outside: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, mut inside: TcpStream) {
    // A side that breaks ends the other, which is all that can be told.
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut outside, &mut inside, COPY_BYTES, COPY_BYTES).await;
}
