//! A person who is signed in, and what their commands share.

use wrenn_client::{Client, Error as ClientError, SignIn, Team, TeamId};

use crate::credentials::{Credentials, Login};
use crate::output::Hinted;

/// A person who is signed in to a deployment.
#[derive(Debug)]
pub struct Person {
    /// A client that speaks for the person, in the team of the sign-in.
    pub client: Client,
    /// The sign-in.
    pub login: Login,
    base_url: String,
    credentials: Credentials,
}

impl Person {
    /// The person of a stored sign-in.
    ///
    /// # Errors
    /// Where base URL or token are unusable.
    pub fn new(base_url: String, login: Login, credentials: Credentials) -> anyhow::Result<Self> {
        let client = Client::with_token(&base_url, &login.token)?;
        Ok(Self { client, login, base_url, credentials })
    }

    /// Where the person is signed in.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// A client that speaks for the person in a team: with the stored token, or with one for this command alone.
    ///
    /// # Errors
    /// Where the person is not in the team.
    pub async fn in_team(&self, team: TeamId) -> anyhow::Result<Client> {
        if team == self.login.team_id {
            return Ok(self.client.clone());
        }
        let there = self.client.switch_team(team).await?;
        Ok(Client::with_token(&self.base_url, &there.token)?)
    }

    /// Puts the person into another team for this and all later commands.
    ///
    /// # Errors
    /// Where the person is not in the team, or the sign-in cannot be stored.
    pub async fn switch(&self, team: TeamId) -> anyhow::Result<()> {
        let answer: SignIn = self.client.switch_team(team).await?;
        self.credentials.store(&self.base_url, answer.into())
    }

    /// The person's team that `text` names, by id, slug or name; without one, the team of the sign-in.
    ///
    /// # Errors
    /// Where it names none or several.
    pub async fn team(&self, text: Option<&str>) -> anyhow::Result<TeamId> {
        let Some(text) = text else { return Ok(self.login.team_id) };
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let teams = self.client.list_teams().await?;
        Ok(find(&teams, text, |team: &Team| (&team.slug, &team.name))?.id)
    }
}

/// The one among some teams that has this slug, or else this name.
///
/// # Errors
/// Where none has, or several have the name.
pub fn find<'a, T>(teams: &'a [T], text: &str, names: impl Fn(&T) -> (&str, &str)) -> anyhow::Result<&'a T> {
    if let Some(team) = teams.iter().find(|team| names(team).0 == text) {
        return Ok(team);
    }
    let named: Vec<&T> = teams.iter().filter(|team| names(team).1 == text).collect();
    match named.as_slice() {
        [] => anyhow::bail!("no team has the id, the slug or the name `{text}`"),
        [one] => Ok(*one),
        several => {
            let slugs: Vec<&str> = several.iter().map(|team| names(team).0).collect();
            anyhow::bail!(
                "{} teams have the name `{text}`; name one by its slug: {}",
                several.len(),
                slugs.join(", ")
            )
        }
    }
}

/// An error of a person's command. The hints for what the API says in general speak of keys and capsules.
pub fn explain(error: anyhow::Error) -> anyhow::Error {
    let code =
        error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()).and_then(ClientError::code);
    match code {
        Some("unauthorized") => {
            let hint = "the sign-in has ended; sign in again with `wrenn login`";
            Hinted::new(format!("{error:#}"), hint).into()
        }
        Some("not_found") => anyhow::anyhow!("{error:#}"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn teams_are_found_by_slug_before_name_and_only_where_one_fits() {
        let teams = [("a-1", "Red"), ("b-2", "Blue"), ("c-3", "Blue"), ("d-4", "a-1")];
        let found =
            |text: &str| find(&teams, text, |team| *team).map(|team| team.0).map_err(|e| e.to_string());
        assert_eq!(found("a-1").unwrap(), "a-1");
        assert_eq!(found("Red").unwrap(), "a-1");
        assert_eq!(
            found("Blue").unwrap_err(),
            "2 teams have the name `Blue`; name one by its slug: b-2, c-3"
        );
        assert_eq!(found("red").unwrap_err(), "no team has the id, the slug or the name `red`");
    }
}
