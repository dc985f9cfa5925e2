//! Passwords: Argon2id with the second recommended parameters of RFC 9106 (64 MiB, three passes, four lanes).

use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;

/// KiB.
const MEMORY: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// Hashes in the making at a time: each takes a core and 64 MiB.
const AT_ONCE: usize = 2;

/// Hashes and checks passwords, few at a time.
#[derive(Debug)]
pub(crate) struct Passwords {
    turns: Arc<Semaphore>,
    /// What passwords of accounts that do not exist are compared with, so that such a check takes as long as any.
    nobody: String,
}

/// A password could not be hashed.
#[derive(Debug, thiserror::Error)]
#[error("a password could not be hashed")]
pub(crate) struct HashError;

fn hasher() -> Result<Argon2<'static>, HashError> {
    let params = Params::new(MEMORY, PASSES, LANES, None).map_err(|_| HashError)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(password: &str) -> Result<String, HashError> {
    let hash = hasher()?.hash_password(password.as_bytes()).map_err(|_| HashError)?;
    Ok(hash.to_string())
}

impl Passwords {
    /// Takes as long as one hash.
    pub(crate) fn new() -> Result<Self, HashError> {
        let nobody = hash(&crate::secret::random_hex::<16>())?;
        Ok(Self { turns: Arc::new(Semaphore::new(AT_ONCE)), nobody })
    }

    /// A PHC string of a password, for commands that make one and end.
    pub(crate) fn hash_once(password: &str) -> Result<String, HashError> {
        hash(password)
    }

    /// A PHC string of the password.
    pub(crate) async fn hash(&self, password: String) -> Result<String, HashError> {
        self.in_turn(move || hash(&password)).await?
    }

    /// Whether the password is the one of the hash. Without a hash it is not, after the same time.
    pub(crate) async fn matches(&self, password: String, hash: Option<String>) -> Result<bool, HashError> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.clone());
        let matches = self
            .in_turn(move || {
                let parsed = PasswordHash::new(&hash).map_err(|_| HashError)?;
                Ok(hasher()?.verify_password(password.as_bytes(), &parsed).is_ok())
            })
            .await??;
        Ok(known && matches)
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HashError> {
        // The permit goes with the work: a caller that leaves does not let another in beside it.
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| HashError)?;
        let work = move || {
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| HashError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_is_argon2id_of_the_recommended_strength_and_matches_its_password_only() {
        let passwords = Passwords::new().unwrap();
        let hash = passwords.hash("correct horse".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=65536,t=3,p=4$"), "{hash}");
        assert!(passwords.matches("correct horse".into(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.matches("Correct horse".into(), Some(hash)).await.unwrap());
        assert!(!passwords.matches("anything".into(), None).await.unwrap());
    }
}
