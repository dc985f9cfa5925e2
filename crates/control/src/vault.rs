//! Secrets at rest.
//!
//! A secret is sealed with AES-256-GCM and stored as base64 (standard alphabet, padded) of the 12 bytes of the nonce, the
//! ciphertext and the 16 bytes of the tag. The seal is bound to the place where the secret is kept, as associated data: a
//! sealed secret that is copied to another row cannot be opened there.
//!
//! There is one key that seals, and there may be older ones that still open. A rotation makes a new key the one that seals,
//! seals everything anew, and then forgets the old one.

use std::fmt;
use std::str::FromStr;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const KEY_LEN: usize = 32;
const NONCE_LEN: usize = 12;

/// Why a secret cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// A key has another length or form.
    #[error("a secrets key must be 32 bytes, written as 64 hex digits or in base64")]
    Key,
    /// No key opens it.
    #[error(
        "a stored secret in {0} cannot be opened: none of the secrets keys is its own, or it was changed"
    )]
    Unreadable(String),
    /// The cipher refused, which it does for nothing of reasonable size.
    #[error("a secret could not be sealed")]
    Seal,
}

/// A key that seals secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey([u8; KEY_LEN]);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").finish_non_exhaustive()
    }
}

impl FromStr for SecretKey {
    type Err = VaultError;

    fn from_str(text: &str) -> Result<Self, VaultError> {
        let text = text.trim();
        let bytes =
            if text.len() == 2 * KEY_LEN { hex::decode(text).ok() } else { STANDARD.decode(text).ok() };
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(VaultError::Key)
    }
}

/// The keys of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretKeys {
    /// Seals and opens.
    pub current: SecretKey,
    /// Only open what was sealed before a rotation.
    pub old: Vec<SecretKey>,
}

/// Seals and opens secrets.
pub(crate) struct Vault {
    /// The first one seals.
    ciphers: Vec<Aes256Gcm>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("keys", &self.ciphers.len()).finish_non_exhaustive()
    }
}

impl Vault {
    pub(crate) fn new(keys: &SecretKeys) -> Self {
        let all = std::iter::once(&keys.current).chain(&keys.old);
        Self { ciphers: all.map(|key| Aes256Gcm::new(&key.0.into())).collect() }
    }

    /// Seals a secret for the place where it is kept.
    pub(crate) fn seal(&self, place: &str, secret: &[u8]) -> Result<String, VaultError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce[..]);
        let cipher = self.ciphers.first().ok_or(VaultError::Key)?;
        let payload = Payload { msg: secret, aad: place.as_bytes() };
        let sealed = cipher.encrypt(&Nonce::from(nonce), payload).map_err(|_| VaultError::Seal)?;
        Ok(STANDARD.encode([&nonce[..], &sealed].concat()))
    }

    /// Opens what was sealed for this place with any of the keys.
    pub(crate) fn open(&self, place: &str, sealed: &str) -> Result<Vec<u8>, VaultError> {
        self.find(place, sealed).map(|(secret, _)| secret)
    }

    /// The same secret sealed with the current key; nothing where it is already.
    pub(crate) fn reseal(&self, place: &str, sealed: &str) -> Result<Option<String>, VaultError> {
        match self.find(place, sealed)? {
            (_, 0) => Ok(None),
            (secret, _) => self.seal(place, &secret).map(Some),
        }
    }

    fn find(&self, place: &str, sealed: &str) -> Result<(Vec<u8>, usize), VaultError> {
        let unreadable = || VaultError::Unreadable(place.to_owned());
        let bytes = STANDARD.decode(sealed).map_err(|_| unreadable())?;
        let (nonce, ciphertext) = bytes.split_first_chunk::<NONCE_LEN>().ok_or_else(unreadable)?;
        let nonce = Nonce::from(*nonce);
        for (index, cipher) in self.ciphers.iter().enumerate() {
            if let Ok(secret) = cipher.decrypt(&nonce, Payload { msg: ciphertext, aad: place.as_bytes() }) {
                return Ok((secret, index));
            }
        }
        Err(unreadable())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> SecretKey {
        SecretKey([byte; KEY_LEN])
    }

    fn vault(current: u8, old: &[u8]) -> Vault {
        Vault::new(&SecretKeys { current: key(current), old: old.iter().map(|&byte| key(byte)).collect() })
    }

    #[test]
    fn a_key_is_read_from_hex_and_base64_and_never_shown() {
        let hex: SecretKey = "07".repeat(32).parse().unwrap();
        let base64: SecretKey = STANDARD.encode([7; 32]).parse().unwrap();
        assert_eq!((hex, base64), (key(7), key(7)));
        for bad in ["", "07", &"zz".repeat(32), &STANDARD.encode([7; 31])] {
            assert_eq!(bad.parse::<SecretKey>(), Err(VaultError::Key), "{bad}");
        }
        assert!(!format!("{:?}", key(7)).contains('7'));
    }

    #[test]
    fn a_rotation_opens_the_old_and_seals_with_the_new() {
        let (before, during, after) = (vault(1, &[]), vault(2, &[1]), vault(2, &[]));
        let sealed = before.seal("a/1", b"secret").unwrap();
        assert_eq!(during.open("a/1", &sealed).unwrap(), b"secret");
        assert_eq!(after.open("a/1", &sealed), Err(VaultError::Unreadable("a/1".into())));
        let resealed = during.reseal("a/1", &sealed).unwrap().unwrap();
        assert_eq!(after.open("a/1", &resealed).unwrap(), b"secret");
        assert_eq!(during.reseal("a/1", &resealed).unwrap(), None);
    }

    proptest! {
        #[test]
        fn only_the_very_secret_in_its_own_place_can_be_opened(secret: Vec<u8>, flip in 0usize..200, bit in 0u8..8) {
            let vault = vault(1, &[]);
            let sealed = vault.seal("a/1", &secret).unwrap();
            prop_assert_eq!(vault.open("a/1", &sealed).unwrap(), secret);
            prop_assert!(vault.open("a/2", &sealed).is_err());
            let mut bytes = STANDARD.decode(&sealed).unwrap();
            let at = flip % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(vault.open("a/1", &STANDARD.encode(bytes)).is_err());
        }
    }
}
