//! The templates on this host: base images, and snapshots made from capsules.
//!
//! ```text
//!   templates/<team>/<id>/   template.json + raw disk            a base image
//!                            snapshot.json + a saved machine     a snapshot
//! ```
//!
//! A snapshot is written in a staging directory and takes its place by one rename, so a template is whole or not there.
//! Capsules hold links of its files, so removing it hurts none of them.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::capsule::Snapshot;
use crate::error::CapsuleError;
use crate::fault;
use crate::files;
use crate::images::Template;
use crate::record::{Defaults, write_atomically};
use crate::saved::Saved;
use crate::staging::{Staged, Staging};

/// A snapshot's description in its directory.
const SNAPSHOT_FILE: &str = "snapshot.json";
/// Version of the description.
const VERSION: u32 = 1;

/// What a capsule can be made from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A disk to boot.
    Base(Box<Template>),
    /// A machine to bring back.
    Snapshot(Box<SnapshotTemplate>),
}

/// A saved machine that is a template.
#[derive(Debug)]
pub(crate) struct SnapshotTemplate {
    pub(crate) dir: PathBuf,
    pub(crate) saved: Saved,
    pub(crate) defaults: Defaults,
}

#[derive(Debug, Serialize, Deserialize)]
struct Description {
    version: u32,
    name: String,
    saved: Saved,
    defaults: Defaults,
}

/// Finds, publishes and removes templates.
#[derive(Debug, Clone)]
pub struct Templates {
    root: PathBuf,
}

impl Templates {
    /// The templates below `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory of a template.
    pub(crate) fn dir(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// What the template at `path` (`<team>/<id>`) is.
    pub(crate) fn load(&self, path: &Path) -> Result<Source, CapsuleError> {
        let dir = self.dir(path);
        let unusable = |source| CapsuleError::Template { path: path.to_owned(), source };
        match fs::read(dir.join(SNAPSHOT_FILE)) {
            Ok(bytes) => {
                let Description { version, saved, defaults, .. } =
                    serde_json::from_slice(&bytes).map_err(|error| unusable(error.into()))?;
                if version != VERSION {
                    return Err(unusable(io::Error::other(format!("its version {version} is unknown"))));
                }
                Ok(Source::Snapshot(Box::new(SnapshotTemplate { dir, saved, defaults })))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Template::load(&dir).map(|base| Source::Base(Box::new(base))).map_err(unusable)
            }
            Err(error) => Err(unusable(error)),
        }
    }

    /// Makes the snapshot in `staged` the template `path`, called `name`, and says how many bytes it takes on the
    /// disk. Blocks.
    pub(crate) fn publish(
        &self,
        staged: Staged,
        snapshot: &Snapshot,
        path: &Path,
        name: &str,
    ) -> Result<u64, CapsuleError> {
        let description = Description {
            version: VERSION,
            name: name.to_owned(),
            saved: snapshot.saved.clone(),
            defaults: snapshot.defaults.clone(),
        };
        let text = serde_json::to_vec_pretty(&description).map_err(io::Error::other)?;
        write_atomically(&snapshot.dir.join(SNAPSHOT_FILE), &text, 0o600)?;
        fault::point("snapshot.described");
        let dir = self.dir(path);
        let parent = dir.parent().ok_or(ErrorKind::InvalidInput).map_err(io::Error::from)?;
        fs::create_dir_all(parent)?;
        let bytes = files::allocated_bytes(&snapshot.dir)?;
        match staged.move_to(&dir) {
            Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty) => {
                return Err(CapsuleError::TemplateExists { path: path.to_owned() });
            }
            moved => moved?,
        }
        fault::point("snapshot.published");
        Ok(bytes)
    }

    /// Removes a snapshot's files; one that is gone already is fine. Blocks.
    ///
    /// # Errors
    /// Where it cannot be taken from its place, in which it is as whole as before, or is a base image.
    pub fn remove(&self, path: &Path, staging: &Staging) -> io::Result<()> {
        let dir = self.dir(path);
        if dir.join("template.json").try_exists()? {
            return Err(io::Error::other("it is a base image"));
        }
        staging.take_away(&dir).map(drop)
    }
}
