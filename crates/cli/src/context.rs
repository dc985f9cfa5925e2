//! What every user command needs: where the API is, the credential for it, and how to speak to the person.
//!
//! The credential is the API key of `--api-key` or `WRENN_API_KEY`; else the stored sign-in to the deployment in question;
//! else the key in the `env` file of the data directory. What only a person may do takes the sign-in alone.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, IsTerminal};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use wrenn_client::{Client, normalise_base_url};

use crate::config::Settings;
use crate::credentials::{Credentials, Login};
use crate::envfile;
use crate::output::{self, Hinted};
use crate::person::Person;

/// Flags that every command takes.
#[derive(Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Configuration file [env: WRENN_CONFIG] [default: ./wrenn.toml, then /etc/wrenn/wrenn.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data directory of the deployment on this machine [env: WRENN_DIR] [default: /var/lib/wrenn]
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<String>,
    /// API key; where absent, the sign-in by `wrenn login`, else the key in the `env` file of the data directory
    #[arg(long, global = true, value_name = "KEY", env = "WRENN_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Base URL of the API; where absent, the one in the `env` file of the data directory
    #[arg(long, global = true, value_name = "URL", env = "WRENN_BASE_URL")]
    pub base_url: Option<String>,
    /// Write JSON instead of tables
    #[arg(long, global = true)]
    pub json: bool,
}

impl fmt::Debug for GlobalArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GlobalArgs").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

/// What a user command runs with.
#[derive(Debug)]
pub struct Context {
    /// The settings in force.
    pub settings: Settings,
    /// Whether results are written as JSON.
    pub json: bool,
    /// Whether results may be coloured.
    pub colour: bool,
    /// The stored sign-ins.
    pub credentials: Credentials,
    global: GlobalArgs,
}

/// With what a deployment is spoken to.
#[derive(Debug)]
enum Credential {
    Key(String),
    Login(Login),
}

impl Context {
    /// The context of a command line. Credentials are looked for only when a command asks for a client.
    pub fn new(global: GlobalArgs, settings: Settings) -> Self {
        let colour = output::may_colour(std::io::stdout().is_terminal());
        Self { json: global.json, colour, settings, credentials: Credentials::from_environment(), global }
    }

    /// A client of the API.
    ///
    /// # Errors
    /// Where no credential can be found, with the places that were looked at; where the sign-in has expired; where the
    /// file that holds it or the `env` file is unreadable or malformed; where the base URL is unusable.
    pub fn client(&self) -> anyhow::Result<Client> {
        let (base_url, credential) = access(&self.global, &self.settings, &self.credentials)?;
        Ok(match credential {
            Credential::Key(key) => Client::new(&base_url, &key)?,
            Credential::Login(login) => Client::with_token(&base_url, &login.token)?,
        })
    }

    /// The base URL of the deployment in question, normalised.
    ///
    /// # Errors
    /// Where it is unusable.
    pub fn base_url(&self) -> anyhow::Result<String> {
        Ok(normalise_base_url(&base_url(&self.global, &self.settings, &self.env_file()))?)
    }

    /// Whether the deployment in question is the one of this machine's data directory.
    ///
    /// # Errors
    /// Where the base URL is unusable.
    pub fn is_own_deployment(&self) -> anyhow::Result<bool> {
        let named = self.base_url()?;
        let listener = normalise_base_url(&local_url(self.settings.listen.value))?;
        let stored =
            self.env_file().remove("WRENN_BASE_URL").map(|url| normalise_base_url(&url)).transpose()?;
        Ok(named == listener || Some(named) == stored)
    }

    /// Whether an API key is given that goes before any sign-in where a key will do.
    pub fn has_given_key(&self) -> bool {
        given(self.global.api_key.as_ref()).is_some()
    }

    /// The `env` file, as far as it can be read.
    fn env_file(&self) -> BTreeMap<String, String> {
        read_env_file(&self.settings.dir.value.join("env")).unwrap_or_default()
    }

    /// The person who is signed in to the deployment, if one is.
    ///
    /// # Errors
    /// Where the sign-in has expired, or the file that holds it is unreadable.
    pub fn person_if_any(&self) -> anyhow::Result<Option<Person>> {
        let base_url = self.base_url()?;
        let Some(login) = self.credentials.get(&base_url)? else { return Ok(None) };
        Person::new(base_url, login.in_force()?, self.credentials.clone()).map(Some)
    }

    /// The person who is signed in to the deployment.
    ///
    /// # Errors
    /// Where nobody is, with how to sign in; else as [`Context::person_if_any`].
    pub fn person(&self) -> anyhow::Result<Person> {
        if let Some(person) = self.person_if_any()? {
            return Ok(person);
        }
        let others = self.credentials.base_urls()?;
        let elsewhere =
            if others.is_empty() { String::new() } else { format!(" (but to {})", others.join(", ")) };
        anyhow::bail!(Hinted::new(
            format!("this needs a person, and nobody is signed in to {}{elsewhere}", self.base_url()?),
            "sign in with `wrenn login`; --base-url or WRENN_BASE_URL names another deployment",
        ))
    }

    /// Whether a person watches standard output.
    pub fn interactive(&self) -> bool {
        !self.json && std::io::stdout().is_terminal()
    }
}

fn given(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

fn base_url(global: &GlobalArgs, settings: &Settings, env: &BTreeMap<String, String>) -> String {
    given(global.base_url.as_ref())
        .or_else(|| env.get("WRENN_BASE_URL").cloned())
        .unwrap_or_else(|| local_url(settings.listen.value))
}

fn access(
    global: &GlobalArgs,
    settings: &Settings,
    credentials: &Credentials,
) -> anyhow::Result<(String, Credential)> {
    let path = settings.dir.value.join("env");
    // With another credential at hand, an unreadable file is nobody's concern.
    let (env, unreadable) = match read_env_file(&path) {
        Ok(env) => (env, None),
        Err(error) => (BTreeMap::new(), Some(error)),
    };
    let base_url = base_url(global, settings, &env);
    if let Some(key) = given(global.api_key.as_ref()) {
        return Ok((base_url, Credential::Key(key)));
    }
    if let Some(login) = credentials.get(&normalise_base_url(&base_url)?)? {
        return Ok((base_url, Credential::Login(login.in_force()?)));
    }
    if let Some(error) = unreadable {
        return Err(error);
    }
    let Some(key) = env.get("WRENN_API_KEY").cloned() else {
        anyhow::bail!(Hinted::new(
            format!(
                "no API key: neither --api-key nor WRENN_API_KEY is set, nobody is signed in to {base_url}, and {} has none",
                path.display()
            ),
            "start the platform with `wrenn up`, which writes that file, sign in with `wrenn login`, or set WRENN_API_KEY",
        ));
    };
    Ok((base_url, Credential::Key(key)))
}

/// The assignments of an `env` file; none where there is no file.
///
/// # Errors
/// Where the file cannot be read or holds something else than assignments.
pub fn read_env_file(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            anyhow::bail!(Hinted::new(
                format!("{} may not be read by this user", path.display()),
                "sign in with `wrenn login`, run the command as root, or set WRENN_API_KEY and WRENN_BASE_URL",
            ));
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    envfile::parse(&text).with_context(|| format!("cannot use {}", path.display()))
}

/// The URL under which this machine reaches a listener of its own.
pub fn local_url(listen: SocketAddr) -> String {
    let mut address = listen;
    if listen.ip().is_unspecified() {
        address.set_ip(match listen {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
}

#[cfg(test)]
mod tests;
