//! The header of an image: its files by name and identity, and the map of blocks to layers.

use crc32c::crc32c;

use crate::fields::{Fields, blocks, length};
use crate::footer::VERSION;
use crate::{BLOCK, Extent, Fault, FileId, MAX_LAYERS, Source};

const MAGIC: &[u8; 8] = b"WRENNIMG";
/// Bytes of an extent in the header.
const EXTENT_BYTES: usize = 24;
/// The longest name of a file on the file systems of Linux, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// A base or layer as the header knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its identity.
    pub id: FileId,
    /// Its length in bytes.
    pub length: u64,
    /// The CRC-32C of its table, which in turn holds the sums of its data.
    pub table_crc: u32,
    /// Its name in the directory of the header.
    pub name: String,
}

/// A header in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Size of the image in bytes.
    pub size_bytes: u64,
    /// The base.
    pub base: FileEntry,
    /// The layers, the oldest first.
    pub layers: Vec<FileEntry>,
    /// What the layers put over the base: ascending and disjoint.
    pub extents: Vec<Extent>,
}

impl Header {
    /// Reads a header. Any bytes may be given: what comes back is within all bounds, and no more memory is taken than a
    /// small multiple of the bytes given.
    ///
    /// # Errors
    /// [`Fault`] where the bytes are not exactly a header of the version that is known.
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let mut fields = Fields(bytes);
        if fields.array()? != *MAGIC {
            return Err(Fault::new("it does not begin as a header does"));
        }
        let version = fields.u32()?;
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        let Some((body, sum)) = bytes.split_last_chunk::<4>() else {
            return Err(Fault::new("it is cut off"));
        };
        if crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(Fault::new("it does not match its checksum"));
        }
        fields.0 = &body[MAGIC.len() + 4..];
        Self::parse_body(fields)
    }

    fn parse_body(mut fields: Fields<'_>) -> Result<Self, Fault> {
        let files = fields.u32()?;
        let layers = files.checked_sub(1).and_then(|layers| usize::try_from(layers).ok());
        let Some(layers) = layers.filter(|layers| *layers <= MAX_LAYERS) else {
            return Err(Fault::new(format!(
                "it names {files} files, which is not a base with up to {MAX_LAYERS} layers"
            )));
        };
        let size_bytes = fields.u64()?;
        let extents = length(fields.u64()?)?;
        let base = parse_file(&mut fields)?;
        let layers = (0..layers).map(|_| parse_file(&mut fields)).collect::<Result<Vec<_>, _>>()?;
        if extents.checked_mul(EXTENT_BYTES) != Some(fields.0.len()) {
            return Err(Fault::new(format!("it has {} bytes for a map of {extents} ranges", fields.0.len())));
        }
        let extents = parse_map(fields, blocks(size_bytes)?, &layers)?;
        Ok(Self { size_bytes, base, layers, extents })
    }

    /// The bytes of the header.
    ///
    /// # Errors
    /// [`Fault`] where the header breaks a bound that [`Header::parse`] would check.
    pub fn encode(&self) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::with_capacity(512 + self.extents.len() * EXTENT_BYTES);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(narrow(1 + self.layers.len() as u64)?.to_le_bytes());
        out.extend(self.size_bytes.to_le_bytes());
        out.extend((self.extents.len() as u64).to_le_bytes());
        for file in std::iter::once(&self.base).chain(&self.layers) {
            encode_file(file, &mut out)?;
        }
        for extent in &self.extents {
            let (source, offset) = match extent.source {
                Source::Zero => (0, 0),
                Source::Layer { layer, offset } => (layer as u64 + 1, offset),
            };
            out.extend(extent.block.to_le_bytes());
            out.extend(narrow(extent.count)?.to_le_bytes());
            out.extend(narrow(source)?.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.extend(crc32c(&out).to_le_bytes());
        Ok(out)
    }
}

fn narrow(value: u64) -> Result<u32, Fault> {
    u32::try_from(value).map_err(|_| Fault::new(format!("{value} does not fit its field")))
}

fn encode_file(file: &FileEntry, out: &mut Vec<u8>) -> Result<(), Fault> {
    check_name(&file.name)?;
    let name_bytes = u16::try_from(file.name.len()).map_err(|_| Fault::new("a file name is too long"))?;
    out.extend(file.id);
    out.extend(file.length.to_le_bytes());
    out.extend(file.table_crc.to_le_bytes());
    out.extend(name_bytes.to_le_bytes());
    out.extend(0u16.to_le_bytes());
    out.extend(file.name.as_bytes());
    Ok(())
}

fn parse_file(fields: &mut Fields<'_>) -> Result<FileEntry, Fault> {
    let (id, length, table_crc) = (fields.array()?, fields.u64()?, fields.u32()?);
    let name_bytes = usize::from(fields.u16()?);
    if fields.u16()? != 0 {
        return Err(Fault::new("a reserved field is not 0"));
    }
    let name =
        str::from_utf8(fields.bytes(name_bytes)?).map_err(|_| Fault::new("a file name is not UTF-8"))?;
    check_name(name)?;
    Ok(FileEntry { id, length, table_crc, name: name.to_owned() })
}

/// Refuses what is not the plain name of a file, so that a header can only speak of its own directory.
pub(crate) fn check_name(name: &str) -> Result<(), Fault> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    if !plain || name.len() > MAX_NAME_BYTES {
        return Err(Fault::new(format!("{name:?} is not a plain file name of up to {MAX_NAME_BYTES} bytes")));
    }
    Ok(())
}

fn parse_map(mut fields: Fields<'_>, blocks: u64, layers: &[FileEntry]) -> Result<Vec<Extent>, Fault> {
    let mut map = Vec::with_capacity(fields.0.len() / EXTENT_BYTES);
    let mut free = 0;
    while !fields.0.is_empty() {
        let (block, count, source) = (fields.u64()?, u64::from(fields.u32()?), fields.u32()?);
        let end = block.checked_add(count).filter(|end| *end <= blocks);
        let Some(end) = end.filter(|_| count > 0 && block >= free) else {
            return Err(Fault::new(format!(
                "its map has {count} blocks at {block}, out of order or out of bounds"
            )));
        };
        free = end;
        map.push(Extent { block, count, source: parse_source(source, fields.u64()?, count, layers)? });
    }
    Ok(map)
}

fn parse_source(source: u32, offset: u64, count: u64, layers: &[FileEntry]) -> Result<Source, Fault> {
    let Some(layer) = usize::try_from(source).unwrap_or(usize::MAX).checked_sub(1) else {
        let zero = (offset == 0).then_some(Source::Zero);
        return zero.ok_or_else(|| Fault::new("a range of zeros has an offset"));
    };
    let length = layers.get(layer).map_or(0, |file| file.length);
    let end = offset.checked_add(count * BLOCK);
    if !offset.is_multiple_of(BLOCK) || end.is_none_or(|end| end > length) {
        return Err(Fault::new(format!(
            "its map speaks of byte {offset} of layer {layer}, where no blocks are"
        )));
    }
    Ok(Source::Layer { layer, offset })
}
