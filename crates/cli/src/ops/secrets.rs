//! Secrets of a deployment that `wrenn up` makes at its first start.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// File in the data directory (mode 0600).
const FILE: &str = "secrets.json";

/// What must stay the same from start to start.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secrets {
    /// Signs tokens; 64 hex digits.
    pub jwt_secret: String,
    /// Seals what is secret in the database; 64 hex digits. Deployments of before have none yet.
    #[serde(default = "random_key")]
    pub secrets_key: String,
    /// Keys of before, which only open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub old_secrets_keys: Vec<String>,
}

/// 32 random bytes in hex.
fn random_key() -> String {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Secrets {
    /// The stored secrets, made where there are none.
    ///
    /// # Errors
    /// Where the file is damaged or cannot be written.
    pub fn open_or_create(dir: &Path) -> anyhow::Result<Self> {
        let path = Self::path(dir);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let stored: Self = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} is damaged; restore it from a backup", path.display()))?;
                // A key that was not there has just been made.
                if !String::from_utf8_lossy(&bytes).contains("\"secrets_key\"") {
                    stored.write(dir)?;
                }
                Ok(stored)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let (jwt_secret, secrets_key) = (random_key(), random_key());
                let made = Self { jwt_secret, secrets_key, old_secrets_keys: Vec::new() };
                made.write(dir)?;
                Ok(made)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Where the secrets of a data directory are.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        wrenn_agent::record::write_atomically(&Self::path(dir), &text, 0o600)?;
        Ok(())
    }

    /// Makes a new key the one that seals; the one until now only opens. Takes effect when the control plane starts anew.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn rotate(&mut self, dir: &Path) -> anyhow::Result<()> {
        let old = std::mem::replace(&mut self.secrets_key, random_key());
        self.old_secrets_keys.insert(0, old);
        self.write(dir)
    }

    /// Forgets the keys of before.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn forget_old(&mut self, dir: &Path) -> anyhow::Result<()> {
        if self.old_secrets_keys.is_empty() {
            return Ok(());
        }
        self.old_secrets_keys.clear();
        self.write(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_made_once_and_readable_by_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let first = Secrets::open_or_create(dir.path()).unwrap();
        let again = Secrets::open_or_create(dir.path()).unwrap();
        assert_eq!(first.jwt_secret, again.jwt_secret);
        assert_eq!((&first.secrets_key, first.jwt_secret.len()), (&again.secrets_key, 64));
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_deployment_of_before_gets_a_key_that_stays_and_a_rotation_keeps_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), r#"{"jwt_secret": "x"}"#).unwrap();
        let mut first = Secrets::open_or_create(dir.path()).unwrap();
        assert_eq!(Secrets::open_or_create(dir.path()).unwrap().secrets_key, first.secrets_key);
        let old = first.secrets_key.clone();
        first.rotate(dir.path()).unwrap();
        let mut rotated = Secrets::open_or_create(dir.path()).unwrap();
        assert_ne!(rotated.secrets_key, old);
        assert_eq!((rotated.jwt_secret.as_str(), &rotated.old_secrets_keys), ("x", &vec![old]));
        rotated.forget_old(dir.path()).unwrap();
        assert!(Secrets::open_or_create(dir.path()).unwrap().old_secrets_keys.is_empty());
    }
}
