//! Signing in, and a person's own account.

use std::fmt;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use wrenn_core::{TeamId, UserId};

use crate::client::Client;
use crate::error::Error;
use crate::teams::TeamRole;
use crate::types::null_as_default;

/// A person who is signed in, in one team.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct SignIn {
    /// The credential, for [`Client::with_token`]. It ends after some hours.
    pub token: String,
    /// Who.
    pub user_id: UserId,
    /// The team that the token speaks for.
    pub team_id: TeamId,
    /// The person's address.
    pub email: String,
    /// The person's name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub name: String,
}

impl fmt::Debug for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignIn").field("user_id", &self.user_id).finish_non_exhaustive()
    }
}

/// The account of the person who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Me {
    /// Who.
    pub user_id: UserId,
    /// The team that the token speaks for.
    pub team_id: TeamId,
    /// The person's name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub name: String,
    /// The person's address.
    pub email: String,
    /// What the person is in the team.
    pub role: TeamRole,
    /// Whether the person runs the platform.
    #[serde(default, deserialize_with = "null_as_default")]
    pub is_admin: bool,
    /// Whether the person can sign in with a password.
    #[serde(default, deserialize_with = "null_as_default")]
    pub has_password: bool,
    /// Other services that the person can sign in with.
    #[serde(default, deserialize_with = "null_as_default")]
    pub providers: Vec<String>,
}

/// An answer that is meant for people.
#[derive(Deserialize)]
struct Said {
    #[serde(default, deserialize_with = "null_as_default")]
    message: String,
}

impl Client {
    /// Signs a person in. Needs no credential.
    ///
    /// # Errors
    /// `unauthorized` for a wrong address or password, `account_not_activated`, `account_disabled`.
    pub async fn login(&self, email: &str, password: &str) -> Result<SignIn, Error> {
        self.sign_in("/v1/auth/login", &json!({"email": email, "password": password})).await
    }

    /// Asks for an account. What has to be done next is in the answer, for people. Needs no credential.
    ///
    /// # Errors
    /// `invalid_request` for an address, a password or a name outside the rules, `email_taken`, `signup_cooldown`.
    pub async fn signup(&self, email: &str, password: &str, name: &str) -> Result<String, Error> {
        let body = json!({"email": email, "password": password, "name": name});
        let response = self.post(&self.url("/v1/auth/signup"), &body, None).await?;
        Ok(self.json::<Said>(response).await?.message)
    }

    /// Activates an account with the token that the platform sent, and signs the person in. Needs no credential.
    ///
    /// # Errors
    /// `invalid_token`, `already_activated`.
    pub async fn activate(&self, token: &str) -> Result<SignIn, Error> {
        self.sign_in("/v1/auth/activate", &json!({"token": token})).await
    }

    /// A token that speaks for another team of the person. The one in use stays good until it ends.
    ///
    /// # Errors
    /// `forbidden` where the person is no member, `not_found` for an unknown or deleted team.
    pub async fn switch_team(&self, team: TeamId) -> Result<SignIn, Error> {
        self.sign_in("/v1/auth/switch-team", &json!({"team_id": team})).await
    }

    async fn sign_in(&self, path: &str, body: &serde_json::Value) -> Result<SignIn, Error> {
        let response = self.post(&self.url(path), body, None).await?;
        self.json(response).await
    }

    /// The account of the person whose token is used.
    ///
    /// # Errors
    /// `unauthorized` for an API key, and for a token that has ended.
    pub async fn me(&self) -> Result<Me, Error> {
        self.get_json(&self.url("/v1/me")).await
    }

    /// Changes the person's name, and gives a token that has the new one.
    ///
    /// # Errors
    /// `invalid_request` where it is not of 1 to 100 characters.
    pub async fn rename_me(&self, name: &str) -> Result<SignIn, Error> {
        let response = self.submit(Method::PATCH, &self.url("/v1/me"), &json!({"name": name})).await?;
        self.json(response).await
    }

    /// Changes the person's password, or sets the first one where `current` is `None`.
    ///
    /// # Errors
    /// `wrong_password`; `invalid_request` for one of fewer than 8 characters, and where there is a password to name.
    pub async fn change_password(&self, current: Option<&str>, new: &str) -> Result<(), Error> {
        let body = match current {
            Some(current) => json!({"current_password": current, "new_password": new}),
            None => json!({"confirm_password": new, "new_password": new}),
        };
        self.post(&self.url("/v1/me/password"), &body, None).await.map(drop)
    }

    /// Deletes the person's account, with the teams that have no other member. `email` is the person's own address,
    /// against mistakes.
    ///
    /// # Errors
    /// `invalid_request` for another address, `owns_team_with_members`.
    pub async fn delete_me(&self, email: &str) -> Result<(), Error> {
        self.submit(Method::DELETE, &self.url("/v1/me"), &json!({"confirmation": email})).await.map(drop)
    }
}
