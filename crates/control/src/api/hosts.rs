//! `/v1/hosts/register` and `/v1/hosts/auth/refresh`

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use wrenn_core::{HostId, TeamId, timestamp};

use super::ApiError;
use super::docs::Failures;
use super::extract::Json;
use crate::hosts::{self, Credentials, RegisterError};
use crate::state::App;
use crate::store::{HostRow, Registration, StoreError};

/// What a machine says of itself.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Register {
    /// The registration token.
    #[schema(required, nullable = false)]
    token: Option<String>,
    /// `ip:port` of its agent.
    #[schema(required, nullable = false, example = "10.0.0.7:7443")]
    address: Option<String>,
    /// CPU architecture.
    arch: Option<String>,
    /// CPU cores.
    cpu_cores: Option<i64>,
    /// Memory in MiB.
    memory_mb: Option<i64>,
    /// Disk in GiB.
    disk_gb: Option<i64>,
}

/// Asks for new credentials.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Refresh {
    /// The refresh token; it is used up.
    #[schema(required, nullable = false)]
    refresh_token: Option<String>,
    /// Keep the token until the next one is used, so that it can be sent again where the answer gets lost.
    #[serde(default)]
    repeatable: bool,
}

/// A machine that runs capsules.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Host {
    /// `host-` and 25 characters.
    #[schema(value_type = String)]
    id: HostId,
    /// `regular` or `byoc`.
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    team_id: Option<TeamId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability_zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arch: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    cpu_cores: i64,
    #[serde(skip_serializing_if = "is_zero")]
    memory_mb: i64,
    #[serde(skip_serializing_if = "is_zero")]
    disk_gb: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// `pending`, `online`, `offline`, `draining` or `unreachable`.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "timestamp::serialize_option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    last_heartbeat_at: Option<OffsetDateTime>,
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    updated_at: OffsetDateTime,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands fields over by reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl From<HostRow> for Host {
    fn from(row: HostRow) -> Self {
        Self {
            id: row.id,
            kind: row.kind.as_str(),
            team_id: row.team,
            provider: row.provider,
            availability_zone: row.availability_zone,
            arch: row.arch,
            cpu_cores: row.cpu_cores,
            memory_mb: row.memory_mb,
            disk_gb: row.disk_gb,
            address: row.address,
            status: row.status.as_str(),
            last_heartbeat_at: row.last_heartbeat_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// What a machine needs to act as a host.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HostCredentials {
    host: Host,
    /// Host token, valid seven days.
    token: String,
    /// Buys new credentials within 60 days; ends when the one that it buys is used.
    refresh_token: String,
    /// The agent's server certificate, valid seven days.
    cert_pem: String,
    /// Its private key.
    key_pem: String,
    /// The authority whose clients the agent answers.
    ca_cert_pem: String,
}

impl From<Credentials> for HostCredentials {
    fn from(made: Credentials) -> Self {
        Self {
            host: made.host.into(),
            token: made.token,
            refresh_token: made.refresh_token,
            cert_pem: made.pair.cert,
            key_pem: made.pair.key,
            ca_cert_pem: made.ca_cert,
        }
    }
}

impl From<RegisterError> for ApiError {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Refused => Self::unauthorized(error.to_string()),
            RegisterError::Store(error) => StoreError::into(error),
            RegisterError::Pki(_) | RegisterError::Sign(_) => {
                tracing::error!(error = ?error, "a host got no credentials");
                Self::internal()
            }
        }
    }
}

fn required(field: Option<String>, name: &str) -> Result<String, ApiError> {
    field.filter(|text| !text.is_empty()).ok_or_else(|| ApiError::invalid(format!("{name} is required")))
}

fn size(field: Option<i64>, name: &str) -> Result<i64, ApiError> {
    match field.unwrap_or_default() {
        found if found < 0 => Err(ApiError::invalid(format!("{name} must not be negative"))),
        found => Ok(found),
    }
}

/// Register a host
///
/// The registration token is the credential; it is used up.
#[utoipa::path(post, path = "/v1/hosts/register", tag = "hosts", request_body = Register, security(()),
    responses((status = 201, body = HostCredentials), Failures))]
pub(super) async fn register(
    State(app): State<App>,
    Json(body): Json<Register>,
) -> Result<(StatusCode, axum::Json<HostCredentials>), ApiError> {
    let token = required(body.token, "token")?;
    let address = required(body.address, "address")?;
    if address.parse::<std::net::SocketAddr>().is_err() {
        return Err(ApiError::invalid("address must have the form ip:port"));
    }
    let arch = body.arch.unwrap_or_default();
    let of = Registration {
        address: &address,
        arch: &arch,
        cpu_cores: size(body.cpu_cores, "cpu_cores")?,
        memory_mb: size(body.memory_mb, "memory_mb")?,
        disk_gb: size(body.disk_gb, "disk_gb")?,
    };
    let made = hosts::register(&app, &token, &of).await?;
    Ok((StatusCode::CREATED, axum::Json(made.into())))
}

/// Renew a host's credentials
///
/// The refresh token is the credential; the answer holds the next one. Where the answer may get lost, ask
/// `repeatable`, and again with the same token.
#[utoipa::path(post, path = "/v1/hosts/auth/refresh", tag = "hosts", request_body = Refresh, security(()),
    responses((status = 200, body = HostCredentials), Failures))]
pub(super) async fn refresh(
    State(app): State<App>,
    Json(body): Json<Refresh>,
) -> Result<axum::Json<HostCredentials>, ApiError> {
    let token = required(body.refresh_token, "refresh_token")?;
    Ok(axum::Json(hosts::refresh(&app, &token, body.repeatable).await?.into()))
}
