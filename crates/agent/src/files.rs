//! Small things that are done to files in more than one place.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Brings files and their names to the disk.
///
/// # Errors
/// Where the disk fails.
pub(crate) fn sync<'a>(files: impl IntoIterator<Item = &'a Path>) -> io::Result<()> {
    let mut directories = BTreeSet::new();
    for file in files {
        File::open(file)?.sync_all()?;
        directories.extend(file.parent());
    }
    directories.into_iter().try_for_each(|dir| File::open(dir)?.sync_all())
}

/// Brings the names in a directory, and the directory's own, to the disk.
///
/// # Errors
/// Where the disk fails.
pub(crate) fn sync_names(dir: &Path) -> io::Result<()> {
    let own = dir.parent().into_iter();
    std::iter::once(dir).chain(own).try_for_each(|dir| File::open(dir)?.sync_all())
}

/// Lets every user read a file that nobody writes any more. Who may get at it is decided by the directories it is in.
pub(crate) fn share_reading(file: &Path) -> io::Result<()> {
    fs::set_permissions(file, Permissions::from_mode(0o444))
}

/// Removes a directory with all that is in it; one that is gone already is fine.
///
/// # Errors
/// Where something does not go.
pub(crate) fn remove_directory(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Bytes that the files in a directory take on the disk: blocks, not lengths, and those of shared files too.
///
/// # Errors
/// Where the directory cannot be read.
pub(crate) fn allocated_bytes(dir: &Path) -> io::Result<u64> {
    fs::read_dir(dir)?.try_fold(0, |sum, entry| Ok(sum + entry?.metadata()?.blocks() * 512))
}
