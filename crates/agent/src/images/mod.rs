//! The kernel, the initial file system and the base image that capsules start from: made on the first start, out of
//! Debian's packages and the guest daemon that this binary carries.
//!
//! ```text
//!   <root>/kernels/<version>/   vmlinux, modules/<n>-<name>.ko, initramfs-<hash>
//!   <root>/templates/<nil>/<nil>/   template.json, rootfs-<hash>.ext4
//! ```
//!
//! Everything is made beside its final name and renamed, under a lock that holds across processes, so a crash leaves
//! either the old or the new. A disk carries the hash of its definition in its name and is never replaced: existing
//! capsules hold links of the one they were made over, so [`prune`] may remove it. Where a shared cache is given, artefacts are made there and linked into the data directory.

mod bzimage;
mod cpio;
mod definition;
mod error;
mod initramfs;
mod kernel;
mod modules;
mod prune;
mod rootfs;
mod store;
mod tool;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use error::ImageError;
pub use initramfs::guest_binary;
pub use prune::{PruneError, prune};

use crate::config::AgentConfig;
use definition::Definition;
use store::Store;

/// The template's description in its directory.
const TEMPLATE_FILE: &str = "template.json";

/// Where progress is told, a line for each step.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);

/// Where images are made, and out of what.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    /// The data directory.
    pub dir: PathBuf,
    /// A directory of artefacts shared with other installations.
    pub cache: Option<PathBuf>,
    /// The Debian mirror for the base image, in place of the official one.
    pub mirror: Option<String>,
}

impl From<&AgentConfig> for ImageConfig {
    fn from(config: &AgentConfig) -> Self {
        Self {
            dir: config.dir.clone(),
            cache: config.image_cache.clone(),
            mirror: config.debian_mirror.clone(),
        }
    }
}

/// What a guest is booted with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelImage {
    /// The kernel's release, as `uname -r` prints it.
    pub version: String,
    /// The kernel: uncompressed where it could be unpacked, which saves an emulated guest the work.
    pub kernel: PathBuf,
    /// The initial file system: the guest daemon and the modules it loads.
    pub initramfs: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
}

/// A template as its `template.json` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// The name that users know.
    pub name: String,
    /// `base`: a root disk without memory.
    #[serde(rename = "type")]
    pub kind: String,
    /// Release of the kernel it was made beside.
    pub kernel: String,
    /// Linux user of commands that name none.
    pub default_user: String,
    /// Variables of every process.
    pub default_env: BTreeMap<String, String>,
    /// The root disk, a raw image that is never written. A bare file name in `template.json`.
    pub disk: PathBuf,
    /// Capacity of the disk in MiB.
    pub disk_mb: u32,
    /// Hash of the definition that the disk was made from.
    pub definition: String,
}

impl Template {
    /// Reads the template in `dir`; its disk's path becomes absolute.
    ///
    /// # Errors
    /// Where there is no template, or its description or disk is damaged.
    pub fn load(dir: &Path) -> std::io::Result<Self> {
        let mut template: Self = serde_json::from_slice(&fs::read(dir.join(TEMPLATE_FILE))?)?;
        template.disk = fs::canonicalize(dir.join(&template.disk))?;
        Ok(template)
    }
}

/// All that a capsule of the built-in template needs.
#[derive(Debug, Clone)]
pub struct BaseImages {
    /// What it is booted with.
    pub kernel: KernelImage,
    /// The template `minimal`.
    pub template: Template,
}

/// Directory of the built-in template, relative to the data directory's `templates`.
pub(crate) fn built_in() -> PathBuf {
    let nil = Uuid::nil().to_string();
    Path::new(&nil).join(&nil)
}

/// Whether the data directory `dir` has a kernel and a current base image, so that [`ensure`] would need no tools.
pub fn are_built(dir: &Path) -> bool {
    let template = Template::load(&dir.join("templates").join(built_in()));
    let current =
        Definition::built_in().is_ok_and(|it| template.is_ok_and(|made| made.definition == it.hash()));
    current && kernel::newest(dir).is_some()
}

/// Makes what is missing or out of date, and says where everything is. Blocks, for minutes on the first call.
///
/// # Errors
/// [`ImageError`] where a tool is missing or fails, the network is away, or the disk is full.
pub fn ensure(config: &ImageConfig, progress: Progress) -> Result<BaseImages, ImageError> {
    let definition = Definition::built_in()?;
    let store = Store::open(&config.dir, progress)?;
    let cache = match &config.cache {
        Some(dir) => Some(Store::open(dir, progress)?),
        None => None,
    };
    let kernel = kernel::ensure(&store, cache.as_ref(), progress)?;
    let kernel = initramfs::ensure(&store, kernel)?;
    let disk = rootfs::ensure(&store, cache.as_ref(), &definition, config.mirror.as_deref(), progress)?;
    let dir = store.path("templates").join(built_in());
    let template = Template {
        name: definition.name.clone(),
        kind: "base".to_owned(),
        kernel: kernel.version.clone(),
        default_user: definition.default_user.clone(),
        default_env: definition.env.clone(),
        disk: disk.file_name().map(PathBuf::from).unwrap_or_default(),
        disk_mb: definition.size_mb,
        definition: definition.hash(),
    };
    let path = dir.join(TEMPLATE_FILE);
    let text =
        serde_json::to_vec_pretty(&template).map_err(|error| ImageError::io("describe", &path, error))?;
    store.write(&path, &text)?;
    let template = Template::load(&dir).map_err(|error| ImageError::io("read", &path, error))?;
    Ok(BaseImages { kernel, template })
}

/// As [`ensure`], for an agent's configuration.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_with_progress(config: &AgentConfig, progress: Progress) -> Result<BaseImages, ImageError> {
    ensure(&config.into(), progress)
}

/// As [`ensure`], on a thread for blocking work, with progress in the log.
///
/// # Errors
/// As [`ensure`].
pub async fn ensure_quietly(config: &AgentConfig) -> anyhow::Result<BaseImages> {
    let config = ImageConfig::from(config);
    let work = move || ensure(&config, &|line| tracing::info!("{line}"));
    Ok(tokio::task::spawn_blocking(work).await??)
}
