//! Stored sign-ins: one token for each deployment, in a file that nobody but its owner can read.
//!
//! The file is `$WRENN_CREDENTIALS`, else `$XDG_CONFIG_HOME/wrenn/credentials.json`, else
//! `~/.config/wrenn/credentials.json`. It is replaced as a whole by a file that had mode 0600 from its first moment.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use wrenn_client::{SignIn, TeamId, UserId};

use crate::output::{self, Hinted};

/// A person who is signed in to a deployment.
#[derive(Clone, Serialize, Deserialize)]
pub struct Login {
    /// The token.
    pub token: String,
    /// Who.
    pub user_id: UserId,
    /// The team that the token speaks for.
    pub team_id: TeamId,
    /// The person's address.
    pub email: String,
    /// When the token ends, where it says so.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user_id", &self.user_id).finish_non_exhaustive()
    }
}

impl From<SignIn> for Login {
    fn from(answer: SignIn) -> Self {
        let expires_at = expiry(&answer.token);
        let SignIn { token, user_id, team_id, email, .. } = answer;
        Self { token, user_id, team_id, email, expires_at }
    }
}

impl Login {
    /// Itself, unless its token has ended.
    ///
    /// # Errors
    /// That it has, and what to do.
    pub fn in_force(self) -> anyhow::Result<Self> {
        if self.expires_at.is_some_and(|end| end <= OffsetDateTime::now_utc()) {
            anyhow::bail!(Hinted::new(
                "your sign-in has expired; run `wrenn login`".to_owned(),
                "`wrenn logout` forgets it, and commands that need no person use the API key again",
            ));
        }
        Ok(self)
    }
}

/// When a JSON web token ends (RFC 7519, `exp`).
fn expiry(token: &str) -> Option<OffsetDateTime> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    OffsetDateTime::from_unix_timestamp(claims.get("exp")?.as_i64()?).ok()
}

/// What is in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// By base URL.
    #[serde(default)]
    logins: BTreeMap<String, Login>,
}

/// The file of stored sign-ins, which need not exist.
#[derive(Debug, Clone)]
pub struct Credentials {
    path: Option<PathBuf>,
    /// Whether the directory is this program's own, so that its mode is too.
    own_directory: bool,
}

impl Credentials {
    /// The file that the environment of this process names.
    pub fn from_environment() -> Self {
        Self::named_by(&|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
    }

    fn named_by(environment: &dyn Fn(&str) -> Option<PathBuf>) -> Self {
        if let Some(path) = environment("WRENN_CREDENTIALS") {
            return Self { path: Some(path), own_directory: false };
        }
        // Relative paths in that variable are to be ignored, says the XDG base directory specification.
        let config = environment("XDG_CONFIG_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| environment("HOME").map(|home| home.join(".config")));
        Self { path: config.map(|dir| dir.join("wrenn").join("credentials.json")), own_directory: true }
    }

    /// A file of a test.
    #[cfg(test)]
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path: Some(path), own_directory: false }
    }

    /// The sign-in to a deployment, by its normalised base URL.
    ///
    /// # Errors
    /// Where the file cannot be read or is damaged.
    pub fn get(&self, base_url: &str) -> anyhow::Result<Option<Login>> {
        Ok(self.read()?.logins.remove(base_url))
    }

    /// The base URLs that somebody is signed in to.
    ///
    /// # Errors
    /// Where the file cannot be read or is damaged.
    pub fn base_urls(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.read()?.logins.into_keys().collect())
    }

    /// Stores a sign-in in place of the one before.
    ///
    /// # Errors
    /// Where the file cannot be read or written.
    pub fn store(&self, base_url: &str, login: Login) -> anyhow::Result<()> {
        self.change(|logins| logins.insert(base_url.to_owned(), login)).map(drop)
    }

    /// Forgets the sign-in to a deployment, or to all, and tells which there were.
    ///
    /// # Errors
    /// Where the file cannot be read or written.
    pub fn forget(&self, base_url: Option<&str>) -> anyhow::Result<Vec<String>> {
        let known = self.base_urls()?;
        let gone: Vec<String> =
            known.into_iter().filter(|url| base_url.is_none_or(|wanted| wanted == url)).collect();
        if !gone.is_empty() {
            self.change(|logins| logins.retain(|url, _| !gone.contains(url)))?;
        }
        Ok(gone)
    }

    fn read(&self) -> anyhow::Result<Content> {
        let Some(path) = &self.path else { return Ok(Content::default()) };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Content::default());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        narrow(&file, path)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged; remove it and run `wrenn login`", path.display()))
    }

    fn change<T>(&self, edit: impl FnOnce(&mut BTreeMap<String, Login>) -> T) -> anyhow::Result<T> {
        let Some(path) = &self.path else {
            anyhow::bail!("no place for the sign-in: set HOME, or WRENN_CREDENTIALS to a file");
        };
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let failed = || format!("cannot write {}", path.display());
        DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(failed)?;
        if self.own_directory {
            fs::set_permissions(dir, Permissions::from_mode(0o700)).with_context(failed)?;
        }
        let opened = File::open(dir).with_context(failed)?;
        // Two commands at a time would each write what they have read, and one sign-in be lost.
        let _alone =
            Flock::lock(opened, FlockArg::LockExclusive).map_err(|(_, errno)| errno).with_context(failed)?;
        let mut content = self.read()?;
        let result = edit(&mut content.logins);
        // Made with mode 0600 under a name that nobody else has.
        let mut beside = tempfile::NamedTempFile::new_in(dir).with_context(failed)?;
        beside.write_all(&serde_json::to_vec_pretty(&content)?).with_context(failed)?;
        beside.as_file().sync_data().with_context(failed)?;
        beside.persist(path).map_err(|error| error.error).with_context(failed)?;
        Ok(result)
    }
}

/// Takes a file away from everybody but its owner.
fn narrow(file: &File, path: &Path) -> anyhow::Result<()> {
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        output::warn(&format!("others could read {}; only its owner can now", path.display()));
        file.set_permissions(Permissions::from_mode(0o600))
            .with_context(|| format!("cannot take {} away from others", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
