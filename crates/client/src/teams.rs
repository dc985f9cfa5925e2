//! Teams and their members. Calls on one team need a token that speaks for it: [`Client::switch_team`].

use std::fmt;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use wrenn_core::{TeamId, UserId};

use crate::client::{Client, REQUEST_TIMEOUT, segment};
use crate::error::Error;
use crate::types::null_as_default;
use crate::when;

/// What a person may do in a team.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TeamRole {
    /// Everything, deleting the team included.
    Owner,
    /// Looks after the members, too.
    Admin,
    /// Uses what the team has.
    Member,
}

impl TeamRole {
    /// The name used on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Member => "member",
        }
    }
}

impl fmt::Display for TeamRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// Its id.
    pub id: TeamId,
    /// Its name, which other teams may have too.
    pub name: String,
    /// A short name that no other team has or had.
    pub slug: String,
    /// Whether it may bring hosts of its own.
    #[serde(default, deserialize_with = "null_as_default")]
    pub is_byoc: bool,
    /// When it was made.
    #[serde(with = "when")]
    pub created_at: OffsetDateTime,
    /// What the person who asks is in it; absent inside [`TeamDetails`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<TeamRole>,
}

/// A person in a team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub user_id: UserId,
    /// The person's name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub name: String,
    /// The person's address.
    pub email: String,
    /// What the person is in the team.
    pub role: TeamRole,
    /// Since when.
    #[serde(with = "when")]
    pub joined_at: OffsetDateTime,
}

/// A team and who is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamDetails {
    /// The team.
    pub team: Team,
    /// Its members, in the order in which they joined.
    #[serde(default, deserialize_with = "null_as_default")]
    pub members: Vec<Member>,
}

/// A person that a search found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserFound {
    /// Who.
    pub user_id: UserId,
    /// The person's address.
    pub email: String,
}

impl Client {
    /// The teams of the person, in the order in which they were joined.
    ///
    /// # Errors
    /// `unauthorized` for an API key, and for a token that has ended.
    pub async fn list_teams(&self) -> Result<Vec<Team>, Error> {
        self.get_json(&self.url("/v1/teams")).await
    }

    /// Makes a team that the person owns.
    ///
    /// # Errors
    /// `invalid_request` for a name outside the rules.
    pub async fn create_team(&self, name: &str) -> Result<Team, Error> {
        let response = self.post(&self.url("/v1/teams"), &json!({"name": name}), None).await?;
        self.json(response).await
    }

    /// A team and its members.
    ///
    /// # Errors
    /// `forbidden` where the token does not speak for it.
    pub async fn team(&self, team: TeamId) -> Result<TeamDetails, Error> {
        self.get_json(&self.team_url(team, "")).await
    }

    /// Renames a team.
    ///
    /// # Errors
    /// `forbidden` for a plain member, `invalid_request` for a name outside the rules.
    pub async fn rename_team(&self, team: TeamId, name: &str) -> Result<(), Error> {
        self.submit(Method::PATCH, &self.team_url(team, ""), &json!({"name": name})).await.map(drop)
    }

    /// Deletes a team with its capsules, keys and templates.
    ///
    /// # Errors
    /// `forbidden` for everybody but its owner.
    pub async fn delete_team(&self, team: TeamId) -> Result<(), Error> {
        self.idempotent(Method::DELETE, &self.team_url(team, "")).await.map(drop)
    }

    /// The members of a team, in the order in which they joined.
    ///
    /// # Errors
    /// `forbidden` where the token does not speak for it.
    pub async fn list_members(&self, team: TeamId) -> Result<Vec<Member>, Error> {
        self.get_json(&self.team_url(team, "/members")).await
    }

    /// Adds a person who has an account to a team.
    ///
    /// # Errors
    /// `not_found` where nobody has that address, `invalid_request` for a member, `forbidden` for a plain member.
    pub async fn add_member(&self, team: TeamId, email: &str) -> Result<Member, Error> {
        let response = self.post(&self.team_url(team, "/members"), &json!({"email": email}), None).await?;
        self.json(response).await
    }

    /// Makes a member an admin of the team, or a plain member again.
    ///
    /// # Errors
    /// `forbidden` for the owner's role and for plain members, `not_found` where the person is no member.
    pub async fn set_member_role(&self, team: TeamId, user: UserId, role: TeamRole) -> Result<(), Error> {
        let url = self.team_url(team, &format!("/members/{user}"));
        self.submit(Method::PATCH, &url, &json!({"role": role})).await.map(drop)
    }

    /// Removes a member from a team.
    ///
    /// # Errors
    /// `forbidden` for the owner and for plain members, `not_found` where the person is no member.
    pub async fn remove_member(&self, team: TeamId, user: UserId) -> Result<(), Error> {
        self.idempotent(Method::DELETE, &self.team_url(team, &format!("/members/{user}"))).await.map(drop)
    }

    /// Leaves a team.
    ///
    /// # Errors
    /// `forbidden` for its owner.
    pub async fn leave_team(&self, team: TeamId) -> Result<(), Error> {
        let request = self.request(Method::POST, &self.team_url(team, "/leave"));
        self.send(request.timeout(REQUEST_TIMEOUT)).await.map(drop)
    }

    /// At most ten people whose address begins so: at least three characters with an `@` among them.
    ///
    /// # Errors
    /// `invalid_request` for a shorter beginning.
    pub async fn search_users(&self, email: &str) -> Result<Vec<UserFound>, Error> {
        self.get_json(&self.url(&format!("/v1/users/search?email={}", segment(email)))).await
    }

    fn team_url(&self, team: TeamId, rest: &str) -> String {
        self.url(&format!("/v1/teams/{team}{rest}"))
    }
}
