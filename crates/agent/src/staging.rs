//! Directories in which something is made before it takes its place.
//!
//! They lie in `staging/` of the data directory, on the file system of what is linked into them. Each is removed with its
//! handle, and those of an agent that died when the next one starts.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::files;

/// Where all of them are.
#[derive(Debug, Clone)]
pub struct Staging {
    root: PathBuf,
}

/// One directory, of root alone.
#[derive(Debug)]
pub struct Staged {
    /// `None` once it has its place.
    dir: Option<PathBuf>,
}

impl Staging {
    /// Opens the directory `root` and empties it.
    ///
    /// # Errors
    /// Where it cannot be made or emptied.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        files::remove_directory(&root)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        Ok(Self { root })
    }

    /// A new empty directory.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn make(&self) -> io::Result<Staged> {
        let dir = self.new_path();
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Staged { dir: Some(dir) })
    }

    fn new_path(&self) -> PathBuf {
        self.root.join(hex::encode(rand::random::<[u8; 8]>()))
    }

    /// Takes what is at `place` away from there, durably, to be removed with the handle; `None` where nothing is. Makes
    /// nothing, so that a full disk is no obstacle.
    ///
    /// # Errors
    /// Where it cannot be renamed; it is then where it was.
    pub fn take_away(&self, place: &Path) -> io::Result<Option<Staged>> {
        let dir = self.new_path();
        match fs::rename(place, &dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            renamed => renamed?,
        }
        let staged = Staged { dir: Some(dir) };
        let parent = place.parent().ok_or(io::ErrorKind::InvalidInput)?;
        if let Err(error) = files::sync_names(parent) {
            // It may be there again after a power failure, and goes when it is asked for once more.
            warn!(?place, %error, "the disk does not confirm that a directory was removed");
        }
        Ok(Some(staged))
    }
}

impl Staged {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.as_deref().unwrap_or(Path::new("/nonexistent"))
    }

    /// Gives it its place, durably. Fails where something is there.
    ///
    /// # Errors
    /// Where it cannot be renamed; it is removed then.
    pub fn move_to(mut self, place: &Path) -> io::Result<()> {
        // An empty directory would be replaced by the rename.
        if place.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let parent = place.parent().ok_or(io::ErrorKind::InvalidInput)?;
        File::open(self.path())?.sync_all()?;
        fs::rename(self.path(), place)?;
        self.dir = None;
        files::sync_names(parent)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir
            && let Err(error) = files::remove_directory(dir)
        {
            warn!(?dir, %error, "a staging directory stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_found_no_place_is_gone_with_its_handle_or_at_the_next_start() {
        let data = tempfile::tempdir().unwrap();
        let staging = Staging::open(data.path().join("staging")).unwrap();
        let (kept, lost, left) = (staging.make().unwrap(), staging.make().unwrap(), staging.make().unwrap());
        fs::write(kept.path().join("file"), "text").unwrap();
        let place = data.path().join("place");
        kept.move_to(&place).unwrap();
        assert_eq!(fs::read(place.join("file")).unwrap(), b"text");
        let gone = lost.path().to_owned();
        drop(lost);
        assert!(!gone.exists());
        let taken = staging.make().unwrap();
        assert_eq!(taken.move_to(&place).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let stale = left.path().to_owned();
        std::mem::forget(left);
        assert!(stale.exists());
        Staging::open(data.path().join("staging")).unwrap();
        assert!(!stale.exists());
    }

    #[test]
    fn what_is_taken_away_is_gone_from_its_place_at_once_and_from_the_disk_with_its_handle() {
        let data = tempfile::tempdir().unwrap();
        let staging = Staging::open(data.path().join("staging")).unwrap();
        let place = data.path().join("place");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("file"), "text").unwrap();
        let taken = staging.take_away(&place).unwrap().unwrap();
        assert!(!place.exists());
        assert_eq!(fs::read(taken.path().join("file")).unwrap(), b"text");
        drop(taken);
        assert!(staging.take_away(&place).unwrap().is_none());
        assert_eq!(fs::read_dir(data.path().join("staging")).unwrap().count(), 0);
    }
}
