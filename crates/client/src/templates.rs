//! Templates: what capsules are made from, and making them from capsules.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use wrenn_core::{CapsuleId, CapsuleStatus, timestamp};

use crate::client::{Client, segment};
use crate::error::Error;
use crate::types::{Capsule, null_as_default};

/// Deadline of the request that makes a template.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long [`Client::create_snapshot_and_wait`] waits: what the platform allows, and a little more.
const SNAPSHOT: Duration = Duration::from_secs(660);

/// What a template holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateKind {
    /// A disk; capsules boot from it.
    Base,
    /// A disk with the memory and the processes on it; capsules go on from it.
    Snapshot,
}

impl TemplateKind {
    /// The name used on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Snapshot => "snapshot",
        }
    }
}

/// A template as the server describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// What it holds.
    #[serde(rename = "type")]
    pub kind: TemplateKind,
    /// vCPUs of every capsule made from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in MiB of every capsule made from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Bytes that it takes on its host; 0 where not measured.
    #[serde(default)]
    pub size_bytes: u64,
    /// When it was finished.
    #[serde(deserialize_with = "time::serde::rfc3339::deserialize", serialize_with = "timestamp::serialize")]
    pub created_at: OffsetDateTime,
    /// Whether it is the platform's, for all teams.
    #[serde(default)]
    pub platform: bool,
    /// Whether it can never be deleted.
    #[serde(default)]
    pub protected: bool,
    /// Labels.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// A template to be made from a capsule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSnapshot {
    /// A running or paused capsule.
    pub capsule: CapsuleId,
    /// Name of the template; `None` for one that the server makes up.
    pub name: Option<String>,
    /// Whether the team's template of the same name is replaced.
    pub overwrite: bool,
}

impl CreateSnapshot {
    /// A template whose name the server makes up.
    pub fn new(capsule: CapsuleId) -> Self {
        Self { capsule, name: None, overwrite: false }
    }

    /// Sets the name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Replaces the team's template of the same name.
    #[must_use]
    pub fn overwrite(mut self) -> Self {
        self.overwrite = true;
        self
    }
}

/// A template that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The capsule that it is made from.
    #[serde(flatten)]
    pub capsule: Capsule,
    /// Name of the template.
    pub name: String,
    /// Whether it is listed and usable already.
    #[serde(skip)]
    pub ready: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    sandbox_id: CapsuleId,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

impl Client {
    /// Asks for a template to be made from a capsule, which is `snapshotting` until it is ready and then as it was.
    ///
    /// # Errors
    /// `not_found` where the team has no such capsule, `invalid_state` where it neither runs nor is paused, `conflict`
    /// for a name that is taken or the platform's.
    pub async fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Snapshot, Error> {
        let query = if request.overwrite { "?overwrite=true" } else { "" };
        let body = Body { sandbox_id: request.capsule, name: request.name.as_deref() };
        let url = self.url(&format!("/v1/snapshots{query}"));
        let response = self.post(&url, &body, Some(SNAPSHOT_TIMEOUT)).await?;
        let ready = response.status() == StatusCode::CREATED;
        let snapshot: Snapshot = self.json(response).await?;
        Ok(Snapshot { ready, ..snapshot })
    }

    /// [`Client::create_snapshot`], then waits until the template is ready.
    ///
    /// # Errors
    /// Those of [`Client::create_snapshot`]; [`Error::NotMade`] where it failed after that, [`Error::TooSlow`].
    pub async fn create_snapshot_and_wait(&self, request: &CreateSnapshot) -> Result<Template, Error> {
        let replaced = match &request.name {
            Some(name) if request.overwrite => self.find_template(name).await?,
            _ => None,
        };
        let asked = self.create_snapshot(request).await?;
        if !asked.ready {
            self.wait_past(asked.capsule.id, CapsuleStatus::Snapshotting, SNAPSHOT).await?;
        }
        let found = self.find_template(&asked.name).await?;
        found
            .filter(|found| asked.ready || Some(found) != replaced.as_ref())
            .ok_or(Error::NotMade { name: asked.name })
    }

    /// The templates of the key's team and of the platform, newest first; all, or those of one kind.
    ///
    /// # Errors
    /// `unauthorized` for a bad key.
    pub async fn list_templates(&self, kind: Option<TemplateKind>) -> Result<Vec<Template>, Error> {
        let query = kind.map(|kind| format!("?type={}", kind.as_str())).unwrap_or_default();
        self.get_json(&self.url(&format!("/v1/snapshots{query}"))).await
    }

    /// Deletes a template of the key's team. Capsules made from it are not hurt.
    ///
    /// # Errors
    /// `not_found` for an unknown name, `forbidden` for a template of the platform, `conflict` where its host cannot
    /// remove the files now.
    pub async fn delete_template(&self, name: &str) -> Result<(), Error> {
        let url = self.url(&format!("/v1/snapshots/{}", segment(name)));
        self.idempotent(Method::DELETE, &url).await.map(drop)
    }

    async fn find_template(&self, name: &str) -> Result<Option<Template>, Error> {
        let all = self.list_templates(Some(TemplateKind::Snapshot)).await?;
        Ok(all.into_iter().find(|template| template.name == name))
    }
}
