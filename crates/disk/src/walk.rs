//! Finding a chain from the name of its top.
//!
//! Each layer names what it builds on. A layer may come from anywhere, so what it says is checked before it is followed:
//! a name is a bare one of a disk's form, so nothing outside of the directory can be named; no file comes twice, there
//! is a most of them, and none is larger than what lies over it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::chain::{self, BASE, Chain};
use crate::{DiskError, MOST_LAYERS, files};

/// What a layer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Described {
    /// Capacity of the disk, bytes.
    pub(crate) virtual_bytes: u64,
    /// Name of what it builds on. Not checked.
    pub(crate) below: String,
}

/// The chain in `dir`, which is absolute, whose top is called `top`. `describe` reads the header of a layer.
pub(crate) fn walk(
    dir: &Path,
    top: &str,
    describe: impl Fn(&Path) -> Result<Described, DiskError>,
) -> Result<Chain, DiskError> {
    let mut found: Vec<(PathBuf, u64)> = Vec::new();
    let mut name = top.to_owned();
    let base = loop {
        let path = dir.join(&name);
        check_name(&path, &name, &found)?;
        let layer = describe(&path).map_err(|error| missing(error, !found.is_empty()))?;
        check_order(&path, layer.virtual_bytes, &found)?;
        found.push((path, layer.virtual_bytes));
        name = layer.below;
        if name == BASE {
            break dir.join(BASE);
        }
    };
    let length = files::open(&base).and_then(|file| Ok(file.metadata()?.len()));
    let length = length.map_err(|source| missing(DiskError::io("open", &base, source), true))?;
    check_order(&base, length, &found)?;
    let virtual_bytes = found.first().map_or(0, |(_, bytes)| *bytes);
    Ok(Chain { base, layers: found.into_iter().map(|(path, _)| path).rev().collect(), virtual_bytes })
}

fn check_name(path: &Path, name: &str, above: &[(PathBuf, u64)]) -> Result<(), DiskError> {
    if above.is_empty() {
        return match chain::is_layer_name(name) {
            true => Ok(()),
            false => Err(DiskError::not_a_layer(path, "its name is not that of a layer")),
        };
    }
    if !chain::is_layer_name(name) {
        return Err(refused(above, "it builds on a file whose name is not that of a disk in this directory"));
    }
    if above.iter().any(|(seen, _)| seen == path) {
        return Err(refused(above, "it builds on itself"));
    }
    if above.len() >= MOST_LAYERS {
        return Err(refused(above, "there are too many layers above it"));
    }
    Ok(())
}

fn check_order(path: &Path, bytes: u64, above: &[(PathBuf, u64)]) -> Result<(), DiskError> {
    match above.last() {
        Some((_, over)) if bytes > *over => {
            Err(DiskError::not_a_layer(path, "it is larger than the layer over it"))
        }
        _ => Ok(()),
    }
}

fn refused(above: &[(PathBuf, u64)], reason: &'static str) -> DiskError {
    DiskError::not_a_layer(above.last().map_or(Path::new(""), |(path, _)| path), reason)
}

fn missing(error: DiskError, is_backing: bool) -> DiskError {
    match error {
        DiskError::Io { path, source, .. } if is_backing && source.kind() == ErrorKind::NotFound => {
            DiskError::BackingMissing { path }
        }
        other => other,
    }
}
