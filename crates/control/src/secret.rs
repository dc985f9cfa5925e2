//! Random secrets and their hashes. A secret is shown once; what is stored is its SHA-256.

use sha2::{Digest, Sha256};

/// `2 * N` lower-case hex digits from `N` random bytes.
pub(crate) fn random_hex<const N: usize>() -> String {
    let mut bytes = [0u8; N];
    rand::fill(&mut bytes[..]);
    hex::encode(bytes)
}

/// Hex SHA-256 of a secret, the form in which secrets are stored and looked up.
pub(crate) fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_hex_sha256() {
        assert_eq!(hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn secrets_have_their_length_and_differ() {
        let (one, two) = (random_hex::<16>(), random_hex::<16>());
        assert_eq!(one.len(), 32);
        assert_ne!(one, two);
    }
}
