//! Reading what the layers put over the base, in ascending order and through windows that read ahead.
//!
//! A layer keeps its blocks in ascending order, so a walk through the image is a walk through each of its layers. Each
//! has a window of [`RUN_BYTES`] that follows the walk; a block is checked when it is handed out.

use crate::fields::in_memory;
use crate::image::Image;
use crate::layer_file::LayerFile;
use crate::map::find;
use crate::{BLOCK, Extent, ImageError, RUN_BYTES, Source};

/// Some blocks of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The bytes of whole blocks.
    Data(&'a [u8]),
    /// This many blocks of zeros.
    Zero(u64),
}

/// Looks up overriding blocks. Made for ascending ones, and right for any.
#[derive(Debug)]
pub struct Cursor<'a> {
    image: &'a Image,
    windows: Windows<'a>,
    index: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(image: &'a Image) -> Self {
        Self { image, windows: Windows::new(image), index: 0 }
    }

    /// What the layers say about a block: its bytes, a zero block, or none where the base's block holds.
    ///
    /// # Errors
    /// [`ImageError`] where the layer cannot be read or is damaged.
    pub fn at(&mut self, block: u64) -> Result<Option<Piece<'_>>, ImageError> {
        let map = self.image.overrides();
        if self.index > 0 && map[self.index - 1].end() > block {
            self.index = 0;
        }
        let behind = map[self.index..].first().is_some_and(|extent| extent.end() <= block);
        if behind {
            self.index += find(&map[self.index..], block);
        }
        match map.get(self.index) {
            Some(extent) if extent.block <= block => {
                self.windows.piece(&extent.part(block, block + 1)).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// A window on each layer of an image.
#[derive(Debug)]
pub(crate) struct Windows<'a> {
    image: &'a Image,
    windows: Vec<Window>,
}

#[derive(Debug, Default, Clone)]
struct Window {
    /// Offset of the first byte in the layer.
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Windows<'a> {
    pub(crate) fn new(image: &'a Image) -> Self {
        Self { image, windows: vec![Window::default(); image.layers()] }
    }

    /// The first blocks of an extent: all of them if they are zeros, else as many as the window shows.
    pub(crate) fn piece(&mut self, extent: &Extent) -> Result<Piece<'_>, ImageError> {
        let Source::Layer { layer, offset } = extent.source else {
            return Ok(Piece::Zero(extent.count));
        };
        let bytes = in_memory(extent.count * BLOCK);
        self.windows[layer].show(self.image.layer_file(layer), offset, bytes).map(Piece::Data)
    }
}

impl Window {
    /// Up to `wanted` bytes of the layer from `offset` on, checked.
    fn show(&mut self, layer: &LayerFile, offset: u64, wanted: usize) -> Result<&[u8], ImageError> {
        if offset < self.start || offset >= self.start + self.bytes.len() as u64 {
            self.move_to(layer, offset)?;
        }
        let skip = in_memory(offset - self.start);
        let end = skip.saturating_add(wanted).min(self.bytes.len());
        let bytes = &self.bytes[skip..end];
        layer.check(offset, bytes)?;
        Ok(bytes)
    }

    fn move_to(&mut self, layer: &LayerFile, offset: u64) -> Result<(), ImageError> {
        let rest = layer.data_bytes() - offset;
        // Empty until it is full again: a failed reading must not leave anything to show.
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(in_memory(rest).min(RUN_BYTES), 0);
        layer.read_unchecked(offset, &mut bytes)?;
        (self.start, self.bytes) = (offset, bytes);
        Ok(())
    }
}
