//! Root disks as qcow2 layers over a raw base.
//!
//! A create, a resume and a fork wait for an empty layer, and starting `qemu-img` takes longer than all the rest of
//! making one; so layers are written, read and merged here. `qemu-img` is the second opinion on a merged one, before
//! those that it replaces are given up.

mod format;
mod merge;
mod reader;
mod writer;

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::process::Command;

use crate::chain::{self, BASE, Chain};
use crate::files::{self, Made};
use crate::{DiskError, MIB, MOST_LAYERS, RootDisks, directory};

/// The driver; it holds nothing but the name of the tool.
#[derive(Debug, Clone)]
pub struct Qcow2Disks {
    tool: PathBuf,
}

impl Default for Qcow2Disks {
    fn default() -> Self {
        Self::new("qemu-img")
    }
}

impl Qcow2Disks {
    /// A driver that runs `tool`, a path or a name to look up in `PATH`.
    pub fn new(tool: impl Into<PathBuf>) -> Self {
        Self { tool: tool.into() }
    }

    /// The tool's version line, for a check of the machine.
    ///
    /// # Errors
    /// [`DiskError::ToolMissing`] where it is not installed.
    pub async fn version(&self) -> Result<String, DiskError> {
        let text = self.run("ask the version of", &self.tool, [OsStr::new("--version")]).await?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    async fn run<'a>(
        &self,
        action: &'static str,
        path: &Path,
        args: impl IntoIterator<Item = &'a OsStr>,
    ) -> Result<String, DiskError> {
        // The caller may be cancelled at any await; a tool without a reader must not go on.
        let output = Command::new(&self.tool)
            .args(args)
            .env("LC_ALL", "C")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| match source.kind() {
                ErrorKind::NotFound => DiskError::ToolMissing,
                _ => DiskError::io("run", &self.tool, source),
            })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = [output.stdout, output.stderr].concat();
        let message = String::from_utf8_lossy(&said).trim().to_owned();
        Err(DiskError::Tool { action, path: path.to_path_buf(), message })
    }

    async fn check(&self, layer: &Path) -> Result<(), DiskError> {
        let args = ["check", "-q", "-f", "qcow2"].map(OsStr::new);
        self.run("find sound", layer, args.into_iter().chain([layer.as_os_str()])).await.map(drop)
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

fn create(dir: &Path, base: &Path, size_mb: u32, made: &mut Made) -> Result<Chain, DiskError> {
    let dir = directory(dir)?;
    let found = std::fs::canonicalize(base).and_then(|path| Ok((path.metadata()?.len(), path)));
    let (base_bytes, base) = found.map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            DiskError::BackingMissing { path: base.to_path_buf() }
        }
        _ => DiskError::io("open", base, source),
    })?;
    let virtual_bytes = checked_size(size_mb, base_bytes)?;
    let chain = Chain { base: dir.join(BASE), layers: Vec::new(), virtual_bytes };
    files::share(&base, &chain.base, made)?;
    add_layer(chain, made)
}

fn push(chain: &Chain, size_mb: Option<u32>, made: &mut Made) -> Result<Chain, DiskError> {
    if chain.layers.len() >= MOST_LAYERS {
        return Err(DiskError::TooDeep { path: chain.top().to_path_buf(), layers: chain.layers.len() });
    }
    let virtual_bytes = match size_mb {
        Some(size_mb) => checked_size(size_mb, chain.virtual_bytes)?,
        None => chain.virtual_bytes,
    };
    let pushed = add_layer(Chain { virtual_bytes, ..chain.clone() }, made)?;
    files::freeze(chain.top())?;
    Ok(pushed)
}

/// Bytes of a disk of `size_mb` that holds `least` bytes already.
fn checked_size(size_mb: u32, least: u64) -> Result<u64, DiskError> {
    let (asked_mb, base_mb) = (u64::from(size_mb), least.div_ceil(MIB).max(1));
    if asked_mb < base_mb {
        return Err(DiskError::TooSmall { asked_mb, base_mb });
    }
    if asked_mb > format::MOST_MB {
        return Err(DiskError::TooLarge { asked_mb, most_mb: format::MOST_MB });
    }
    Ok(asked_mb * MIB)
}

fn add_layer(mut chain: Chain, made: &mut Made) -> Result<Chain, DiskError> {
    let path = chain.dir().join(chain::new_layer_name());
    writer::Writer::create(&path, chain.virtual_bytes, chain.top(), made)?.finish()?;
    chain.layers.push(path);
    Ok(chain)
}

fn link(chain: &Chain, dir: &Path, made: &mut Made) -> Result<Chain, DiskError> {
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

fn sync(chain: &Chain) -> Result<(), DiskError> {
    // Clean layers cost next to nothing, and no caller has to know which ones a VMM wrote to last.
    for path in &chain.layers {
        let synced = files::open(path).and_then(|file| file.sync_all());
        synced.map_err(|source| DiskError::io("sync", path, source))?;
    }
    files::sync_directory(chain.dir())
}

fn remove_unlisted(dir: &Path, keep: &Chain) -> Result<(), DiskError> {
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

/// Tells the work that its caller is gone.
#[derive(Debug, Default)]
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl RootDisks for Qcow2Disks {
    async fn create(&self, dir: &Path, base: &Path, size_mb: u32) -> Result<Chain, DiskError> {
        let (at, base) = (dir.to_path_buf(), base.to_path_buf());
        let (chain, made) = blocking(dir, move |made| create(&at, &base, size_mb, made)).await?;
        made.keep();
        Ok(chain)
    }

    async fn push(&self, chain: &Chain, size_mb: Option<u32>) -> Result<Chain, DiskError> {
        let below = chain.clone();
        let (chain, made) = blocking(chain.dir(), move |made| push(&below, size_mb, made)).await?;
        made.keep();
        Ok(chain)
    }

    async fn link(&self, chain: &Chain, dir: &Path) -> Result<Chain, DiskError> {
        let (from, to) = (chain.clone(), dir.to_path_buf());
        let (chain, made) = blocking(dir, move |made| link(&from, &to, made)).await?;
        made.keep();
        Ok(chain)
    }

    async fn open(&self, dir: &Path, top: &str) -> Result<Chain, DiskError> {
        let (at, top) = (dir.to_path_buf(), top.to_owned());
        let (chain, _) = blocking(dir, move |_| reader::walk(&directory(&at)?, &top)).await?;
        Ok(chain)
    }

    async fn flatten(&self, chain: &Chain, keep: usize) -> Result<Chain, DiskError> {
        if chain.layers.len() < keep.saturating_add(2) {
            return Ok(chain.clone());
        }
        let gone = CancelOnDrop::default();
        let (old, cancelled) = (chain.clone(), Arc::clone(&gone.0));
        let path = chain.dir().join(chain::new_layer_name());
        let to = path.clone();
        let merge = move |made: &mut Made| merge::merge(&old, keep, &to, &cancelled, made);
        let ((), made) = blocking(chain.dir(), merge).await?;
        self.check(&path).await?;
        files::sync_directory(chain.dir())?;
        made.keep();
        let layers = chain.layers[..keep].iter().cloned().chain([path]).collect();
        Ok(Chain { layers, ..chain.clone() })
    }

    async fn sync(&self, chain: &Chain) -> Result<(), DiskError> {
        let synced = chain.clone();
        blocking(chain.dir(), move |_| sync(&synced)).await.map(drop)
    }

    async fn remove_unlisted(&self, dir: &Path, keep: &Chain) -> Result<(), DiskError> {
        let (at, keep) = (dir.to_path_buf(), keep.clone());
        blocking(dir, move |_| remove_unlisted(&at, &keep)).await.map(drop)
    }
}
