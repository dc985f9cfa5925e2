//! Root disks as qcow2 images over a raw base, made with `qemu-img`.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::Deserialize;
use tokio::fs;
use tokio::process::Command;

use crate::{DiskError, MIB, RootDisk, RootDisks};

/// The driver; it holds nothing but the name of the tool.
#[derive(Debug, Clone)]
pub struct Qcow2Disks {
    tool: PathBuf,
}

/// What `qemu-img info --output=json` says, as far as it matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    full_backing_filename: Option<PathBuf>,
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
        // The caller may be cancelled at any await; a tool without a reader must not go on writing.
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
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if message.contains("No space left on device") || message.contains("Disk quota exceeded") {
            return Err(DiskError::Full { path: path.to_path_buf() });
        }
        Err(DiskError::Tool { action, path: path.to_path_buf(), message })
    }

    async fn info(&self, path: &Path) -> Result<Info, DiskError> {
        // A running VMM holds the image's lock; `-U` reads the header beside it.
        let args = ["info", "-U", "--output=json", "-f", "qcow2"].map(OsStr::new);
        let text = self.run("read", path, args.into_iter().chain([path.as_os_str()])).await?;
        serde_json::from_str(&text).map_err(|error| DiskError::Tool {
            action: "describe",
            path: path.to_path_buf(),
            message: error.to_string(),
        })
    }

    async fn write(&self, overlay: &Path, base: &Path, bytes: u64) -> Result<(), DiskError> {
        let (head, size) =
            (["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(OsStr::new), bytes.to_string());
        let tail = [base.as_os_str(), overlay.as_os_str(), OsStr::new(&size)];
        self.run("create", overlay, head.into_iter().chain(tail)).await.map(drop)
    }
}

/// The absolute path and length of a base image.
async fn base_image(base: &Path) -> Result<(PathBuf, u64), DiskError> {
    let found = async { Ok((fs::canonicalize(base).await?, fs::metadata(base).await?.len())) }.await;
    found.map_err(|source: std::io::Error| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            DiskError::BackingMissing { path: base.to_path_buf() }
        }
        _ => DiskError::io("open", base, source),
    })
}

async fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path).await {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(DiskError::io("delete", path, source)),
        _ => Ok(()),
    }
}

#[async_trait]
impl RootDisks for Qcow2Disks {
    async fn create(&self, overlay: &Path, base: &Path, size_mb: u32) -> Result<RootDisk, DiskError> {
        let (base, base_bytes) = base_image(base).await?;
        let virtual_bytes = u64::from(size_mb) * MIB;
        if virtual_bytes < base_bytes {
            let base_mb = base_bytes.div_ceil(MIB);
            return Err(DiskError::TooSmall { asked_mb: u64::from(size_mb), base_mb });
        }
        // qemu-img truncates what it finds, so the name is taken first, by the one call that cannot be raced.
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(overlay).await {
            Ok(_) => {}
            Err(source) if source.kind() == ErrorKind::AlreadyExists => {
                return Err(DiskError::Exists { path: overlay.to_path_buf() });
            }
            Err(source) => return Err(DiskError::io("create", overlay, source)),
        }
        if let Err(error) = self.write(overlay, &base, virtual_bytes).await {
            remove(overlay).await?;
            return Err(error);
        }
        Ok(RootDisk { overlay: overlay.to_path_buf(), base, virtual_bytes })
    }

    async fn open(&self, overlay: &Path) -> Result<RootDisk, DiskError> {
        let info = self.info(overlay).await?;
        let base = info
            .full_backing_filename
            .filter(|_| info.format == "qcow2")
            .ok_or_else(|| DiskError::NotAnOverlay { path: overlay.to_path_buf() })?;
        let (base, _) = base_image(&base).await?;
        Ok(RootDisk { overlay: overlay.to_path_buf(), base, virtual_bytes: info.virtual_size })
    }

    async fn close(&self, _overlay: &Path) -> Result<(), DiskError> {
        Ok(())
    }

    async fn delete(&self, overlay: &Path) -> Result<(), DiskError> {
        self.close(overlay).await?;
        remove(overlay).await
    }
}
