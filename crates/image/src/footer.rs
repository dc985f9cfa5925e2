//! The last bytes of a base and of a layer: what the file is, and the sum of the table in front of them.
//!
//! Both kinds are data, then a table, then this footer, so that a writer needs to know nothing in advance and the base's
//! data can start at byte 0.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc32c::crc32c;

use crate::fields::{Fields, blocks, length};
use crate::{BLOCK, CHUNK_BLOCKS, Fault, FileId, ImageError, MAX_TABLE_BYTES};

/// The version of all three kinds of file.
pub(crate) const VERSION: u32 = 1;
/// Bytes of a footer.
pub(crate) const FOOTER_BYTES: usize = 64;
/// Bytes of a range in the table of a layer.
pub(crate) const RANGE_BYTES: u64 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Base,
    Layer,
}

impl Kind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Base => b"WRENNBAS",
            Self::Layer => b"WRENNLAY",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) id: FileId,
    /// Size of the image that the file belongs to.
    pub(crate) size_bytes: u64,
    /// Blocks of the data at the front of the file.
    pub(crate) data_blocks: u64,
    /// Chunks of a base, or ranges of a layer.
    pub(crate) entries: u64,
    pub(crate) table_crc: u32,
}

impl Footer {
    pub(crate) fn encode(&self, kind: Kind) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        out.extend(kind.magic());
        out.extend(VERSION.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(self.id);
        out.extend(self.size_bytes.to_le_bytes());
        out.extend(self.data_blocks.to_le_bytes());
        out.extend(self.entries.to_le_bytes());
        out.extend(self.table_crc.to_le_bytes());
        out.extend(crc32c(&out).to_le_bytes());
        out
    }

    pub(crate) fn parse(kind: Kind, bytes: &[u8; FOOTER_BYTES]) -> Result<Self, Fault> {
        let mut fields = Fields(bytes);
        if fields.array()? != *kind.magic() {
            return Err(Fault::new(format!("it does not end as a {kind:?} does")));
        }
        let version = fields.u32()?;
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        let reserved = fields.u32()?;
        let footer = Self {
            id: fields.array()?,
            size_bytes: fields.u64()?,
            data_blocks: fields.u64()?,
            entries: fields.u64()?,
            table_crc: fields.u32()?,
        };
        if fields.u32()? != crc32c(&bytes[..FOOTER_BYTES - 4]) || reserved != 0 {
            return Err(Fault::new("its footer does not match its checksum"));
        }
        footer.check(kind)?;
        Ok(footer)
    }

    fn check(&self, kind: Kind) -> Result<(), Fault> {
        let blocks = blocks(self.size_bytes)?;
        let fits = match kind {
            Kind::Base => self.data_blocks == blocks && self.entries == blocks.div_ceil(CHUNK_BLOCKS),
            Kind::Layer => self.data_blocks <= blocks && self.entries <= blocks,
        };
        if !fits || self.table_bytes(kind) > MAX_TABLE_BYTES {
            return Err(Fault::new("the counts in its footer contradict one another"));
        }
        Ok(())
    }

    /// Bytes of the table between data and footer. The counts are bounded, so that nothing here can overflow.
    pub(crate) fn table_bytes(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Base => self.entries.div_ceil(8) + 4 * self.entries,
            Kind::Layer => RANGE_BYTES * self.entries + 4 * self.data_blocks,
        }
    }
}

/// A base or a layer with its footer and its table checked.
#[derive(Debug)]
pub(crate) struct Summed {
    pub(crate) file: File,
    pub(crate) length: u64,
    pub(crate) footer: Footer,
    pub(crate) table: Vec<u8>,
}

impl Summed {
    pub(crate) fn open(kind: Kind, path: &Path) -> Result<Self, ImageError> {
        let (file, file_bytes) = open_file(path)?;
        let Some(end_of_table) = file_bytes.checked_sub(FOOTER_BYTES as u64) else {
            return Err(ImageError::damaged(path, format!("{file_bytes} bytes are too few")));
        };
        let mut footer = [0; FOOTER_BYTES];
        read_at(&file, path, end_of_table, &mut footer)?;
        let footer = Footer::parse(kind, &footer).map_err(|fault| fault.at(path))?;
        let (data_bytes, table_bytes) = (footer.data_blocks * BLOCK, footer.table_bytes(kind));
        if data_bytes + table_bytes != end_of_table {
            return Err(ImageError::damaged(
                path,
                format!("{file_bytes} bytes are not what its footer implies"),
            ));
        }
        let mut table = vec![0; length(table_bytes).map_err(|fault| fault.at(path))?];
        read_at(&file, path, data_bytes, &mut table)?;
        if crc32c(&table) != footer.table_crc {
            return Err(ImageError::damaged(path, "its table does not match its checksum"));
        }
        Ok(Self { file, length: file_bytes, footer, table })
    }
}

/// Opens a regular file for reading, and measures it.
pub(crate) fn open_file(path: &Path) -> Result<(File, u64), ImageError> {
    let access = |source| ImageError::access("open", path, source);
    let file = File::open(path).map_err(access)?;
    let meta = file.metadata().map_err(access)?;
    if !meta.is_file() {
        return Err(ImageError::damaged(path, "it is not a regular file"));
    }
    Ok((file, meta.len()))
}

pub(crate) fn read_at(file: &File, path: &Path, at: u64, buf: &mut [u8]) -> Result<(), ImageError> {
    file.read_exact_at(buf, at).map_err(|source| ImageError::io("read", path, source))
}
