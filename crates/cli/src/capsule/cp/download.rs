//! From a capsule to this machine.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use futures::{StreamExt, TryStreamExt};
use tempfile::NamedTempFile;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use wrenn_client::{FileEntry, FileKind};

use super::{AT_ONCE, Copier, RemoteKind, Summary, place};
use crate::output;

/// Mode of a new file, before the umask.
const NEW_FILE: u32 = 0o666;

/// What becomes of an entry of a directory in the capsule.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a local directory and go on in it.
    Descend,
    /// Copy the file.
    Copy,
    /// Leave it out, because of this.
    Skip(&'static str),
}

/// Decides about an entry. Links to directories are not followed, because they may lead in circles or out of what
/// was asked for.
pub(super) fn step(entry: &FileEntry) -> Step {
    match entry.kind {
        _ if !place::is_safe_name(&entry.name) => Step::Skip("its name is not a file name"),
        FileKind::Directory if entry.symlink_target.is_some() => Step::Skip("a link to a directory"),
        FileKind::Directory => Step::Descend,
        FileKind::Symlink => Step::Skip("a link that leads nowhere"),
        FileKind::File if entry.is_special() => Step::Skip("not a regular file"),
        FileKind::File => Step::Copy,
    }
}

impl Copier {
    /// Copies the file or directory `from` to a local path.
    pub(super) async fn download(&self, from: &str, to: &Path) -> anyhow::Result<Summary> {
        let summary = match self.kind(from).await? {
            RemoteKind::Missing => bail!("there is no {from} in the capsule"),
            RemoteKind::Directory => self.download_directory(from, to).await?,
            RemoteKind::Other => {
                let target = local_target(to, place::own_name(from))?;
                self.download_file(from, &target).await?;
                Summary { files: 1, bytes: self.progress.moved(), ..Summary::default() }
            }
        };
        self.progress.finish();
        Ok(summary)
    }

    /// Copies the file `from` to standard output.
    pub(super) async fn download_to_stdout(&self, from: &str) -> anyhow::Result<Summary> {
        let mut chunks = self.open(from).await?;
        let mut stdout = tokio::io::stdout();
        while let Some(chunk) = chunks.next().await {
            stdout.write_all(&chunk?).await.map_err(output::stdout_error)?;
        }
        stdout.flush().await.map_err(output::stdout_error)?;
        Ok(Summary::default())
    }

    async fn download_directory(&self, from: &str, to: &Path) -> anyhow::Result<Summary> {
        let root = match (place::own_name(from), to.is_dir()) {
            (Some(name), true) => to.join(name),
            _ => to.to_owned(),
        };
        let mut summary = Summary::default();
        let mut open = vec![(from.to_owned(), root)];
        while let Some((directory, local)) = open.pop() {
            make_directory(&local)?;
            summary.directories += 1;
            let entries = self.client.list_files(self.id, &directory, 1).await;
            let entries = entries.with_context(|| format!("cannot list {directory} in the capsule"))?;
            let mut files = Vec::new();
            for entry in entries {
                let (path, target) = (place::join(&directory, &entry.name), local.join(&entry.name));
                match step(&entry) {
                    Step::Descend => open.push((path, target)),
                    Step::Copy => files.push((path, target)),
                    Step::Skip(why) => summary.skip(&path, why),
                }
            }
            summary.files += files.len() as u64;
            futures::stream::iter(files)
                .map(Ok)
                .try_for_each_concurrent(AT_ONCE, |(path, target)| async move {
                    if target.is_dir() {
                        bail!("{} is a directory, and is not replaced with a file", target.display());
                    }
                    self.download_file(&path, &target).await
                })
                .await?;
        }
        summary.bytes = self.progress.moved();
        Ok(summary)
    }

    async fn open(
        &self,
        path: &str,
    ) -> anyhow::Result<impl futures::Stream<Item = Result<bytes::Bytes, wrenn_client::Error>> + Unpin + use<>>
    {
        let begun = self.client.download(self.id, path).await;
        begun.with_context(|| format!("cannot read {path} in the capsule"))
    }

    /// Copies one file. A regular file appears, or changes, only when it is complete; anything else that is there (a
    /// pipe, a device) is written to.
    async fn download_file(&self, from: &str, to: &Path) -> anyhow::Result<()> {
        let chunks = self.open(from).await?;
        // Replace what a link leads to, not the link.
        let to = fs::canonicalize(to).unwrap_or_else(|_| to.to_owned());
        let cannot_write = || format!("cannot write {}", to.display());
        match fs::metadata(&to) {
            Ok(meta) if !meta.is_file() => {
                let mut file =
                    tokio::fs::OpenOptions::new().write(true).open(&to).await.with_context(cannot_write)?;
                self.pour(chunks, &mut file, from, &to).await
            }
            existing => {
                let temporary = temporary_beside(&to).with_context(cannot_write)?;
                if let Ok(meta) = existing {
                    temporary.as_file().set_permissions(meta.permissions()).with_context(cannot_write)?;
                }
                let file = temporary.as_file().try_clone().with_context(cannot_write)?;
                self.pour(chunks, &mut tokio::fs::File::from_std(file), from, &to).await?;
                temporary.persist(&to).map(drop).map_err(|e| e.error).with_context(cannot_write)
            }
        }
    }

    async fn pour(
        &self,
        mut chunks: impl futures::Stream<Item = Result<bytes::Bytes, wrenn_client::Error>> + Unpin,
        file: &mut (impl AsyncWrite + Unpin),
        from: &str,
        to: &Path,
    ) -> anyhow::Result<()> {
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.with_context(|| format!("cannot read {from} in the capsule"))?;
            file.write_all(&chunk).await.with_context(|| format!("cannot write {}", to.display()))?;
            self.progress.advance(chunk.len());
        }
        file.flush().await.with_context(|| format!("cannot write {}", to.display()))
    }
}

fn temporary_beside(path: &Path) -> std::io::Result<NamedTempFile> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new()
        .prefix(".wrenn-")
        .permissions(Permissions::from_mode(NEW_FILE))
        .tempfile_in(parent)
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if path.exists() {
        bail!("{} is a file, and is not replaced with a directory", path.display());
    }
    fs::create_dir(path).with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Where a file goes: into an existing directory under its own name, else to the path itself.
pub(super) fn local_target(to: &Path, name: Option<&str>) -> anyhow::Result<PathBuf> {
    if !to.is_dir() {
        if to.as_os_str().as_encoded_bytes().ends_with(b"/") {
            bail!("there is no directory {}", to.display());
        }
        return Ok(to.to_owned());
    }
    let target = to.join(name.context("the source has no name of its own; name the destination file")?);
    if target.is_dir() {
        bail!("{} is a directory, and is not replaced with a file", target.display());
    }
    Ok(target)
}
