//! The two sides of a copy as people write them, and names on both.

use std::path::PathBuf;

use anyhow::bail;

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On this machine.
    Local(PathBuf),
    /// Standard input or output.
    Stdio,
    /// In a capsule.
    Remote {
        /// Id, or the beginning of one.
        capsule: String,
        /// Path in it.
        path: String,
    },
}

/// Reads `PATH`, `-` or `ID:PATH`. As with scp, a colon before any slash makes it remote.
pub(super) fn parse(argument: &str) -> anyhow::Result<Place> {
    match argument.split_once(':') {
        _ if argument == "-" => Ok(Place::Stdio),
        _ if argument.is_empty() => bail!("an empty path names nothing"),
        Some(("", _)) => {
            bail!("`{argument}` lacks the capsule before the colon; a local name is written ./{argument}")
        }
        Some((capsule, path)) if !capsule.contains('/') => {
            let path = if path.is_empty() { "." } else { path };
            Ok(Place::Remote { capsule: capsule.to_owned(), path: path.to_owned() })
        }
        _ => Ok(Place::Local(argument.into())),
    }
}

/// `name` in the directory `directory` of a capsule.
pub(super) fn join(directory: &str, name: &str) -> String {
    if directory.ends_with('/') { format!("{directory}{name}") } else { format!("{directory}/{name}") }
}

/// The name under which a source in a capsule is copied; `None` where its contents are meant (`.`, `dir/.`, `/`).
pub(super) fn own_name(path: &str) -> Option<&str> {
    let name = path.trim_end_matches('/').rsplit('/').next()?;
    is_safe_name(name).then_some(name).filter(|name| *name != "~")
}

/// Whether a name that a capsule listed may become a local name: one component that is not a step elsewhere.
pub(super) fn is_safe_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}
