//! The WebSocket routes.

use axum::extract::State;
use axum::response::Response;

use super::docs::Failures;
use super::extract::{InCapsule, InProcess};
use crate::guest::Selector;
use crate::state::App;
use crate::ws::{self, Dialect, Handshake};

/// Run a command and stream its output
///
/// A WebSocket. The first message is `{"type":"start","cmd":…}`; what follows is `start`, `stdout` and `stderr`, then
/// `exit` or `error`. Closing the socket kills the command.
#[utoipa::path(get, path = "/v1/capsules/{id}/exec/stream", tag = "processes",
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 101, description = "WebSocket"), Failures))]
pub(super) async fn exec_stream(
    State(app): State<App>,
    InCapsule(id): InCapsule,
    handshake: Handshake,
) -> Response {
    handshake.serve(app, id, Dialect::Exec, ws::exec)
}

/// Stream the output of a running process
///
/// A WebSocket. Output starts at the moment of attaching; closing the socket leaves the process running.
#[utoipa::path(get, path = "/v1/capsules/{id}/processes/{selector}/stream", tag = "processes",
    params(("id" = String, Path, description = "The capsule"), ("selector" = String, Path, description = "PID or tag")),
    responses((status = 101, description = "WebSocket"), Failures))]
pub(super) async fn process_stream(
    State(app): State<App>,
    InCapsule(id): InCapsule,
    InProcess(selector): InProcess,
    handshake: Handshake,
) -> Response {
    let selector = Selector::parse(&selector);
    handshake.serve(app, id, Dialect::Follow, |task| ws::attach(task, selector))
}

/// Open a terminal
///
/// A WebSocket. The first message is of type `start` or `connect`; binary messages are keystrokes and output.
#[utoipa::path(get, path = "/v1/capsules/{id}/pty", tag = "processes",
    params(("id" = String, Path, description = "The capsule")),
    responses((status = 101, description = "WebSocket"), Failures))]
pub(super) async fn pty(State(app): State<App>, InCapsule(id): InCapsule, handshake: Handshake) -> Response {
    handshake.serve(app, id, Dialect::Terminal, ws::pty)
}
