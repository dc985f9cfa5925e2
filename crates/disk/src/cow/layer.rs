//! A layer's file: opening, reading and writing one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::header::{BLOCK, Header};
use super::room;
use super::store::{self, AREA, CHUNK, Exception};
use crate::files::{self, Made};
use crate::{DiskError, chain};

/// A chunk of the disk.
pub(super) type Chunk = [u8; 4096];

/// A layer that is open to read.
#[derive(Debug)]
pub(crate) struct Layer {
    path: PathBuf,
    file: File,
    /// What it says of itself.
    pub(crate) header: Header,
}

impl Layer {
    /// Opens the layer and reads both its headers.
    pub(crate) fn open(path: &Path) -> Result<Self, DiskError> {
        let failed = |source| DiskError::io("open", path, source);
        let file = files::open(path).map_err(failed)?;
        let mut first = vec![0; 4096 + 16];
        let length = files::read_up_to(&file, &mut first, 0).map_err(failed)?;
        let (block, store) = first[..length].split_at(length.min(4096));
        let damaged = |reason| DiskError::not_a_layer(path, reason);
        let header = Header::decode(block).map_err(damaged)?;
        store::check_header(store).map_err(damaged)?;
        if file.metadata().map_err(failed)?.len() < BLOCK + store::length(header.virtual_bytes) {
            return Err(damaged("its file is shorter than its capacity needs"));
        }
        Ok(Self { path: path.to_path_buf(), file, header })
    }

    /// The chunks that lie in this layer, in the order of the disk.
    pub(super) fn exceptions(&self) -> Result<Vec<Exception>, DiskError> {
        let damaged = |reason| DiskError::not_a_layer(&self.path, reason);
        let chunks = self.header.virtual_bytes / CHUNK;
        let mut found = Vec::new();
        for area in 0..=chunks / AREA {
            let bytes = self.chunk(store::area_chunk(area))?;
            if !store::read_area(&bytes, chunks, &mut found).map_err(damaged)? {
                break;
            }
        }
        found.sort_unstable();
        match found.windows(2).any(|pair| pair[0].old == pair[1].old) {
            true => Err(damaged("its exception store has a chunk twice")),
            false => Ok(found),
        }
    }

    /// A chunk of the store.
    pub(super) fn chunk(&self, chunk: u64) -> Result<Chunk, DiskError> {
        let mut bytes = [0; 4096];
        let read = files::read_up_to(&self.file, &mut bytes, BLOCK + chunk * CHUNK);
        read.map_err(|source| DiskError::io("read", &self.path, source))?;
        Ok(bytes)
    }
}

/// A layer that is being written, from front to back. It is empty until something is added: its store is a hole.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    file: File,
    header: Header,
    /// Chunks added so far.
    count: u64,
    /// The exceptions of the area that is not full yet.
    area: Vec<u8>,
}

impl Writer {
    /// Starts the layer `path` of `virtual_bytes` over `below`, a file beside it.
    pub(super) fn create(
        path: &Path,
        virtual_bytes: u64,
        below: &Path,
        made: &mut Made,
    ) -> Result<Self, DiskError> {
        let file = files::make(path, made)?;
        let length = file.set_len(BLOCK + store::length(virtual_bytes));
        length.map_err(|source| DiskError::io("write", path, source))?;
        let header = Header { virtual_bytes, below: chain::file_name(below).to_owned() };
        Ok(Self { path: path.to_path_buf(), file, header, count: 0, area: Vec::new() })
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds chunk `old` of the disk.
    pub(super) fn add(&mut self, old: u64, data: &Chunk) -> Result<(), DiskError> {
        let new = store::data_chunk(self.count);
        self.write(data, BLOCK + new * CHUNK)?;
        self.area.extend(Exception { old, new }.encode());
        self.count += 1;
        if self.count.is_multiple_of(AREA) {
            self.write_area(self.count / AREA - 1)?;
        }
        Ok(())
    }

    /// Writes the rest and returns the complete file, which is not durable yet.
    pub(super) fn finish(mut self) -> Result<File, DiskError> {
        if !self.area.is_empty() {
            self.write_area(self.count / AREA)?;
        }
        self.write(&store::encode_header(), BLOCK)?;
        self.write(&self.header.encode(), 0)?;
        match room::keep(&self.file, &self.path, store::data_chunk(self.count) * CHUNK)? {
            room::Room::Short => Err(DiskError::Full { path: self.path }),
            _ => Ok(self.file),
        }
    }

    fn write_area(&mut self, area: u64) -> Result<(), DiskError> {
        self.write(&self.area, BLOCK + store::area_chunk(area) * CHUNK)?;
        self.area.clear();
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), DiskError> {
        self.file.write_all_at(bytes, at).map_err(|source| DiskError::io("write", &self.path, source))
    }
}

/// Makes a layer's capacity `virtual_bytes` if it has less. Durable when this returns; the file at `path` is open to
/// write as `file`.
pub(crate) fn grow(file: &File, path: &Path, virtual_bytes: u64) -> Result<(), DiskError> {
    let mut header = Layer::open(path)?.header;
    if header.virtual_bytes >= virtual_bytes {
        return Ok(());
    }
    header.virtual_bytes = virtual_bytes;
    let grown = || {
        let length = BLOCK + store::length(virtual_bytes);
        if file.metadata()?.len() < length {
            file.set_len(length)?;
        }
        // The length first: a header that asks for more than there is would be damage.
        file.sync_all()?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()
    };
    grown().map_err(|source| DiskError::io("grow", path, source))
}
