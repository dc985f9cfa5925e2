//! The same image in another directory, by hard links.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::copy::copy_sparse;
use crate::footer::open_file;
use crate::header::{FileEntry, check_name};
use crate::image::write_header;
use crate::partial::{PartialFile, partial_name, remove_if_there};
use crate::{Image, ImageError};

impl Image {
    /// Makes the image exist in `dir` as well, under the header `header_name`. Base and layers get names that begin with
    /// it; they are hard links, or copies on another file system and where a file has all the links it can have.
    /// With `durable` all of it, data included, is on the disk when this returns.
    ///
    /// # Errors
    /// [`ImageError`] where the name is none, or a link or the header cannot be made; all links made are gone then.
    pub fn link_into(&self, dir: &Path, header_name: &str, durable: bool) -> Result<Self, ImageError> {
        let target = dir.join(header_name);
        check_name(header_name).map_err(|fault| ImageError::invalid(&target, fault.to_string()))?;
        let mut made = Made(Vec::new());
        let mut header = self.header.clone();
        made.link(&self.base.path, dir, header_name, "base", &mut header.base)?;
        for (from, entry) in self.layer_paths().iter().zip(&mut header.layers) {
            made.link(from, dir, header_name, "layer", entry)?;
        }
        let image = Self::assemble(&target, header)?;
        if durable {
            image.sync_data()?;
        }
        write_header(&target, &image.header, durable)?;
        made.0.clear();
        Ok(image)
    }
}

/// Links made so far, removed unless the image was completed.
struct Made(Vec<PathBuf>);

impl Made {
    /// Links `from` into `dir` under a name made of the header's name and the file's identity, which it enters.
    fn link(
        &mut self,
        from: &Path,
        dir: &Path,
        header_name: &str,
        kind: &str,
        entry: &mut FileEntry,
    ) -> Result<(), ImageError> {
        let id = u128::from_be_bytes(entry.id);
        entry.name = format!("{header_name}.{id:032x}.{kind}");
        let to = dir.join(&entry.name);
        check_name(&entry.name).map_err(|fault| ImageError::invalid(&to, fault.to_string()))?;
        // What an image of the same name has already stays, whatever happens here.
        let new = fs::symlink_metadata(&to).is_err();
        link_or_copy(from, &to)?;
        if new {
            self.0.push(to);
        }
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // Best effort on the way out of a failure: the caller removes the directory or tries again.
            let _ = fs::remove_file(path);
        }
    }
}

/// Gives the content of `from` the name `to`, in place of what an earlier attempt may have left there.
fn link_or_copy(from: &Path, to: &Path) -> Result<(), ImageError> {
    let io = |source| ImageError::io("link", to, source);
    let partial = partial_name(to)?;
    remove_if_there(&partial).map_err(io)?;
    match fs::hard_link(from, &partial) {
        Ok(()) => {}
        Err(error) => {
            return match Errno::from_io_error(&error) {
                Some(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => copy(from, to),
                Some(Errno::NOENT) if !from.exists() => Err(ImageError::Missing { path: from.to_owned() }),
                _ => Err(io(error)),
            };
        }
    }
    let renamed = fs::rename(&partial, to);
    // Renaming one link of a file over another of the same file does nothing and leaves both.
    remove_if_there(&partial).and(renamed).map_err(io)
}

fn copy(from: &Path, to: &Path) -> Result<(), ImageError> {
    let (source, length) = open_file(from)?;
    let out = PartialFile::create(to)?;
    out.file.set_len(length).map_err(|source| ImageError::io("size", to, source))?;
    copy_sparse((&source, from), (&out.file, to), 0..length)?;
    out.commit(false).map(|_| ())
}
