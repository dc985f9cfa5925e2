//! From this machine into a capsule.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use futures::{StreamExt, TryStreamExt};
use tokio::io::AsyncRead;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{InspectReader, StreamReader};

use super::super::stdin;
use super::{AT_ONCE, Copier, RemoteKind, Summary, place, text};

/// What a walk of a local directory found. Paths in the capsule are relative to the destination.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Directories, parents before children.
    pub(super) directories: Vec<String>,
    /// Files: local path, path in the capsule, size in bytes.
    pub(super) files: Vec<(PathBuf, String, u64)>,
    /// What is left out.
    pub(super) summary: Summary,
}

impl Copier {
    /// Copies a local file or directory to `to`.
    pub(super) async fn upload(&self, from: &Path, to: &str) -> anyhow::Result<Summary> {
        let meta = fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
        let summary = if meta.is_dir() {
            self.upload_directory(from, to).await?
        } else {
            let name = from.file_name().and_then(|name| name.to_str());
            let target = self.target(to, name).await?;
            if meta.is_file() {
                self.progress.expect(meta.len());
            }
            self.upload_file(from, &target).await?;
            Summary { files: 1, bytes: self.progress.moved(), ..Summary::default() }
        };
        self.progress.finish();
        Ok(summary)
    }

    /// Copies standard input to the file `to`.
    pub(super) async fn upload_stdin(&self, to: &str) -> anyhow::Result<Summary> {
        let target = self.target(to, None).await?;
        let chunks = ReceiverStream::new(stdin::chunks().context("cannot read standard input")?);
        self.send(StreamReader::new(chunks), &target).await?;
        self.progress.finish();
        Ok(Summary { files: 1, bytes: self.progress.moved(), ..Summary::default() })
    }

    /// Where a file goes: into an existing directory under its own name, else to the path itself.
    async fn target(&self, to: &str, name: Option<&str>) -> anyhow::Result<String> {
        let kind = self.kind(to).await?;
        if kind != RemoteKind::Directory && !to.ends_with('/') {
            return Ok(to.to_owned());
        }
        match (name, kind) {
            (_, RemoteKind::Other) => bail!("{to} in the capsule is a file, not a directory"),
            (None, _) => bail!("{to} in the capsule is a directory; name the file to write"),
            (Some(name), _) => {
                let target = place::join(to, name);
                if self.kind(&target).await? == RemoteKind::Directory {
                    bail!("{target} in the capsule is a directory, and is not replaced with a file");
                }
                Ok(target)
            }
        }
    }

    async fn upload_directory(&self, from: &Path, to: &str) -> anyhow::Result<Summary> {
        let root = match (self.kind(to).await?, directory_name(from)) {
            (RemoteKind::Other, _) => {
                bail!("{to} in the capsule is a file, and is not replaced with a directory")
            }
            (RemoteKind::Directory, Some(name)) => {
                place::join(to, name.to_str().context("the directory's name is not UTF-8")?)
            }
            _ => to.to_owned(),
        };
        let plan = plan(from)?;
        self.progress.expect(plan.files.iter().map(|(_, _, size)| size).sum());
        self.make_directory(&root).await?;
        for directory in &plan.directories {
            self.make_directory(&place::join(&root, directory)).await?;
        }
        let files = plan.files.len() as u64;
        let root = &root;
        futures::stream::iter(plan.files)
            .map(Ok)
            .try_for_each_concurrent(AT_ONCE, |(local, path, _)| async move {
                self.upload_file(&local, &place::join(root, &path)).await
            })
            .await?;
        let directories = plan.directories.len() as u64 + 1;
        Ok(Summary { files, directories, bytes: self.progress.moved(), ..plan.summary })
    }

    async fn make_directory(&self, path: &str) -> anyhow::Result<()> {
        match self.client.mkdir(self.id, path).await {
            Err(error) if error.code() != Some("already_exists") => {
                Err(error).with_context(|| format!("cannot make the directory {path} in the capsule"))
            }
            _ => Ok(()),
        }
    }

    async fn upload_file(&self, from: &Path, to: &str) -> anyhow::Result<()> {
        let file =
            tokio::fs::File::open(from).await.with_context(|| format!("cannot read {}", from.display()))?;
        self.send(file, to).await
    }

    async fn send(&self, content: impl AsyncRead + Send + 'static, to: &str) -> anyhow::Result<()> {
        let progress = self.progress.clone();
        let counted = InspectReader::new(content, move |bytes: &[u8]| progress.advance(bytes.len()));
        self.client
            .upload(self.id, to, counted)
            .await
            .with_context(|| format!("cannot write {to} in the capsule"))
    }
}

/// The name under which a directory is copied; `None` where its contents are meant (`.`, `..`, `dir/.`).
fn directory_name(path: &Path) -> Option<&std::ffi::OsStr> {
    let written = path.as_os_str().as_encoded_bytes();
    let contents = written == b"." || written.ends_with(b"/.") || written.ends_with(b"/./");
    path.file_name().filter(|_| !contents)
}

/// Walks a local directory. Links to files are followed; links to directories are not, because they may lead in
/// circles.
pub(super) fn plan(from: &Path) -> anyhow::Result<Plan> {
    let mut plan = Plan::default();
    let mut open = vec![(from.to_owned(), String::new())];
    while let Some((directory, prefix)) = open.pop() {
        let listed = fs::read_dir(&directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = listed.with_context(|| format!("cannot list {}", directory.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let local = entry.path();
            let Some(name) = local.file_name().and_then(|name| text(Path::new(name))) else {
                plan.summary.skip(&local.display().to_string(), "its name is not UTF-8");
                continue;
            };
            let path = if prefix.is_empty() { name.to_owned() } else { place::join(&prefix, name) };
            let kind = entry.file_type().with_context(|| format!("cannot read {}", local.display()))?;
            if kind.is_dir() {
                plan.directories.push(path.clone());
                open.push((local, path));
                continue;
            }
            let reason = match fs::metadata(&local) {
                Ok(meta) if meta.is_file() => {
                    plan.files.push((local, path, meta.len()));
                    continue;
                }
                Ok(meta) if meta.is_dir() => "a link to a directory",
                Ok(_) => "not a regular file",
                Err(_) => "a link that leads nowhere",
            };
            plan.summary.skip(&local.display().to_string(), reason);
        }
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_meant_where_the_path_ends_in_a_dot() {
        for contents in [".", "a/.", "a/./", "..", "/"] {
            assert_eq!(directory_name(Path::new(contents)), None, "{contents}");
        }
        for named in ["a", "x/a", "x/a/"] {
            assert_eq!(directory_name(Path::new(named)), Some("a".as_ref()), "{named}");
        }
    }

    #[test]
    fn a_walk_follows_links_to_files_and_skips_what_it_cannot_copy() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("sub/deep")).unwrap();
        fs::write(at("sub/deep/f"), "12345").unwrap();
        fs::create_dir(at("empty")).unwrap();
        symlink("sub/deep/f", at("to-file")).unwrap();
        symlink("..", at("sub/loop")).unwrap();
        symlink("nowhere", at("broken")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let plan = plan(dir.path()).unwrap();
        assert_eq!(plan.directories, ["empty", "sub", "sub/deep"]);
        let files: Vec<_> = plan.files.iter().map(|(_, path, size)| (path.as_str(), *size)).collect();
        assert_eq!(files, [("to-file", 5), ("sub/deep/f", 5)]);
        assert_eq!(plan.summary.skipped.len(), 3, "{:?}", plan.summary.skipped);
    }
}
