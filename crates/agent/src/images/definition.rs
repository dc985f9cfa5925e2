//! The declarative definition of a base image.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::ImageError;

const MINIMAL: &str = include_str!("../../../../images/minimal/image.toml");

/// Changes when the same definition begins to give another disk, so that disks are made anew.
const RECIPE: &str = "1";

/// What a base image consists of.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    pub(super) name: String,
    /// Debian's suite.
    pub(super) suite: String,
    pub(super) size_mb: u32,
    pub(super) packages: Vec<String>,
    pub(super) default_user: String,
    /// Ordinary users, each with a home, bash and membership of `sudo`.
    pub(super) users: Vec<String>,
    /// Variables of every process.
    pub(super) env: BTreeMap<String, String>,
    /// Directories to empty.
    pub(super) empty: Vec<PathBuf>,
    /// Symbolic links: path and target.
    pub(super) links: BTreeMap<PathBuf, PathBuf>,
    /// Files: path and content.
    pub(super) files: BTreeMap<PathBuf, String>,
    #[serde(skip)]
    text: String,
}

impl Definition {
    /// The definition of the template `minimal`.
    pub(super) fn built_in() -> Result<Self, ImageError> {
        Self::parse(MINIMAL)
    }

    fn parse(text: &str) -> Result<Self, ImageError> {
        Ok(Self { text: text.to_owned(), ..toml::from_str(text)? })
    }

    /// Tells one definition from another: 16 hexadecimal digits.
    pub(super) fn hash(&self) -> String {
        short_hash([RECIPE.as_bytes(), self.text.as_bytes()])
    }
}

/// The beginning of the SHA-256 of `parts`, each preceded by its length.
pub(super) fn short_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_definition_is_sound() {
        let definition = Definition::built_in().unwrap();
        assert_eq!((definition.name.as_str(), definition.size_mb), ("minimal", 1024));
        let paths = definition.links.keys().chain(definition.files.keys()).chain(&definition.empty);
        assert!(paths.clone().all(|path| path.is_absolute()));
        assert!(paths.clone().all(|path| !path.components().any(|part| part.as_os_str() == "..")));
    }

    #[test]
    fn any_change_of_the_text_changes_the_hash_and_nothing_else_does() {
        let definition = |text: &str| Definition::parse(text).unwrap().hash();
        assert_eq!(definition(MINIMAL), definition(MINIMAL));
        assert_ne!(definition(MINIMAL), definition(&MINIMAL.replace("\"git\",", "")));
        assert_eq!(definition(MINIMAL).len(), 16);
    }

    #[test]
    fn the_borders_of_the_hashed_parts_count() {
        let hash = |parts: [&str; 2]| short_hash(parts.map(str::as_bytes));
        assert_ne!(hash(["ab", "c"]), hash(["a", "bc"]));
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        let error = Definition::parse(&MINIMAL.replace("packages", "pakages")).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("pakages"));
    }
}
