//! Names that people give: templates, snapshots, channels.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Longest name in characters.
pub const MAX_NAME_LEN: usize = 64;

/// A name that is safe in a URL, a path and a shell: `^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SafeName(String);

/// The text is not a [`SafeName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "must begin with a letter or digit and hold at most {MAX_NAME_LEN} letters, digits, dots, dashes and underscores"
)]
pub struct NameError;

impl SafeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `text` follows the rule of [`SafeName`].
pub fn is_safe(text: &str) -> bool {
    let Some(first) = text.bytes().next() else { return false };
    text.len() <= MAX_NAME_LEN
        && first.is_ascii_alphanumeric()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl FromStr for SafeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_safe(text) { Ok(Self(text.to_owned())) } else { Err(NameError) }
    }
}

impl fmt::Display for SafeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SafeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_and_refuses() {
        for good in ["minimal", "a", "0", "A.b_c-d", &"x".repeat(64)] {
            assert!(good.parse::<SafeName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "é", "../x", &"x".repeat(65)] {
            assert!(bad.parse::<SafeName>().is_err(), "{bad:?}");
        }
    }
}
