//! `/v1/api-keys`

use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use wrenn_core::{ApiKeyId, TeamId, UserId, timestamp};

use super::ApiError;
use super::docs::Failures;
use super::extract::{InKey, Json};
use crate::auth::{SignedIn, new_key};
use crate::state::App;
use crate::store::KeyRow;

const DEFAULT_NAME: &str = "Unnamed API Key";
const MAX_NAME: usize = 128;

/// A team's key.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ApiKey {
    /// `key-` and 25 characters.
    #[schema(value_type = String)]
    id: ApiKeyId,
    #[schema(value_type = String)]
    team_id: TeamId,
    name: String,
    /// How the key begins.
    #[schema(example = "wrn_0123ab")]
    key_prefix: String,
    /// Who made it; null where it was made on the platform's own machine.
    #[schema(value_type = Option<String>)]
    created_by: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    creator_email: Option<String>,
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    /// When it was last used, to within a few seconds.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "timestamp::serialize_option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    last_used: Option<OffsetDateTime>,
    /// The key itself; only in the answer that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl From<KeyRow> for ApiKey {
    fn from(row: KeyRow) -> Self {
        Self {
            id: row.id,
            team_id: row.team,
            name: row.name,
            key_prefix: row.prefix,
            created_by: row.created_by,
            creator_email: row.creator_email,
            created_at: row.created_at,
            last_used: row.last_used,
            key: None,
        }
    }
}

/// A key to make.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct NewApiKey {
    /// What it is for: at most 128 characters; default `Unnamed API Key`.
    name: Option<String>,
}

fn key_name(field: Option<String>) -> Result<String, ApiError> {
    let name = field.unwrap_or_default().trim().to_owned();
    if name.chars().count() > MAX_NAME || name.contains(char::is_control) {
        let message = format!("name must have at most {MAX_NAME} characters, and no control characters");
        return Err(ApiError::invalid(message));
    }
    Ok(if name.is_empty() { DEFAULT_NAME.to_owned() } else { name })
}

/// Make an API key
///
/// The answer is the only one that holds the key.
#[utoipa::path(post, path = "/v1/api-keys", tag = "keys", request_body = NewApiKey, security(("token" = [])),
    responses((status = 201, body = ApiKey), Failures))]
pub(super) async fn create(
    State(app): State<App>,
    person: SignedIn,
    Json(body): Json<NewApiKey>,
) -> Result<(StatusCode, axum::Json<ApiKey>), ApiError> {
    let name = key_name(body.name)?;
    let caller = person.caller()?;
    let made = new_key(&app.store, caller.team, &name, Some(person.user), &caller.actor).await?;
    let made = made.ok_or_else(ApiError::no_team)?;
    let key = ApiKey {
        id: made.id,
        team_id: caller.team,
        name,
        key_prefix: made.prefix,
        created_by: Some(person.user),
        creator_email: Some(person.email),
        created_at: made.created_at,
        last_used: None,
        key: Some(made.key),
    };
    Ok((StatusCode::CREATED, axum::Json(key)))
}

/// List API keys
///
/// Newest first, without the keys themselves.
#[utoipa::path(get, path = "/v1/api-keys", tag = "keys", security(("token" = [])),
    responses((status = 200, body = Vec<ApiKey>), Failures))]
pub(super) async fn list(
    State(app): State<App>,
    person: SignedIn,
) -> Result<axum::Json<Vec<ApiKey>>, ApiError> {
    let rows = app.store.keys(person.caller()?.team).await?;
    Ok(axum::Json(rows.into_iter().map(ApiKey::from).collect()))
}

/// Revoke an API key
///
/// Safe to repeat. Whoever uses the key is refused within seconds.
#[utoipa::path(delete, path = "/v1/api-keys/{id}", tag = "keys", security(("token" = [])),
    params(("id" = String, Path, description = "The key")),
    responses((status = 204, description = "Gone"), Failures))]
pub(super) async fn revoke(
    State(app): State<App>,
    person: SignedIn,
    InKey(key): InKey,
) -> Result<StatusCode, ApiError> {
    let caller = person.caller()?;
    if app.store.delete_key(caller.team, key, &caller.actor).await? {
        app.keys.forget();
    }
    Ok(StatusCode::NO_CONTENT)
}
