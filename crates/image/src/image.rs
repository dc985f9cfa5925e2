//! An image: a header on disk and its files, open.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::base::check_blocks;
use crate::base_file::BaseFile;
use crate::cursor::{Cursor, Piece, Windows};
use crate::fields::in_memory;
use crate::footer::{Footer, open_file};
use crate::header::{FileEntry, Header};
use crate::layer_file::{LayerFile, map_of};
use crate::map::{find, overlay};
use crate::partial::{PartialFile, directory, sync_directory};
use crate::{BLOCK, Extent, ImageError, MAX_LAYERS, MAX_TABLE_BYTES, Source};

/// An image whose files are open. Any number of threads may read from it at once, and it stays readable when its files
/// are deleted.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    pub(crate) header: Header,
    pub(crate) base: BaseFile,
    layers: Vec<LayerFile>,
}

impl Image {
    /// Writes the header of an image over a finished base and finished layers, the oldest first, all in the directory of
    /// the header. A header of that name is replaced. With `durable` the header and the names of all files are on the
    /// disk when this returns.
    ///
    /// # Errors
    /// [`ImageError::TooManyLayers`] beyond [`MAX_LAYERS`], [`ImageError::Invalid`] where the files do not fit together or
    /// lie elsewhere, and whatever opening them or writing the header meets.
    pub fn create(header: &Path, base: &Path, layers: &[&Path], durable: bool) -> Result<Self, ImageError> {
        if layers.len() > MAX_LAYERS {
            return Err(ImageError::TooManyLayers { path: header.to_owned(), layers: layers.len() });
        }
        let base = BaseFile::open(base)?;
        let (mut map, mut files) = (Vec::new(), Vec::new());
        for (index, path) in layers.iter().enumerate() {
            let (file, ranges) = LayerFile::open_indexed(path)?;
            if file.footer.size_bytes != base.footer.size_bytes {
                let (own, other) = (file.footer.size_bytes, base.footer.size_bytes);
                return Err(ImageError::invalid(
                    path,
                    format!("it is for images of {own} bytes, the base has {other}"),
                ));
            }
            map = overlay(&map, &map_of(index, &ranges));
            files.push(file);
        }
        let entries = files.iter().map(|file| entry(header, &file.path, &file.footer, file.length));
        let parsed = Header {
            size_bytes: base.footer.size_bytes,
            base: entry(header, &base.path, &base.footer, base.length)?,
            layers: entries.collect::<Result<_, _>>()?,
            extents: map,
        };
        write_header(header, &parsed, durable)?;
        Ok(Self { path: header.to_owned(), header: parsed, base, layers: files })
    }

    /// Opens an image: reads its header, and checks of each file that it is the one that the header was written for. The
    /// data is checked as it is read.
    ///
    /// # Errors
    /// [`ImageError`] naming the file that is missing, damaged or of another version.
    pub fn open(header: &Path) -> Result<Self, ImageError> {
        let parsed = Header::parse(&read_header(header)?).map_err(|fault| fault.at(header))?;
        Self::assemble(header, parsed)
    }

    /// Opens the files of a header that is, or is about to be, at `path`.
    pub(crate) fn assemble(path: &Path, header: Header) -> Result<Self, ImageError> {
        let dir = directory(path);
        let base = BaseFile::open(&dir.join(&header.base.name))?;
        check_entry(&header.base, &base.path, &base.footer, base.length)?;
        let mut layers = Vec::with_capacity(header.layers.len());
        for entry in &header.layers {
            let file = LayerFile::open(&dir.join(&entry.name))?;
            check_entry(entry, &file.path, &file.footer, file.length)?;
            layers.push(file);
        }
        let sizes = layers.iter().map(|file| file.footer.size_bytes).chain([base.footer.size_bytes]);
        if sizes.into_iter().any(|size| size != header.size_bytes) {
            return Err(ImageError::damaged(path, "its files are for images of other sizes"));
        }
        check_bounds(path, &header.extents, &layers)?;
        Ok(Self { path: path.to_owned(), header, base, layers })
    }

    /// Size in bytes, a multiple of [`BLOCK_BYTES`](crate::BLOCK_BYTES).
    pub fn size_bytes(&self) -> u64 {
        self.header.size_bytes
    }

    /// The header.
    pub fn header_path(&self) -> &Path {
        &self.path
    }

    /// The base.
    pub fn base_path(&self) -> PathBuf {
        self.base.path.clone()
    }

    /// The layers, the oldest first.
    pub fn layer_paths(&self) -> Vec<PathBuf> {
        self.layers.iter().map(|file| file.path.clone()).collect()
    }

    /// All files: the header, the base, the layers.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.path.clone(), self.base_path()];
        files.extend(self.layer_paths());
        files
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Brings the image to the disk: data, header and names, where they are not there yet. An image that was written
    /// without `durable` can be made durable with this later, when nobody waits any more.
    ///
    /// # Errors
    /// [`ImageError`] where the system cannot write.
    pub fn sync(&self) -> Result<(), ImageError> {
        self.sync_data()?;
        let (header, _) = open_file(&self.path)?;
        header.sync_data().map_err(|source| ImageError::io("sync", &self.path, source))?;
        sync_directory(directory(&self.path))
    }

    /// Brings the data of base and layers to the disk, where it is not there yet.
    pub(crate) fn sync_data(&self) -> Result<(), ImageError> {
        self.base.file.sync_data().map_err(|source| ImageError::io("sync", &self.base.path, source))?;
        self.layers.iter().try_for_each(LayerFile::sync_data)
    }

    pub(crate) fn layer_file(&self, layer: usize) -> &LayerFile {
        &self.layers[layer]
    }

    /// What the layers put over the base: ascending, disjoint, and joined where one range continues another.
    pub fn overrides(&self) -> &[Extent] {
        &self.header.extents
    }

    /// Walks over all overriding blocks in ascending order, in pieces of up to 1 MiB of data or any number of zeros. The
    /// first argument of `visit` is the piece's first block.
    ///
    /// # Errors
    /// What `visit` returns, or [`ImageError`] where a layer cannot be read or is damaged; `visit` never sees such data.
    pub fn read_overrides<E: From<ImageError>>(
        &self,
        mut visit: impl FnMut(u64, Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut windows = Windows::new(self);
        for extent in self.overrides() {
            let mut rest = *extent;
            while rest.count > 0 {
                let piece = windows.piece(&rest)?;
                let count = match piece {
                    Piece::Data(bytes) => bytes.len() as u64 / BLOCK,
                    Piece::Zero(count) => count,
                };
                visit(rest.block, piece)?;
                rest = rest.part(rest.block + count, rest.end());
            }
        }
        Ok(())
    }

    /// A cursor over the overriding blocks, for comparing them with something else in ascending order.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor::new(self)
    }

    /// Reads whole blocks from `block` on, from wherever they come.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] where the blocks are not whole or beyond the end, else where a file cannot be read or is
    /// damaged; `buf` holds nothing of use then.
    pub fn read(&self, block: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        let end = check_blocks(&self.path, 0..self.size_bytes() / BLOCK, block, buf)?;
        let map = self.overrides();
        let (mut block, mut rest, mut index) = (block, buf, find(map, block));
        while block < end {
            let over = map.get(index).filter(|extent| extent.block < end);
            let upto = match over {
                Some(extent) if extent.block <= block => extent.end().min(end),
                Some(extent) => extent.block,
                None => end,
            };
            let (part, behind) = rest.split_at_mut(in_memory((upto - block) * BLOCK));
            match over.filter(|extent| extent.block <= block) {
                Some(extent) => {
                    self.read_extent(&extent.part(block, upto), part)?;
                    index += 1;
                }
                None => self.base.read(block, part)?,
            }
            (block, rest) = (upto, behind);
        }
        Ok(())
    }

    fn read_extent(&self, extent: &Extent, buf: &mut [u8]) -> Result<(), ImageError> {
        match extent.source {
            Source::Zero => buf.fill(0),
            Source::Layer { layer, offset } => self.layers[layer].read(offset, buf)?,
        }
        Ok(())
    }

    /// Reads the base through and checks it, also that what counts as a hole is zeros for whoever maps the file. A base
    /// that this process found intact before, and that was not modified since, is not read again.
    ///
    /// # Errors
    /// [`ImageError`] where the base cannot be read or is damaged.
    pub fn verify_base(&self) -> Result<(), ImageError> {
        self.base.verify()
    }

    /// Reads the data of every layer through and checks it, also what newer layers hide. A layer that this process found
    /// intact before, and that was not modified since, is not read again.
    ///
    /// # Errors
    /// [`ImageError`] where a layer cannot be read or is damaged.
    pub fn verify_layers(&self) -> Result<(), ImageError> {
        self.layers.iter().try_for_each(LayerFile::verify)
    }

    /// Bytes that all files together take on the disk. What is shared by hard links counts in each image.
    ///
    /// # Errors
    /// [`ImageError`] where a file cannot be examined.
    pub fn allocated_bytes(&self) -> Result<u64, ImageError> {
        let mut bytes = 0;
        for path in self.files() {
            let meta = fs::metadata(&path).map_err(|source| ImageError::access("examine", &path, source))?;
            bytes += meta.blocks() * 512;
        }
        Ok(bytes)
    }
}

/// The entry of a file in the header, by its name in the header's directory.
fn entry(header: &Path, path: &Path, footer: &Footer, length: u64) -> Result<FileEntry, ImageError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(name) = name.filter(|name| same_file(&directory(header).join(name), path)) else {
        return Err(ImageError::invalid(
            path,
            format!("it is not in the directory of {header:?}; link it there first"),
        ));
    };
    Ok(FileEntry { id: footer.id, length, table_crc: footer.table_crc, name: name.to_owned() })
}

fn same_file(one: &Path, other: &Path) -> bool {
    let id = |path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    id(one).is_some_and(|one| id(other) == Some(one))
}

fn check_entry(entry: &FileEntry, path: &Path, footer: &Footer, length: u64) -> Result<(), ImageError> {
    let what = if entry.id != footer.id {
        "it is another file than the one the image was made with"
    } else if entry.length != length || entry.table_crc != footer.table_crc {
        "it was changed after the image was made"
    } else {
        return Ok(());
    };
    Err(ImageError::damaged(path, what))
}

/// Checks that the map points to data only, not to what follows it in the layers.
fn check_bounds(header: &Path, map: &[Extent], layers: &[LayerFile]) -> Result<(), ImageError> {
    for extent in map {
        if let Source::Layer { layer, offset } = extent.source
            && offset + extent.count * BLOCK > layers[layer].data_bytes()
        {
            return Err(ImageError::damaged(
                header,
                format!("its map goes beyond the data of layer {}", layer + 1),
            ));
        }
    }
    Ok(())
}

/// Writes a header beside its name and renames it; the point at which the image exists.
pub(crate) fn write_header(path: &Path, header: &Header, durable: bool) -> Result<(), ImageError> {
    let bytes = header.encode().map_err(|fault| ImageError::invalid(path, fault.to_string()))?;
    if bytes.len() as u64 > MAX_TABLE_BYTES {
        return Err(ImageError::invalid(
            path,
            "its map would be too large; materialise the image it builds on",
        ));
    }
    let mut out = PartialFile::create(path)?;
    out.put(0, &bytes)?;
    out.commit(durable)?;
    if durable { sync_directory(directory(path)) } else { Ok(()) }
}

fn read_header(path: &Path) -> Result<Vec<u8>, ImageError> {
    let (mut file, bytes): (File, u64) = open_file(path)?;
    if bytes > MAX_TABLE_BYTES {
        return Err(ImageError::damaged(path, format!("{bytes} bytes are too many for a header")));
    }
    let mut header = Vec::new();
    file.read_to_end(&mut header).map_err(|source| ImageError::io("read", path, source))?;
    Ok(header)
}
