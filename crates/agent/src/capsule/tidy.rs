//! What is done to a paused capsule in the background, so that it stays cheap to resume: memory layers that have become
//! many or large, and disk layers that have become many, are written anew. Everything is written beside what there is; the
//! actor then commits it, or forgets it where the capsule is resumed first.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wrenn_disk::{Chain, MAX_DEPTH, RootDisks};
use wrenn_image::{BLOCK_BYTES, Image, MAX_LAYERS};

use super::pause::{over, with_room};
use crate::error::CapsuleError;
use crate::fault;
use crate::files;
use crate::saved::{Saved, new_stem};

/// A paused capsule's files.
#[derive(Debug, Clone)]
pub(super) struct Tidy {
    pub(super) dir: PathBuf,
    pub(super) saved: Saved,
    pub(super) disks: Arc<dyn RootDisks>,
}

impl Tidy {
    /// Writes what is worth it, durably; none where nothing was.
    pub(super) async fn run(self) -> Result<Option<Saved>, CapsuleError> {
        let Self { dir, saved, disks } = self;
        let chain = disks.open(&dir, &saved.disk).await?;
        let flat = if chain.layers.len() > MAX_DEPTH {
            let flat = disks.flatten(&chain, shared_layers(&chain)).await?;
            fault::point("tidy.flattened");
            Some(flat)
        } else {
            None
        };
        crate::blocking(move || {
            let image = Image::open(&dir.join(&saved.memory))?;
            let before = image.header_path().to_owned();
            let image = smaller(image, &dir)?;
            if flat.is_none() && image.header_path() == before {
                return Ok(None);
            }
            let chain = flat.unwrap_or(chain);
            let files = image.files();
            files::sync(files.iter().map(PathBuf::as_path))?;
            let devices = dir.join(&saved.devices);
            Ok(Some(Saved::describe(&image, &devices, &chain, saved.about())?))
        })
        .await
    }
}

/// The image with a new base where its layers have outgrown a quarter of the memory, or with its layers merged where
/// they are as many as there may be.
fn smaller(image: Image, dir: &Path) -> Result<Image, CapsuleError> {
    let blocks: u64 = image.overrides().iter().map(|extent| extent.count).sum();
    if blocks * BLOCK_BYTES as u64 > image.size_bytes() / 4 {
        let stem = new_stem("memory");
        let base = dir.join(format!("{stem}.base"));
        image.materialise(&base, true)?;
        fault::point("tidy.rebased");
        return over(None, &base, &dir.join(format!("{stem}.image")), true);
    }
    let image = with_room(image, dir, MAX_LAYERS - 1)?;
    fault::point("tidy.merged");
    Ok(image)
}

/// Layers at the bottom that others use too, which merging would only double; none where they alone are too many.
fn shared_layers(chain: &Chain) -> usize {
    let is_shared = |path: &&PathBuf| std::fs::metadata(path).is_ok_and(|meta| meta.nlink() > 1);
    let shared = chain.layers.iter().take_while(is_shared).count();
    if shared < MAX_DEPTH { shared } else { 0 }
}
