//! Which bases and layers this process has read through already.
//!
//! Thousands of images share a base, which is hundreds of megabytes long and never changes, so it is checked once; layers
//! are shared by the images that were forked from one. A file is recognised by its inode, its time of modification, its
//! identity and the sum of its sums. The time of the last change of the inode is left out on purpose: every hard link to
//! the file sets it.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::footer::Footer;
use crate::{FileId, ImageError};

/// Files remembered. Beyond that all are forgotten, which costs one more reading of those in use.
const REMEMBERED: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    id: FileId,
    table_crc: u32,
}

/// Whether a file was found intact; locked while it is being read, so that others wait rather than read it as well.
type Verdict = Arc<Mutex<bool>>;

static VERDICTS: LazyLock<Mutex<HashMap<Key, Verdict>>> = LazyLock::new(Mutex::default);

/// Has an open base or layer read through, unless that was done before.
pub(crate) fn verify_once(
    file: &File,
    path: &Path,
    footer: &Footer,
    read_through: impl FnOnce() -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let meta = file.metadata().map_err(|source| ImageError::io("examine", path, source))?;
    let verdict = verdict(Key {
        device: meta.dev(),
        inode: meta.ino(),
        length: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        id: footer.id,
        table_crc: footer.table_crc,
    });
    let mut intact = verdict.lock().unwrap_or_else(PoisonError::into_inner);
    if !*intact {
        read_through()?;
        *intact = true;
    }
    Ok(())
}

fn verdict(key: Key) -> Verdict {
    let mut verdicts = VERDICTS.lock().unwrap_or_else(PoisonError::into_inner);
    if verdicts.len() >= REMEMBERED {
        verdicts.clear();
    }
    verdicts.entry(key).or_default().clone()
}
