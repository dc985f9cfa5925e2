//! What every driver does in the same way: everything but the bytes of a layer.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use crate::chain::{self, BASE, Chain, Kind};
use crate::files::{self, Made};
use crate::walk::{self, Described};
use crate::{DiskError, MIB, MOST_LAYERS, RootDisks, directory};

/// Writes the layers of a chain above the first so many to the new layer at the path, durably. Stops soon after the flag
/// is set.
pub(crate) type Merge = fn(&Chain, usize, &Path, &AtomicBool, &mut Made) -> Result<(), DiskError>;

/// The layers of one driver.
#[async_trait]
pub(crate) trait Layers: std::fmt::Debug + Send + Sync {
    /// How they are named.
    const KIND: Kind;
    /// MiB of the largest disk.
    const MOST_MB: u64;
    /// How they are merged.
    const MERGE: Merge;

    /// Writes the empty layer `path` of `virtual_bytes` over `below`, a file beside it.
    fn write_empty(path: &Path, virtual_bytes: u64, below: &Path, made: &mut Made) -> Result<(), DiskError>;

    /// What the layer at `path` says of itself.
    fn describe(path: &Path) -> Result<Described, DiskError>;

    /// Refuses a base of `bytes` that the driver cannot build on.
    fn check_base(path: &Path, bytes: u64) -> Result<(), DiskError> {
        let (_, _) = (path, bytes);
        Ok(())
    }

    /// A second opinion on a merged layer, before those that it replaces are given up.
    async fn check_merged(&self, layer: &Path) -> Result<(), DiskError>;
}

#[async_trait]
impl<L: Layers> RootDisks for L {
    async fn create(&self, dir: &Path, base: &Path, size_mb: u32) -> Result<Chain, DiskError> {
        let (at, base) = (dir.to_path_buf(), base.to_path_buf());
        let (chain, made) = blocking(dir, move |made| create_now::<L>(&at, &base, size_mb, made)).await?;
        made.keep();
        Ok(chain)
    }

    async fn push(&self, chain: &Chain, size_mb: Option<u32>) -> Result<Chain, DiskError> {
        let below = chain.clone();
        let (chain, made) = blocking(chain.dir(), move |made| push_now::<L>(&below, size_mb, made)).await?;
        made.keep();
        Ok(chain)
    }

    async fn link(&self, chain: &Chain, dir: &Path) -> Result<Chain, DiskError> {
        let (from, to) = (chain.clone(), dir.to_path_buf());
        let (chain, made) = blocking(dir, move |made| link_now(&from, &to, made)).await?;
        made.keep();
        Ok(chain)
    }

    async fn open(&self, dir: &Path, top: &str) -> Result<Chain, DiskError> {
        let (at, top) = (dir.to_path_buf(), top.to_owned());
        let open = move |_: &mut Made| {
            let chain = walk::walk(&directory(&at)?, &top, L::describe)?;
            L::check_base(&chain.base, base_bytes(&chain)?)?;
            Ok(chain)
        };
        let (chain, _) = blocking(dir, open).await?;
        Ok(chain)
    }

    async fn flatten(&self, chain: &Chain, keep: usize) -> Result<Chain, DiskError> {
        if chain.layers.len() < keep.saturating_add(2) {
            return Ok(chain.clone());
        }
        let gone = CancelOnDrop::default();
        let (old, cancelled) = (chain.clone(), Arc::clone(&gone.0));
        let path = chain.dir().join(chain::new_layer_name(L::KIND));
        let to = path.clone();
        let work = move |made: &mut Made| (L::MERGE)(&old, keep, &to, &cancelled, made);
        let ((), made) = blocking(chain.dir(), work).await?;
        let layers = chain.layers[..keep].iter().cloned().chain([path]).collect();
        let flat = Chain { layers, ..chain.clone() };
        self.check_merged(flat.top()).await?;
        let dir = flat.dir().to_path_buf();
        blocking(flat.dir(), move |_| files::sync_directory(&dir)).await?;
        made.keep();
        Ok(flat)
    }

    async fn sync(&self, chain: &Chain) -> Result<(), DiskError> {
        let synced = chain.clone();
        blocking(chain.dir(), move |_| sync_now(&synced)).await.map(drop)
    }

    async fn remove_unlisted(&self, dir: &Path, keep: &Chain) -> Result<(), DiskError> {
        let (at, keep) = (dir.to_path_buf(), keep.clone());
        blocking(dir, move |_| remove_unlisted_now(&at, &keep)).await.map(drop)
    }
}

/// Tells the work that its caller is gone.
#[derive(Debug, Default)]
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` where it may block. The files that it made go away with it when the caller does.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&mut Made) -> Result<T, DiskError> + Send + 'static,
) -> Result<(T, Made), DiskError> {
    let task = tokio::task::spawn_blocking(move || {
        let mut made = Made::default();
        Ok((work(&mut made)?, made))
    });
    task.await.map_err(|error| DiskError::io("work on", path, std::io::Error::other(error)))?
}

fn create_now<L: Layers>(dir: &Path, base: &Path, size_mb: u32, made: &mut Made) -> Result<Chain, DiskError> {
    let dir = directory(dir)?;
    let found = std::fs::canonicalize(base).and_then(|path| Ok((path.metadata()?.len(), path)));
    let (base_bytes, base) = found.map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            DiskError::BackingMissing { path: base.to_path_buf() }
        }
        _ => DiskError::io("open", base, source),
    })?;
    L::check_base(&base, base_bytes)?;
    let virtual_bytes = checked_size::<L>(size_mb, base_bytes)?;
    let chain = Chain { base: dir.join(BASE), layers: Vec::new(), virtual_bytes };
    files::share(&base, &chain.base, made)?;
    add_layer::<L>(chain, made)
}

fn push_now<L: Layers>(chain: &Chain, size_mb: Option<u32>, made: &mut Made) -> Result<Chain, DiskError> {
    if chain.layers.len() >= MOST_LAYERS {
        return Err(DiskError::TooDeep { path: chain.top().to_path_buf(), layers: chain.layers.len() });
    }
    let virtual_bytes = match size_mb {
        Some(size_mb) => checked_size::<L>(size_mb, chain.virtual_bytes)?,
        None => chain.virtual_bytes,
    };
    let pushed = add_layer::<L>(Chain { virtual_bytes, ..chain.clone() }, made)?;
    files::freeze(chain.top())?;
    Ok(pushed)
}

/// Bytes of a disk of `size_mb` that holds `least` bytes already.
fn checked_size<L: Layers>(size_mb: u32, least: u64) -> Result<u64, DiskError> {
    let (asked_mb, base_mb) = (u64::from(size_mb), least.div_ceil(MIB).max(1));
    if asked_mb < base_mb {
        return Err(DiskError::TooSmall { asked_mb, base_mb });
    }
    if asked_mb > L::MOST_MB {
        return Err(DiskError::TooLarge { asked_mb, most_mb: L::MOST_MB });
    }
    Ok(asked_mb * MIB)
}

fn add_layer<L: Layers>(mut chain: Chain, made: &mut Made) -> Result<Chain, DiskError> {
    let path = chain.dir().join(chain::new_layer_name(L::KIND));
    L::write_empty(&path, chain.virtual_bytes, chain.top(), made)?;
    chain.layers.push(path);
    Ok(chain)
}

/// Length of the base of `chain`.
pub(crate) fn base_bytes(chain: &Chain) -> Result<u64, DiskError> {
    let meta = std::fs::metadata(&chain.base);
    meta.map(|meta| meta.len()).map_err(|source| DiskError::io("measure", &chain.base, source))
}

fn link_now(chain: &Chain, dir: &Path, made: &mut Made) -> Result<Chain, DiskError> {
    let dir = directory(dir)?;
    let mut linked = Chain { base: dir.join(BASE), layers: Vec::new(), virtual_bytes: chain.virtual_bytes };
    files::share(&chain.base, &linked.base, made)?;
    for layer in &chain.layers {
        files::freeze(layer)?;
        let path = dir.join(chain::file_name(layer));
        files::share(layer, &path, made)?;
        linked.layers.push(path);
    }
    Ok(linked)
}

fn sync_now(chain: &Chain) -> Result<(), DiskError> {
    // Clean layers cost next to nothing, and no caller has to know which ones a VMM wrote to last.
    for path in &chain.layers {
        let synced = files::open(path).and_then(|file| file.sync_all());
        synced.map_err(|source| DiskError::io("sync", path, source))?;
    }
    files::sync_directory(chain.dir())
}

fn remove_unlisted_now(dir: &Path, keep: &Chain) -> Result<(), DiskError> {
    let failed = |source| DiskError::io("list", dir, source);
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        let of_a_disk = name == BASE || chain::is_layer_name(name);
        if of_a_disk && !keep.files().any(|path| chain::file_name(path) == name) {
            files::remove(&dir.join(name))?;
        }
    }
    Ok(())
}
