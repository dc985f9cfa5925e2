//! Base images (types as the rest of the agent uses them).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::AgentConfig;

/// Kernel.
#[derive(Debug, Clone)]
pub struct KernelImage {
    /// Release.
    pub version: String,
    /// Kernel file.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initramfs: PathBuf,
    /// Command line.
    pub cmdline: String,
}

/// Template.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Template {
    /// Absolute path of the raw base disk.
    pub disk: PathBuf,
    /// MiB.
    pub disk_mb: u32,
    /// User.
    pub default_user: String,
    /// Env.
    pub default_env: BTreeMap<String, String>,
}

impl Template {
    /// Loads template.json in the directory.
    pub fn load(dir: &Path) -> std::io::Result<Self> {
        let bytes = std::fs::read(dir.join("template.json"))?;
        serde_json::from_slice(&bytes).map_err(std::io::Error::other)
    }
}

/// Both.
#[derive(Debug, Clone)]
pub struct BaseImages {
    /// Kernel.
    pub kernel: KernelImage,
    /// Template.
    pub template: Template,
}

/// Whether the images are there.
pub fn are_built(_dir: &Path) -> bool {
    false
}

/// Blocking.
pub fn ensure_with_progress(_config: &AgentConfig, _progress: &(dyn Fn(&str) + Sync)) -> std::io::Result<BaseImages> {
    Err(std::io::Error::other("unfinished"))
}

/// In a blocking task.
pub async fn ensure_quietly(config: &AgentConfig) -> anyhow::Result<BaseImages> {
    let config = config.clone();
    Ok(tokio::task::spawn_blocking(move || ensure_with_progress(&config, &|_| {})).await??)
}
