//! A file on its way to its final name, and the buffer through which it is written.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::take;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{ImageError, RUN_BYTES};

/// From this many bytes on, copying into the buffer costs more than a system call.
const DIRECT_BYTES: usize = 256 << 10;

/// A file under a name of its own beside the final one. Dropped before [`PartialFile::commit`], it is gone.
#[derive(Debug)]
pub(crate) struct PartialFile {
    pub(crate) file: File,
    partial: PathBuf,
    target: PathBuf,
    committed: bool,
    /// A write failed, so that parts of the content are missing.
    failed: bool,
    /// Bytes that belong at `run_at` and are not written yet.
    run: Vec<u8>,
    run_at: u64,
    written: u64,
}

impl PartialFile {
    pub(crate) fn create(target: &Path) -> Result<Self, ImageError> {
        let partial = partial_name(target)?;
        let io = |source| ImageError::io("create", target, source);
        remove_if_there(&partial).map_err(io)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&partial).map_err(io)?;
        let target = target.to_owned();
        Ok(Self {
            file,
            partial,
            target,
            committed: false,
            failed: false,
            run: Vec::new(),
            run_at: 0,
            written: 0,
        })
    }

    /// The final name, which is also the one that errors speak of.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Writes `bytes` at the offset `at`, at the latest with [`PartialFile::commit`].
    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), ImageError> {
        if at != self.run_at + self.run.len() as u64 || self.run.len() + bytes.len() > RUN_BYTES {
            self.flush()?;
            self.run_at = at;
        }
        if self.run.is_empty() && bytes.len() >= DIRECT_BYTES {
            self.write(at, bytes)?;
            self.run_at = at + bytes.len() as u64;
            return Ok(());
        }
        if self.run.capacity() == 0 {
            self.run.reserve_exact(RUN_BYTES);
        }
        self.run.extend_from_slice(bytes);
        Ok(())
    }

    /// Counts bytes that reached the file by another way than [`PartialFile::put`].
    pub(crate) fn count(&mut self, bytes: u64) {
        self.written += bytes;
    }

    fn flush(&mut self) -> Result<(), ImageError> {
        let mut run = take(&mut self.run);
        self.write(self.run_at, &run)?;
        self.run_at += run.len() as u64;
        run.clear();
        self.run = run;
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), ImageError> {
        if let Err(source) = self.file.write_all_at(bytes, at) {
            self.failed = true;
            return Err(ImageError::io("write", &self.target, source));
        }
        self.written += bytes.len() as u64;
        self.start_writing_back(at, bytes.len());
        Ok(())
    }

    /// Has the kernel begin with bringing a piece to the disk, so that whoever waits for all of it at the end does not
    /// wait for the first piece too.
    fn start_writing_back(&self, at: u64, bytes: usize) {
        let (Ok(at), Ok(bytes)) = (libc::off64_t::try_from(at), libc::off64_t::try_from(bytes)) else {
            return;
        };
        // SAFETY: no pointer is passed, and the descriptor is open. A refusal changes nothing: it is a hint.
        unsafe { libc::sync_file_range(self.file.as_raw_fd(), at, bytes, libc::SYNC_FILE_RANGE_WRITE) };
    }

    /// Gives the file its final name, in place of whatever had it; returns the bytes written. With `durable` the
    /// content is on the disk before the name is; the name itself is there once the directory is synced.
    pub(crate) fn commit(mut self, durable: bool) -> Result<u64, ImageError> {
        self.flush()?;
        if self.failed {
            return Err(ImageError::invalid(&self.target, "a write to it failed before; write it anew"));
        }
        if durable {
            self.file.sync_data().map_err(|source| ImageError::io("sync", &self.target, source))?;
        }
        fs::rename(&self.partial, &self.target)
            .map_err(|source| ImageError::io("rename into place", &self.target, source))?;
        self.committed = true;
        Ok(self.written)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.committed {
            // A failure leaves a file that the next attempt at the same name removes.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// The name under which `target` is written.
pub(crate) fn partial_name(target: &Path) -> Result<PathBuf, ImageError> {
    let Some(name) = target.file_name() else {
        return Err(ImageError::invalid(target, "it does not end in a file name"));
    };
    let mut name = name.to_owned();
    name.push(".partial");
    Ok(target.with_file_name(name))
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The directory that holds `path`.
pub(crate) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
        Some(dir) => dir,
        None => Path::new("/"),
    }
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_directory(dir: &Path) -> Result<(), ImageError> {
    let sync = File::open(dir).and_then(|dir| dir.sync_all());
    sync.map_err(|source| ImageError::io("sync", dir, source))
}
