//! What every user command needs: where the API is, the key for it, and how to speak to the person.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, IsTerminal};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use wrenn_client::Client;

use crate::config::Settings;
use crate::envfile;
use crate::output;

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
    /// API key; where absent, the one in the `env` file of the data directory
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
    global: GlobalArgs,
}

/// Where the API is and the key for it.
struct Credentials {
    base_url: String,
    api_key: String,
}

impl Context {
    /// The context of a command line. Credentials are looked for only when a command asks for a client.
    pub fn new(global: GlobalArgs, settings: Settings) -> Self {
        let colour = output::may_colour(std::io::stdout().is_terminal());
        Self { json: global.json, colour, settings, global }
    }

    /// A client of the API.
    ///
    /// # Errors
    /// Where no API key can be found, with the places that were looked at; where the `env` file is unreadable or
    /// malformed; where the base URL is unusable.
    pub fn client(&self) -> anyhow::Result<Client> {
        let found = credentials(&self.global, &self.settings)?;
        Ok(Client::new(&found.base_url, &found.api_key)?)
    }

    /// Whether a person watches standard output.
    pub fn interactive(&self) -> bool {
        !self.json && std::io::stdout().is_terminal()
    }
}

fn credentials(global: &GlobalArgs, settings: &Settings) -> anyhow::Result<Credentials> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (base_url, api_key) = (given(&global.base_url), given(&global.api_key));
    let path = settings.dir.value.join("env");
    let stored = match (read_env_file(&path), &api_key) {
        (Ok(stored), _) => stored,
        // With a key given, an unreadable file is nobody's concern.
        (Err(_), Some(_)) => BTreeMap::new(),
        (Err(error), None) => return Err(error),
    };
    let from_file = |name: &str| stored.get(name).cloned();
    let Some(api_key) = api_key.or_else(|| from_file("WRENN_API_KEY")) else {
        anyhow::bail!(output::Hinted::new(
            format!(
                "no API key: neither --api-key nor WRENN_API_KEY is set, and {} has none",
                path.display()
            ),
            "start the platform with `wrenn up`, which writes that file, or set WRENN_API_KEY",
        ));
    };
    let base_url =
        base_url.or_else(|| from_file("WRENN_BASE_URL")).unwrap_or_else(|| local_url(settings.listen.value));
    Ok(Credentials { base_url, api_key })
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
            anyhow::bail!(output::Hinted::new(
                format!("{} may not be read by this user", path.display()),
                "run the command as root, or set WRENN_API_KEY and WRENN_BASE_URL",
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
mod tests {
    use super::*;
    use crate::config::{Given, SettingFlags};

    fn resolve(
        env_file: Option<&str>,
        base_url: Option<&str>,
        api_key: Option<&str>,
    ) -> anyhow::Result<Credentials> {
        let dir = tempfile::tempdir().unwrap();
        if let Some(text) = env_file {
            std::fs::write(dir.path().join("env"), text).unwrap();
        }
        let config = dir.path().join("wrenn.toml");
        std::fs::write(&config, "listen = \"0.0.0.0:9\"").unwrap();
        let flags = SettingFlags::default();
        let given = Given { config: Some(&config), dir: dir.path().to_str(), flags: &flags };
        let settings = Settings::load(given).unwrap();
        let global = GlobalArgs {
            config: None,
            dir: None,
            api_key: api_key.map(str::to_owned),
            base_url: base_url.map(str::to_owned),
            json: false,
        };
        credentials(&global, &settings)
    }

    #[test]
    fn what_is_given_beats_the_env_file_and_the_env_file_beats_the_listener() {
        let file = "WRENN_API_KEY=wrn_f\nWRENN_BASE_URL='http://f'\n";
        let both = resolve(Some(file), Some("http://a"), Some("wrn_a")).unwrap();
        assert_eq!((both.base_url.as_str(), both.api_key.as_str()), ("http://a", "wrn_a"));
        let stored = resolve(Some(file), None, Some("")).unwrap();
        assert_eq!((stored.base_url.as_str(), stored.api_key.as_str()), ("http://f", "wrn_f"));
        let local = resolve(None, None, Some("wrn_a")).unwrap();
        assert_eq!(local.base_url, "http://127.0.0.1:9");
    }

    #[test]
    fn without_a_key_the_error_names_the_places_and_the_cure() {
        let Err(error) = resolve(None, Some("http://a"), None) else { panic!("no error") };
        assert!(error.to_string().contains("/env has none"), "{error}");
        assert!(output::hint(&error).is_some_and(|hint| hint.contains("wrenn up")));
        assert!(resolve(Some("what is this"), None, None).is_err());
    }

    #[test]
    fn a_listener_on_all_addresses_is_reached_on_loopback() {
        assert_eq!(local_url("[::]:80".parse().unwrap()), "http://[::1]:80");
        assert_eq!(local_url("10.0.0.1:80".parse().unwrap()), "http://10.0.0.1:80");
    }
}
