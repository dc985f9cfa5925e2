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

use async_trait::async_trait;
use tokio::process::Command;

use crate::DiskError;
use crate::chain::Kind;
use crate::driver::{Layers, Merge};
use crate::files::Made;
use crate::walk::Described;

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
}

#[async_trait]
impl Layers for Qcow2Disks {
    const KIND: Kind = Kind::Qcow2;
    const MOST_MB: u64 = format::MOST_MB;
    const MERGE: Merge = merge::merge;

    fn write_empty(path: &Path, virtual_bytes: u64, below: &Path, made: &mut Made) -> Result<(), DiskError> {
        writer::Writer::create(path, virtual_bytes, below, made)?.finish().map(drop)
    }

    fn describe(path: &Path) -> Result<Described, DiskError> {
        reader::describe(path)
    }

    async fn check_merged(&self, layer: &Path) -> Result<(), DiskError> {
        let args = ["check", "-q", "-f", "qcow2"].map(OsStr::new);
        self.run("find sound", layer, args.into_iter().chain([layer.as_os_str()])).await.map(drop)
    }
}
