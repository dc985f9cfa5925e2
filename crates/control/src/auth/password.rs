//! Passwords: Argon2id with the second recommended parameters of RFC 9106 (64 MiB, three passes, four lanes).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;

/// KiB.
const MEMORY: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// Hashes in the making at a time: each takes a core and 64 MiB.
const AT_ONCE: usize = 2;
/// Hashes in the making or waiting; whoever comes later is asked to come again.
const MOST_WAITING: usize = 64;

/// Hashes and checks passwords, few at a time.
#[derive(Debug)]
pub(crate) struct Passwords {
    turns: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    /// What passwords of accounts that do not exist are compared with, so that such a check takes as long as any.
    nobody: String,
}

/// A password could not be hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HashError {
    /// Too many wait for their turn.
    #[error("too many passwords wait to be checked")]
    Busy,
    /// A stored hash is none, or there is no memory.
    #[error("a password could not be hashed: its stored hash is damaged, or memory is short")]
    Failed,
}

/// A place among those who wait or are at it.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn enter(all: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(all.clone());
        // Counted even where it is one too many: dropping it takes that back.
        (all.fetch_add(1, Ordering::Relaxed) < MOST_WAITING).then_some(place)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn hasher() -> Result<Argon2<'static>, HashError> {
    let params = Params::new(MEMORY, PASSES, LANES, None).map_err(|_| HashError::Failed)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(password: &str) -> Result<String, HashError> {
    let hash = hasher()?.hash_password(password.as_bytes()).map_err(|_| HashError::Failed)?;
    Ok(hash.to_string())
}

impl Passwords {
    /// Takes as long as one hash.
    pub(crate) fn new() -> Result<Self, HashError> {
        let nobody = hash(&crate::secret::random_hex::<16>())?;
        Ok(Self { turns: Arc::new(Semaphore::new(AT_ONCE)), waiting: Arc::default(), nobody })
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
                let parsed = PasswordHash::new(&hash).map_err(|_| HashError::Failed)?;
                Ok(hasher()?.verify_password(password.as_bytes(), &parsed).is_ok())
            })
            .await??;
        Ok(known && matches)
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HashError> {
        let waiting = Waiting::enter(&self.waiting).ok_or(HashError::Busy)?;
        // The permit goes with the work: a caller that leaves does not let another in beside it.
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| HashError::Failed)?;
        let work = move || {
            let _turn = (turn, waiting);
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| HashError::Failed)
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
