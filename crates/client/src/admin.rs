//! Running the platform: all teams, all users, all templates. Everything here needs the token of a person who does.

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use wrenn_core::{TeamId, UserId};

use crate::client::{Client, segment};
use crate::error::Error;
use crate::templates::TemplateKind;
use crate::types::null_as_default;
use crate::when;

/// A team as those see it who run the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminTeam {
    /// Its id.
    pub id: TeamId,
    /// Its name.
    pub name: String,
    /// A short name that no other team has or had.
    pub slug: String,
    /// Whether it may bring hosts of its own.
    #[serde(default, deserialize_with = "null_as_default")]
    pub is_byoc: bool,
    /// When it was made.
    #[serde(with = "when")]
    pub created_at: OffsetDateTime,
    /// When it was deleted, where it was.
    #[serde(default, with = "when::option", skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<OffsetDateTime>,
    /// How many people are in it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub member_count: u64,
    /// Name of its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_name: Option<String>,
    /// Address of its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_email: Option<String>,
    /// How many of its capsules are not gone.
    #[serde(default, deserialize_with = "null_as_default")]
    pub active_sandbox_count: u64,
    /// How many channels it has.
    #[serde(default, deserialize_with = "null_as_default")]
    pub channel_count: u64,
    /// Virtual CPUs of its running capsules.
    #[serde(default, deserialize_with = "null_as_default")]
    pub running_vcpus: u64,
    /// Memory of its running capsules in MiB.
    #[serde(default, deserialize_with = "null_as_default")]
    pub running_memory_mb: u64,
}

/// A person as those see it who run the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminUser {
    /// Who.
    pub id: UserId,
    /// The person's address.
    pub email: String,
    /// The person's name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub name: String,
    /// Whether the person runs the platform.
    #[serde(default, deserialize_with = "null_as_default")]
    pub is_admin: bool,
    /// `inactive`, `active` or `disabled`.
    pub status: String,
    /// Since when.
    #[serde(with = "when")]
    pub created_at: OffsetDateTime,
    /// How many teams the person is in.
    #[serde(default, deserialize_with = "null_as_default")]
    pub teams_joined: u64,
    /// How many teams the person owns.
    #[serde(default, deserialize_with = "null_as_default")]
    pub teams_owned: u64,
}

/// A template as those see it who run the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminTemplate {
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
    #[serde(default, deserialize_with = "null_as_default")]
    pub size_bytes: u64,
    /// The team that owns it; the all-zero id for the platform.
    pub team_id: TeamId,
    /// When it was finished.
    #[serde(with = "when")]
    pub created_at: OffsetDateTime,
    /// Whether it can never be deleted.
    #[serde(default, deserialize_with = "null_as_default")]
    pub protected: bool,
}

/// A part of a long list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// What is in this part.
    pub items: Vec<T>,
    /// How many there are in all parts.
    pub total: u64,
    /// Which part this is, from 1.
    pub page: u32,
    /// How many one part holds.
    pub per_page: u32,
    /// How many parts there are.
    pub total_pages: u32,
}

/// The numbers of a page, beside its items.
#[derive(Deserialize)]
struct Numbers {
    total: u64,
    page: u32,
    per_page: u32,
    total_pages: u32,
}

#[derive(Deserialize)]
struct Teams {
    #[serde(default, deserialize_with = "null_as_default")]
    teams: Vec<AdminTeam>,
    #[serde(flatten)]
    numbers: Numbers,
}

#[derive(Deserialize)]
struct Users {
    #[serde(default, deserialize_with = "null_as_default")]
    users: Vec<AdminUser>,
    #[serde(flatten)]
    numbers: Numbers,
}

impl<T> Page<T> {
    fn new(items: Vec<T>, numbers: &Numbers) -> Self {
        let &Numbers { total, page, per_page, total_pages } = numbers;
        Self { items, total, page, per_page, total_pages }
    }
}

impl Client {
    /// The teams of the platform: those that live first, then newest first. Pages count from 1.
    ///
    /// # Errors
    /// `forbidden` for everybody but those who run the platform.
    pub async fn admin_teams(&self, page: u32) -> Result<Page<AdminTeam>, Error> {
        let found: Teams = self.get_json(&self.url(&format!("/v1/admin/teams?page={page}"))).await?;
        Ok(Page::new(found.teams, &found.numbers))
    }

    /// Lets a team bring hosts of its own, for good.
    ///
    /// # Errors
    /// `forbidden` for everybody but those who run the platform, `not_found`.
    pub async fn admin_enable_byoc(&self, team: TeamId) -> Result<(), Error> {
        let url = self.url(&format!("/v1/admin/teams/{team}/byoc"));
        self.submit(Method::PUT, &url, &json!({"enabled": true})).await.map(drop)
    }

    /// Deletes a team with its capsules, keys and templates.
    ///
    /// # Errors
    /// `forbidden` for everybody but those who run the platform, `not_found`.
    pub async fn admin_delete_team(&self, team: TeamId) -> Result<(), Error> {
        self.idempotent(Method::DELETE, &self.url(&format!("/v1/admin/teams/{team}"))).await.map(drop)
    }

    /// The users of the platform, newest first. Pages count from 1.
    ///
    /// # Errors
    /// `forbidden` for everybody but those who run the platform.
    pub async fn admin_users(&self, page: u32) -> Result<Page<AdminUser>, Error> {
        let found: Users = self.get_json(&self.url(&format!("/v1/admin/users?page={page}"))).await?;
        Ok(Page::new(found.users, &found.numbers))
    }

    /// Lets a person in again, or shuts them out: their keys are removed then, and the capsules of their teams destroyed.
    ///
    /// # Errors
    /// `invalid_request` for oneself, `forbidden` for everybody but those who run the platform, `not_found`.
    pub async fn admin_set_user_active(&self, user: UserId, active: bool) -> Result<(), Error> {
        let url = self.url(&format!("/v1/admin/users/{user}/active"));
        self.submit(Method::PUT, &url, &json!({"active": active})).await.map(drop)
    }

    /// Makes a person one of those who run the platform, or no longer.
    ///
    /// # Errors
    /// `invalid_request` for the last one, `forbidden` for everybody but those who run the platform, `not_found`.
    pub async fn admin_set_user_admin(&self, user: UserId, admin: bool) -> Result<(), Error> {
        let url = self.url(&format!("/v1/admin/users/{user}/admin"));
        self.submit(Method::PUT, &url, &json!({"admin": admin})).await.map(drop)
    }

    /// The templates of all teams, newest first.
    ///
    /// # Errors
    /// `forbidden` for everybody but those who run the platform.
    pub async fn admin_templates(&self) -> Result<Vec<AdminTemplate>, Error> {
        self.get_json(&self.url("/v1/admin/templates")).await
    }

    /// Deletes a template of the platform.
    ///
    /// # Errors
    /// `forbidden` for a protected one and for everybody but those who run the platform, `not_found`.
    pub async fn admin_delete_template(&self, name: &str) -> Result<(), Error> {
        let url = self.url(&format!("/v1/admin/templates/{}", segment(name)));
        self.idempotent(Method::DELETE, &url).await.map(drop)
    }
}
