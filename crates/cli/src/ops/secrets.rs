//! Secrets of a deployment that `wrenn up` makes at its first start.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// File in the data directory (mode 0600).
const FILE: &str = "secrets.json";

/// What must stay the same from start to start.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secrets {
    /// Signs tokens; 64 hex digits.
    pub jwt_secret: String,
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
        let path = dir.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged; restore it from a backup", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let bytes = rand::random::<[u8; 32]>();
                let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                let made = Self { jwt_secret: hex };
                wrenn_agent::record::write_atomically(&path, &serde_json::to_vec_pretty(&made)?, 0o600)?;
                Ok(made)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
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
        assert_eq!(first.jwt_secret.len(), 64);
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
