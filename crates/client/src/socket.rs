//! WebSocket connections, made by the HTTP client's own upgrade.

use reqwest::{Method, Upgraded, header};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::client::Client;
use crate::error::Error;

/// Longest message that is accepted, in bytes. The server sends chunks far below it.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// How long a handshake may take.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(30);

/// An open session.
pub(crate) type Socket = WebSocketStream<Upgraded>;

/// Opens the session at `url` (an `http` or `https` URL: the upgrade keeps its connection).
pub(crate) async fn open(client: &Client, url: &str) -> Result<Socket, Error> {
    match tokio::time::timeout(HANDSHAKE, handshake(client, url)).await {
        Ok(result) => result,
        Err(_) => Err(Error::Session(format!("the session did not open within {} s", HANDSHAKE.as_secs()))),
    }
}

async fn handshake(client: &Client, url: &str) -> Result<Socket, Error> {
    let key = generate_key();
    let request = client
        .request(Method::GET, url)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key);
    let response = client.send(request).await?;
    if response.status() != reqwest::StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::Protocol(format!("no WebSocket at {url} (HTTP {})", response.status().as_u16())));
    }
    let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if accept.is_none_or(|value| value.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(Error::Protocol("the WebSocket handshake carries a wrong answer".to_owned()));
    }
    let upgraded = response.upgrade().await.map_err(|e| client.transport(e))?;
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await)
}

/// A JSON message as a text frame.
pub(crate) fn text(value: &serde_json::Value) -> Message {
    Message::text(value.to_string())
}

/// A failure of the connection.
pub(crate) fn failed(error: tungstenite::Error) -> Error {
    use tungstenite::error::ProtocolError;
    match error {
        tungstenite::Error::ConnectionClosed
        | tungstenite::Error::AlreadyClosed
        | tungstenite::Error::Protocol(
            ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing,
        ) => Error::Disconnected,
        other => Error::Socket(Box::new(other)),
    }
}
