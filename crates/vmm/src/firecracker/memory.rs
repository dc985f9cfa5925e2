//! From the sparse file in which Firecracker leaves a guest's memory to the layered format.
//!
//! A *Diff* snapshot holds the pages that were written since the last one, at their own offsets, and nothing in between. One
//! that is written into the file of the one before is merged into it, so that the file always holds whatever the guest has
//! written in this run of the machine. After a paged restore the kernel counts a page that was only read as written too;
//! comparing each with what is saved already keeps those out.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, SeekFrom, seek};
use rustix::io::Errno;
use wrenn_image::{BLOCK_BYTES, BaseWriter, Image, LayerWriter};

use crate::{MemorySaved, MemoryTarget, VmmError};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks read and compared at once.
const BATCH: u64 = 256;

/// A guest's memory as Firecracker wrote it.
#[derive(Debug)]
pub(super) struct MemoryFile<'a> {
    file: File,
    path: &'a Path,
    blocks: u64,
}

impl<'a> MemoryFile<'a> {
    /// Opens the file of a guest with `bytes` of memory.
    pub(super) fn open(path: &'a Path, bytes: u64) -> Result<Self, VmmError> {
        let file = open_given(path)?;
        let stat = rustix::fs::fstatvfs(&file).map_err(|error| VmmError::io("look at", path, error))?;
        if stat.f_frsize > BLOCK {
            // A hole smaller than its blocks would read as data, and the page in it as zeros.
            let reason = format!("its file system has blocks of {} bytes: use one of {BLOCK}", stat.f_frsize);
            return Err(VmmError::BadPath { what: "a machine's memory", path: path.to_path_buf(), reason });
        }
        Ok(Self { file, path, blocks: bytes / BLOCK })
    }

    /// The ranges of blocks that are in the file, ascending.
    pub(super) fn ranges(&self) -> Result<Vec<Range<u64>>, VmmError> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut at = 0;
        while at < self.blocks * BLOCK {
            at = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(self.failed(error.into())),
            };
            let end = seek(&self.file, SeekFrom::Hole(at)).map_err(|error| self.failed(error.into()))?;
            let (first, last) = (at / BLOCK, end.div_ceil(BLOCK).min(self.blocks));
            match ranges.last_mut() {
                Some(before) if before.end >= first => before.end = last,
                _ => ranges.push(first..last),
            }
            at = end;
        }
        Ok(ranges)
    }

    /// Writes the memory as a new base, or what of it differs from what is saved already as a layer.
    pub(super) fn save(&self, target: &MemoryTarget) -> Result<MemorySaved, VmmError> {
        let ranges = self.ranges()?;
        let dirty_blocks = ranges.iter().map(|range| range.end - range.start).sum();
        let written = match target {
            MemoryTarget::Base(path) => {
                let mut writer = BaseWriter::create(path, self.blocks * BLOCK)?;
                self.visit(&ranges, |block, bytes| Ok(writer.write(block, bytes)?))?;
                writer.finish(false)?
            }
            MemoryTarget::Layer { path, parent } => {
                self.check_size(parent)?;
                let mut writer = LayerWriter::create(path, self.blocks * BLOCK)?;
                let mut known = vec![0; buffer(BATCH)];
                self.visit(&ranges, |block, bytes| {
                    let known = &mut known[..bytes.len()];
                    parent.read(block, known)?;
                    write_changed(&mut writer, block, bytes, known)
                })?;
                writer.finish(false)?
            }
        };
        Ok(MemorySaved { dirty_blocks, data_blocks: written.data_blocks, bytes: written.bytes })
    }

    fn check_size(&self, image: &Image) -> Result<(), VmmError> {
        let (image, machine) = (image.size_bytes(), self.blocks * BLOCK);
        if image == machine { Ok(()) } else { Err(VmmError::MemorySize { image, machine }) }
    }

    fn visit(
        &self,
        ranges: &[Range<u64>],
        mut visit: impl FnMut(u64, &[u8]) -> Result<(), VmmError>,
    ) -> Result<(), VmmError> {
        let mut bytes = vec![0; buffer(BATCH)];
        for range in ranges {
            let mut block = range.start;
            while block < range.end {
                let count = (range.end - block).min(BATCH);
                let part = &mut bytes[..buffer(count)];
                self.file.read_exact_at(part, block * BLOCK).map_err(|source| self.failed(source))?;
                visit(block, part)?;
                block += count;
            }
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> VmmError {
        VmmError::io("read", self.path, source)
    }
}

/// Opens a file that a VMM has written, to read. The directory is the VMM's own, which may have been taken over by its
/// guest: nothing but a regular file is opened, and no link is followed to files that root alone may read.
pub(super) fn open_given(path: &Path) -> Result<File, VmmError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    let file = File::from(opened.map_err(|error| VmmError::io("open", path, error))?);
    match file.metadata() {
        Ok(meta) if meta.is_file() => Ok(file),
        Ok(_) => Err(VmmError::io("open", path, io::Error::other("it is not a regular file"))),
        Err(source) => Err(VmmError::io("look at", path, source)),
    }
}

fn buffer(blocks: u64) -> usize {
    usize::try_from(blocks.min(BATCH)).map_or(0, |blocks| blocks * BLOCK_BYTES)
}

/// Writes those of the blocks that are not as they are known.
fn write_changed(writer: &mut LayerWriter, block: u64, bytes: &[u8], known: &[u8]) -> Result<(), VmmError> {
    let mut from = 0;
    let pairs = bytes.chunks(BLOCK_BYTES).zip(known.chunks(BLOCK_BYTES));
    for (index, (new, old)) in pairs.enumerate() {
        if new == old {
            writer.write(block + from as u64, &bytes[from * BLOCK_BYTES..index * BLOCK_BYTES])?;
            from = index + 1;
        }
    }
    Ok(writer.write(block + from as u64, &bytes[from * BLOCK_BYTES..])?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const BLOCKS: u64 = 1024;

    /// A sparse file with these blocks, each filled with its byte.
    fn sparse(path: &Path, blocks: &[(u64, u8)]) {
        let file = File::create(path).unwrap();
        file.set_len(BLOCKS * BLOCK).unwrap();
        for (block, byte) in blocks {
            file.write_all_at(&[*byte; BLOCK_BYTES], block * BLOCK).unwrap();
        }
    }

    fn content(image: &Image) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(BLOCKS).unwrap() * BLOCK_BYTES];
        image.read(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_layer_has_what_differs_from_what_is_saved_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        sparse(&path("first"), &[(0, 1), (1, 2), (500, 3), (1023, 4)]);
        let first = path("first");
        let file = MemoryFile::open(&first, BLOCKS * BLOCK).unwrap();
        assert_eq!(file.ranges().unwrap(), [0..2, 500..501, 1023..1024]);
        let saved = file.save(&MemoryTarget::Base(path("a.base"))).unwrap();
        assert_eq!((saved.dirty_blocks, saved.data_blocks), (4, 4));
        let image = Arc::new(Image::create(&path("a.image"), &path("a.base"), &[], false).unwrap());
        // Touched but as before; changed; become zero; new; and one that is only read as zeros.
        sparse(&path("second"), &[(0, 1), (1, 9), (500, 0), (501, 7), (600, 0)]);
        let second = path("second");
        let target = MemoryTarget::Layer { path: path("b.layer"), parent: Arc::clone(&image) };
        let saved = MemoryFile::open(&second, BLOCKS * BLOCK).unwrap().save(&target).unwrap();
        assert_eq!((saved.dirty_blocks, saved.data_blocks), (5, 2));
        let both = Image::create(&path("b.image"), &path("a.base"), &[&path("b.layer")], false).unwrap();
        let mut wanted = content(&image);
        for (block, byte) in [(1, 9), (500, 0), (501, 7)] {
            wanted[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES].fill(byte);
        }
        assert!(content(&both) == wanted);
        assert_eq!(both.overrides().iter().map(|extent| extent.count).sum::<u64>(), 3);
    }

    #[test]
    fn a_link_that_a_guest_may_have_planted_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, planted) = (dir.path().join("secret"), dir.path().join("planted"));
        sparse(&secret, &[(0, 1)]);
        std::os::unix::fs::symlink(&secret, &planted).unwrap();
        assert!(MemoryFile::open(&secret, BLOCKS * BLOCK).is_ok());
        assert!(MemoryFile::open(&planted, BLOCKS * BLOCK).is_err());
    }

    #[test]
    fn a_snapshot_of_another_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        BaseWriter::create(&path("a.base"), 2 * BLOCKS * BLOCK).unwrap().finish(false).unwrap();
        let parent = Arc::new(Image::create(&path("a.image"), &path("a.base"), &[], false).unwrap());
        sparse(&path("file"), &[]);
        let file = path("file");
        let target = MemoryTarget::Layer { path: path("b.layer"), parent };
        let error = MemoryFile::open(&file, BLOCKS * BLOCK).unwrap().save(&target).unwrap_err();
        assert!(matches!(error, VmmError::MemorySize { .. }), "{error}");
        assert!(!path("b.layer").exists());
    }
}
