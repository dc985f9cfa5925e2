//! `wrenn login`, `wrenn logout` and `wrenn whoami`.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use time::OffsetDateTime;
use wrenn_client::{Client, Error as ClientError};
use wrenn_core::timestamp;

use crate::context::Context;
use crate::credentials::Login;
use crate::output::{self, Hinted};
use crate::prompt;

/// How to sign in.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// E-mail address of the account; asked for where absent
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
}

/// What to forget.
#[derive(Debug, Args)]
pub struct LogoutArgs {
    /// Forget the sign-ins to all deployments
    #[arg(long)]
    all: bool,
}

/// Signs in and stores the token.
///
/// # Errors
/// Where nobody can be asked, the platform refuses, or the token cannot be stored.
pub async fn login(args: LoginArgs, ctx: &Context) -> anyhow::Result<u8> {
    let base_url = ctx.base_url()?;
    let email = match args.email {
        Some(email) => email,
        None if prompt::possible() => prompt::line(&format!("E-mail for {base_url}: ")).await?,
        None => anyhow::bail!(Hinted::new(
            "no e-mail address: standard input is no terminal, so nobody can be asked".to_owned(),
            "give --email, and the password as the first line of standard input",
        )),
    };
    let password = prompt::secret("Password: ").await?;
    let answer = match Client::anonymous(&base_url)?.login(email.trim(), &password).await {
        // The hint for what is unauthorized speaks of keys and of this very command.
        Err(ClientError::Api(refusal)) if refusal.code == "unauthorized" => anyhow::bail!("{refusal}"),
        answer => answer?,
    };
    let login = Login::from(answer);
    ctx.credentials.store(&base_url, login.clone())?;
    if ctx.json {
        output::json(&json!({
            "base_url": base_url, "user_id": login.user_id, "team_id": login.team_id, "email": login.email,
            "expires_at": login.expires_at.map(timestamp::format),
        }))?;
    } else {
        let until = login.expires_at.map(|end| format!(" for {}", remaining(end))).unwrap_or_default();
        output::line(&format!("Signed in to {base_url} as {}{until}.", output::clean(&login.email)))?;
    }
    if ctx.has_given_key() {
        output::say(
            "The API key that is set (WRENN_API_KEY) still goes first, except where a person is needed.",
        );
    }
    Ok(0)
}

/// Forgets the stored token. The token itself stays good until it ends.
///
/// # Errors
/// Where the file that holds it cannot be changed.
pub fn logout(args: &LogoutArgs, ctx: &Context) -> anyhow::Result<u8> {
    let base_url = ctx.base_url()?;
    let gone = ctx.credentials.forget((!args.all).then_some(base_url.as_str()))?;
    if ctx.json {
        output::json(&json!({"signed_out": gone}))?;
    } else if gone.is_empty() {
        output::say(&format!("nobody was signed in to {}", if args.all { "anything" } else { &base_url }));
    } else {
        output::line(&format!("Signed out of {}.", gone.join(", ")))?;
    }
    Ok(0)
}

/// Shows who is signed in, as the platform sees it.
///
/// # Errors
/// Where nobody is signed in, or the platform refuses.
pub async fn whoami(ctx: &Context) -> anyhow::Result<u8> {
    let person = ctx.person()?;
    let me = person.client.me().await?;
    let ends = person.login.expires_at;
    if ctx.json {
        let mut value = serde_json::to_value(&me)?;
        value["base_url"] = json!(person.base_url());
        value["expires_at"] = json!(ends.map(timestamp::format));
        output::json(&value)?;
        return Ok(0);
    }
    let teams = person.client.list_teams().await?;
    let team = teams.iter().find(|team| team.id == me.team_id);
    let team = team.map_or_else(
        || format!("{} (no longer yours)", me.team_id),
        |team| format!("{} ({}), {}", output::clean(&team.name), team.slug, me.role),
    );
    let mut rows = vec![
        ("User", format!("{} <{}>", output::clean(&me.name), output::clean(&me.email))),
        ("Id", me.user_id.to_string()),
        ("Team", team),
        ("Platform", if me.is_admin { "runs it" } else { "uses it" }.to_owned()),
        ("API", person.base_url().to_owned()),
    ];
    rows.extend(ends.map(|end| ("Signed in", format!("for {}", remaining(end)))));
    let lines: String = rows.iter().map(|(name, value)| format!("{name:<11}{value}\n")).collect();
    output::write(lines.as_bytes())?;
    Ok(0)
}

fn remaining(end: OffsetDateTime) -> String {
    let left = Duration::try_from(end - OffsetDateTime::now_utc()).unwrap_or_default();
    match left.as_secs() / 60 {
        minutes @ 0..120 => format!("{minutes} more minutes"),
        minutes => format!("{} more hours", minutes / 60),
    }
}
