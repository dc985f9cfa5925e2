//! Plain HTTP: health, configuration by the host, figures, files, and the way to ports inside.

mod body;
pub(crate) mod bulk;
pub(crate) mod configure;
mod download;
mod metrics;
mod pages;
mod ports;
mod upload;
mod writer;

use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use wrenn_protocol::guest::PREPARE_PATH;

use crate::accounts::User;
use crate::auth::{self, Signature};
use crate::error::{Error, Result};
use crate::settings::{Settings, Values};

/// The routes.
pub(crate) fn router(machine: configure::Machine) -> Router {
    let settings = machine.settings.clone();
    Router::new()
        .route("/health", get(health))
        .route("/init", post(configure::init).with_state(machine.clone()))
        .route(PREPARE_PATH, post(configure::prepare).with_state(machine))
        .route("/metrics", get(metrics::metrics))
        .route("/envs", get(envs))
        .route("/files", get(download::download).post(upload::upload))
        .route("/connect", get(ports::connect))
        .layer(DefaultBodyLimit::disable())
        .with_state(settings)
}

async fn health() -> Response {
    (StatusCode::NO_CONTENT, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]).into_response()
}

async fn envs(State(settings): State<Settings>) -> Response {
    Json(&settings.get().env).into_response()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.status(), Json(self.body())).into_response()
    }
}

/// The query of `/files`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FilesQuery {
    path: Option<String>,
    username: Option<String>,
    signature: Option<String>,
    signature_expiration: Option<String>,
}

impl FilesQuery {
    /// Checks that the caller may do `operation`, and finds out as which user.
    fn authorise(&self, operation: &str, values: &Values, headers: &http::HeaderMap) -> Result<User> {
        let signature = Signature {
            operation,
            path: self.path.as_deref().unwrap_or(""),
            username: self.username.as_deref().unwrap_or(""),
            signature: self.signature.as_deref(),
            expiration: self.signature_expiration.as_deref(),
        };
        signature.check(values, headers)?;
        auth::named_user(self.username.as_deref(), values)
    }
}
