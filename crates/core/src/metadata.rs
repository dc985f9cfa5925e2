//! Labels that callers put on a capsule.

use std::collections::BTreeMap;

use crate::name;

/// Most labels on one capsule.
pub const MAX_KEYS: usize = 20;
/// Longest value, in characters.
pub const MAX_VALUE_LEN: usize = 64;
/// Keys that the platform sets itself on a running capsule; callers may not.
pub const SYSTEM_KEYS: [&str; 4] = ["kernel_version", "vmm_version", "agent_version", "envd_version"];

/// Labels by key, string to string.
pub type Metadata = BTreeMap<String, String>;

/// Why labels are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// More than [`MAX_KEYS`].
    #[error("metadata holds at most {MAX_KEYS} keys, this one has {0}")]
    TooManyKeys(usize),
    /// A key that is not a safe name.
    #[error(
        "metadata key `{0}` must begin with a letter or digit and hold at most 64 letters, digits, dots, dashes and underscores"
    )]
    Key(String),
    /// A value longer than [`MAX_VALUE_LEN`].
    #[error("the value of metadata key `{0}` is longer than {MAX_VALUE_LEN} characters")]
    Value(String),
    /// One of [`SYSTEM_KEYS`].
    #[error("metadata key `{0}` is set by the platform; choose another name")]
    Reserved(String),
}

/// Checks labels against the limits above.
///
/// # Errors
/// The first rule that is broken, in key order.
pub fn validate(metadata: &Metadata) -> Result<(), MetadataError> {
    if metadata.len() > MAX_KEYS {
        return Err(MetadataError::TooManyKeys(metadata.len()));
    }
    for (key, value) in metadata {
        if SYSTEM_KEYS.contains(&key.as_str()) {
            return Err(MetadataError::Reserved(key.clone()));
        }
        if !name::is_safe(key) {
            return Err(MetadataError::Key(key.clone()));
        }
        if value.chars().count() > MAX_VALUE_LEN {
            return Err(MetadataError::Value(key.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &str) -> Metadata {
        Metadata::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn the_limits_hold_at_their_edges() {
        assert_eq!(validate(&one("env", &"é".repeat(64))), Ok(()));
        assert_eq!(validate(&one("env", &"é".repeat(65))), Err(MetadataError::Value("env".into())));
        assert_eq!(validate(&one("a b", "")), Err(MetadataError::Key("a b".into())));
        assert_eq!(validate(&one("vmm_version", "x")), Err(MetadataError::Reserved("vmm_version".into())));
        let many = |n: usize| (0..n).map(|i| (format!("k{i}"), String::new())).collect::<Metadata>();
        assert_eq!(validate(&many(20)), Ok(()));
        assert_eq!(validate(&many(21)), Err(MetadataError::TooManyKeys(21)));
    }
}
