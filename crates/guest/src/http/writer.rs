//! Opens the target of an upload, refusing what is no file without ever opening it: opening a FIFO would wait for a
//! reader, opening a device may do anything.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};

use flate2::write::MultiGzDecoder;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use wrenn_protocol::guest::UploadedFile;

use crate::accounts::User;
use crate::error::{Error, Result};
use crate::filesystem::{make_parents, write_metadata};
use crate::paths;

/// What writing past the page cache demands of offsets and lengths, bytes: at most this, on every disk in use.
pub(super) const PAGE: usize = 4096;

/// Where one uploaded file goes, and how.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Absolute path.
    pub(super) path: String,
    /// Who will own it.
    pub(super) user: User,
    /// What the caller attaches to it.
    pub(super) metadata: BTreeMap<String, String>,
    /// Whether the body is gzip.
    pub(super) gzip: bool,
}

/// An open target.
pub(super) struct Writer {
    sink: Sink,
    path: String,
    caching: Caching,
}

/// Whether what is written stays in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caching {
    /// It does.
    Kept,
    /// It does, because this file system cannot do without.
    Needed,
    /// It goes straight to the disk: a large file then costs neither a copy nor the guest's memory.
    Bypassed,
}

enum Sink {
    Plain(File),
    Gzip(Box<MultiGzDecoder<File>>),
}

impl Target {
    /// Creates or empties the file; it belongs to the user before the first byte is in it. Blocks.
    pub(super) fn open(&self) -> Result<Writer> {
        let file = match self.open_existing()? {
            Some(file) => file,
            None => self.create()?,
        };
        write_metadata(&file, &self.path, &self.metadata);
        let sink =
            if self.gzip { Sink::Gzip(Box::new(MultiGzDecoder::new(file))) } else { Sink::Plain(file) };
        Ok(Writer { sink, path: self.path.clone(), caching: Caching::Kept })
    }

    /// What the answer says about it.
    pub(super) fn uploaded(&self) -> UploadedFile {
        UploadedFile {
            name: paths::name(&self.path).to_owned(),
            path: self.path.clone(),
            kind: "file".to_owned(),
            metadata: self.metadata.clone(),
        }
    }

    fn open_existing(&self) -> Result<Option<File>> {
        let failed = |errno| Error::path(&self.path, errno);
        let found = match rustix::fs::open(&*self.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        must_be_file(&found, &self.path)?;
        // What was just looked at is what is opened, whatever the path means by now.
        let same = format!("/proc/self/fd/{}", found.as_raw_fd());
        let file = rustix::fs::open(same, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        self.give_away(&file)?;
        rustix::fs::ftruncate(&file, 0).map_err(failed)?;
        Ok(Some(file.into()))
    }

    fn create(&self) -> Result<File> {
        make_parents(&self.path, &self.user)?;
        // A dangling link is followed. Should a FIFO have appeared meanwhile, NONBLOCK keeps the opening from waiting.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&*self.path, flags, Mode::from_raw_mode(0o666))
            .map_err(|errno| Error::path(&self.path, errno))?;
        must_be_file(&file, &self.path)?;
        self.give_away(&file)?;
        Ok(file.into())
    }

    fn give_away(&self, file: &OwnedFd) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(|errno| Error::path(&self.path, errno))
    }
}

impl Writer {
    /// Appends bytes that are aligned in memory, past the page cache where the file system can. Blocks.
    pub(super) fn write_pages(&mut self, bytes: &[u8]) -> Result<()> {
        let Sink::Plain(file) = &mut self.sink else { return self.write(bytes) };
        let whole = bytes.len() - bytes.len() % PAGE;
        if self.caching == Caching::Kept {
            self.caching = if bypass_cache(file, true) { Caching::Bypassed } else { Caching::Needed };
        }
        if self.caching == Caching::Needed {
            return self.write(bytes);
        }
        let written = write_direct(file, &bytes[..whole]).map_err(|e| refused(&self.path, &e))?;
        if written == bytes.len() { Ok(()) } else { self.write(&bytes[written..]) }
    }

    /// Appends `bytes`. Blocks.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if let (Sink::Plain(file), Caching::Bypassed) = (&self.sink, self.caching) {
            bypass_cache(file, false);
            self.caching = Caching::Needed;
        }
        let written = match &mut self.sink {
            Sink::Plain(file) => file.write_all(bytes),
            Sink::Gzip(decoder) => decoder.write_all(bytes),
        };
        written.map_err(|e| self.failed(&e))
    }

    /// Writes what a decoder holds back, and demands that the compressed data were complete.
    pub(super) fn finish(self) -> Result<()> {
        match self.sink {
            Sink::Plain(_) => Ok(()),
            Sink::Gzip(decoder) => decoder.finish().map(drop).map_err(|e| refused(&self.path, &e)),
        }
    }

    fn failed(&self, error: &io::Error) -> Error {
        refused(&self.path, error)
    }
}

/// Whether the file is now used past the page cache if it should be.
pub(super) fn bypass_cache(file: &File, bypass: bool) -> bool {
    let set = |flags: OFlags| rustix::fs::fcntl_setfl(file, flags);
    rustix::fs::fcntl_getfl(file)
        .and_then(|flags| set(if bypass { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT }))
        .is_ok()
}

/// Writes as much as the disk takes in whole blocks, and tells how much; the rest is for the page cache.
fn write_direct(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(some) => written += some,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The file system takes the flag and not this alignment.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

fn refused(path: &str, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(_) => Error::io(path, error),
        None => Error::invalid(format!("{path}: the gzip data are damaged: {error}")),
    }
}

/// Only regular files are read and written here.
pub(super) fn must_be_file(file: &OwnedFd, path: &str) -> Result<rustix::fs::Stat> {
    let stat = rustix::fs::fstat(file).map_err(|errno| Error::path(path, errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat),
        FileType::Directory => Err(Error::invalid(format!("{path}: is a directory"))),
        _ => Err(Error::invalid(format!("{path}: is not a regular file"))),
    }
}
