//! API keys of the team that a person's token speaks for.

use std::fmt;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use wrenn_core::{ApiKeyId, TeamId};

use crate::client::Client;
use crate::error::Error;
use crate::types::null_as_default;
use crate::when;

/// An API key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Its id, which is no secret.
    pub id: ApiKeyId,
    /// The team it speaks for.
    pub team_id: TeamId,
    /// What it is for.
    #[serde(default, deserialize_with = "null_as_default")]
    pub name: String,
    /// Its first characters.
    #[serde(default, deserialize_with = "null_as_default")]
    pub key_prefix: String,
    /// Id of the person who made it, where a person did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// The address of that person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator_email: Option<String>,
    /// When it was made.
    #[serde(with = "when")]
    pub created_at: OffsetDateTime,
    /// When it was last used.
    #[serde(default, with = "when::option", skip_serializing_if = "Option::is_none")]
    pub last_used: Option<OffsetDateTime>,
    /// The key itself; only in the answer to its making.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a key. The answer alone holds the key itself.
    ///
    /// # Errors
    /// `unauthorized` for an API key, and for a token that has ended.
    pub async fn create_api_key(&self, name: &str) -> Result<ApiKey, Error> {
        let response = self.post(&self.url("/v1/api-keys"), &json!({"name": name}), None).await?;
        self.json(response).await
    }

    /// The keys of the team, newest first.
    ///
    /// # Errors
    /// `unauthorized` for an API key, and for a token that has ended.
    pub async fn list_api_keys(&self) -> Result<Vec<ApiKey>, Error> {
        self.get_json(&self.url("/v1/api-keys")).await
    }

    /// Revokes a key; one that is not there is success.
    ///
    /// # Errors
    /// `unauthorized` for an API key, and for a token that has ended.
    pub async fn delete_api_key(&self, id: ApiKeyId) -> Result<(), Error> {
        self.idempotent(Method::DELETE, &self.url(&format!("/v1/api-keys/{id}"))).await.map(drop)
    }
}
