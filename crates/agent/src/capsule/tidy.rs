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
        let stem = new_stem("memory");
        let made = Made::new(&dir, &stem, flat.as_ref());
        let written = crate::blocking(move || {
            let image = Image::open(&dir.join(&saved.memory))?;
            let before = image.header_path().to_owned();
            let image = smaller(image, &dir, &stem)?;
            if flat.is_none() && image.header_path() == before {
                return Ok(None);
            }
            let chain = flat.unwrap_or(chain);
            let files = image.files();
            files::sync(files.iter().map(PathBuf::as_path))?;
            let devices = dir.join(&saved.devices);
            let saved = Saved::describe(&image, &devices, &chain, saved.about())?;
            Ok::<_, CapsuleError>(Some((saved, made)))
        });
        Ok(written.await?.map(|(saved, made)| {
            made.keep();
            saved
        }))
    }
}

/// New files, which go again unless they are kept: a capsule may be resumed while they are written, and the thread that
/// writes them goes on to its end all the same.
#[derive(Debug)]
struct Made(Vec<PathBuf>);

impl Made {
    fn new(dir: &Path, stem: &str, flat: Option<&Chain>) -> Self {
        let memory = ["base", "layer", "image"].map(|kind| dir.join(format!("{stem}.{kind}")));
        Self(memory.into_iter().chain(flat.map(|chain| chain.top().to_owned())).collect())
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // Most were not made; one that does not go is removed as a leftover later.
            let _absent = std::fs::remove_file(path);
        }
    }
}

/// The image with a new base where its layers have outgrown a quarter of the memory, or with its layers merged where
/// they are as many as there may be. New files are called `stem`.
fn smaller(image: Image, dir: &Path, stem: &str) -> Result<Image, CapsuleError> {
    let blocks: u64 = image.overrides().iter().map(|extent| extent.count).sum();
    if blocks * BLOCK_BYTES as u64 > image.size_bytes() / 4 {
        let base = dir.join(format!("{stem}.base"));
        image.materialise(&base, true)?;
        fault::point("tidy.rebased");
        return over(None, &base, &dir.join(format!("{stem}.image")), true);
    }
    let image = with_room(image, dir, stem, MAX_LAYERS - 1)?;
    fault::point("tidy.merged");
    Ok(image)
}

/// Layers at the bottom that others use too, which merging would only double; none where they alone are too many.
fn shared_layers(chain: &Chain) -> usize {
    let is_shared = |path: &&PathBuf| std::fs::metadata(path).is_ok_and(|meta| meta.nlink() > 1);
    let shared = chain.layers.iter().take_while(is_shared).count();
    if shared < MAX_DEPTH { shared } else { 0 }
}
