//! A plain model of an image, and the files that should hold the same.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use wrenn_image::{BLOCK_BYTES, BaseWriter, Image, ImageError, LayerWriter, Piece};

/// What a layer does to a range of blocks.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) block: usize,
    pub(crate) count: usize,
    /// The byte that fills the blocks; 0 through `write` becomes a zero range, as does `zero`.
    pub(crate) fill: u8,
    /// Whether zeros are written as data or recorded with `zero`.
    pub(crate) explicit: bool,
}

/// A block that is different for each place and fill, and zero for fill 0.
pub(crate) fn block_of(block: usize, fill: u8) -> Vec<u8> {
    let mut bytes = vec![fill; BLOCK_BYTES];
    if fill != 0 {
        bytes[..8].copy_from_slice(&(block as u64).to_le_bytes());
    }
    bytes
}

pub(crate) fn blocks_of(change: &Change) -> Vec<u8> {
    (change.block..change.block + change.count).flat_map(|block| block_of(block, change.fill)).collect()
}

/// Sorted changes that do not overlap and end within `blocks`.
pub(crate) fn settle(mut changes: Vec<Change>, blocks: usize) -> Vec<Change> {
    changes.sort_by_key(|change| change.block);
    let mut free = 0;
    changes.retain_mut(|change| {
        change.block = change.block.max(free);
        change.count = change.count.min(blocks.saturating_sub(change.block));
        free = change.block + change.count;
        change.count > 0
    });
    changes
}

/// An image in a directory of its own, with the content it should have.
pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    pub(crate) model: Vec<u8>,
    pub(crate) layers: Vec<PathBuf>,
    /// For each block, whether a layer speaks of it.
    pub(crate) overridden: Vec<bool>,
}

impl Fixture {
    pub(crate) fn new(blocks: usize, base: &[Change]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut model = vec![0; blocks * BLOCK_BYTES];
        let mut writer = BaseWriter::create(&dir.path().join("base"), model.len() as u64).unwrap();
        for change in base {
            writer.write(change.block as u64, &blocks_of(change)).unwrap();
            apply(&mut model, change);
        }
        writer.finish(false).unwrap();
        Self { dir, model, layers: Vec::new(), overridden: vec![false; blocks] }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn layer(&mut self, changes: &[Change]) {
        let path = self.path(&format!("layer-{}", self.layers.len()));
        let mut writer = LayerWriter::create(&path, self.model.len() as u64).unwrap();
        for change in changes {
            if change.fill == 0 && !change.explicit {
                writer.zero(change.block as u64, change.count as u64).unwrap();
            } else {
                writer.write(change.block as u64, &blocks_of(change)).unwrap();
            }
            apply(&mut self.model, change);
            self.overridden[change.block..change.block + change.count].fill(true);
        }
        writer.finish(false).unwrap();
        self.layers.push(path);
    }

    pub(crate) fn image(&self) -> Image {
        let layers: Vec<&Path> = self.layers.iter().map(PathBuf::as_path).collect();
        let made = Image::create(&self.path("image"), &self.path("base"), &layers, false).unwrap();
        let opened = Image::open(&self.path("image")).unwrap();
        assert_eq!(made.overrides(), opened.overrides());
        opened
    }
}

fn apply(model: &mut [u8], change: &Change) {
    let start = change.block * BLOCK_BYTES;
    model[start..start + change.count * BLOCK_BYTES].copy_from_slice(&blocks_of(change));
}

pub(crate) fn read_all(image: &Image) -> Result<Vec<u8>, ImageError> {
    let mut all = vec![0xAA; usize::try_from(image.size_bytes()).unwrap()];
    image.read(0, &mut all)?;
    Ok(all)
}

/// The overriding blocks as a map from block to content.
pub(crate) fn overrides(image: &Image) -> Result<Vec<Option<Vec<u8>>>, ImageError> {
    let blocks = usize::try_from(image.size_bytes()).unwrap() / BLOCK_BYTES;
    let (mut found, mut next) = (vec![None; blocks], 0);
    image.read_overrides(|block, piece| {
        let block = usize::try_from(block).unwrap();
        assert!(block >= next, "ascending");
        let bytes = match piece {
            Piece::Data(bytes) => bytes.to_vec(),
            Piece::Zero(count) => vec![0; usize::try_from(count).unwrap() * BLOCK_BYTES],
        };
        assert!(!bytes.is_empty());
        for (index, bytes) in bytes.chunks(BLOCK_BYTES).enumerate() {
            found[block + index] = Some(bytes.to_vec());
        }
        next = block + bytes.len() / BLOCK_BYTES;
        Ok::<_, ImageError>(())
    })?;
    Ok(found)
}

/// Names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}
