//! Removing what the images before the current ones left in the data directory.
//!
//! An image that is replaced by a newer one stays until an agent starts. Only files
//! with the names that this module's siblings give, in real directories inside the data directory, are ever removed. A
//! shared cache is nobody's alone and is not touched: what was linked from it loses one name here and keeps the other.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::store::Store;
use super::{ImageError, KernelImage, Template, built_in};

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// A thread for the work could not be had.
    #[error("cannot look for old images")]
    Thread(#[from] io::Error),
    /// What is there cannot be read, or something old cannot be removed.
    #[error("cannot use {path}")]
    File {
        /// What was looked at.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl PruneError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::File { path: path.to_path_buf(), source }
    }
}

/// Removes old root disks and initial file systems from the data directory `dir`: all but the template's and `kernel`'s
/// own. Capsules need neither: of a root disk they hold a link, and an initial file system is read when a VMM starts. Where
/// another process is making images, nothing is removed until the next start. Blocks.
///
/// # Returns
/// What was removed.
///
/// # Errors
/// [`PruneError`].
pub fn prune(dir: &Path, kernel: &KernelImage) -> Result<Vec<PathBuf>, PruneError> {
    let Some(store) = Store::try_open(dir)? else { return Ok(Vec::new()) };
    let template = store.path("templates").join(built_in());
    let current = Template::load(&template).map_err(PruneError::at(&template))?.disk;
    let mut old = images(&store, &template).map_err(PruneError::at(store.root()))?;
    old.retain(|path| *path != current && !same(path, &kernel.initramfs));
    for path in &old {
        fs::remove_file(path).map_err(PruneError::at(path))?;
    }
    Ok(old)
}

/// Every root disk of the built-in template, and every initial file system.
fn images(store: &Store, template: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = files(template, "rootfs-", ".ext4")?;
    let kernels = store.path("kernels");
    if is_real(&kernels)? {
        for entry in fs::read_dir(&kernels)? {
            found.extend(files(&entry?.path(), "initramfs-", "")?);
        }
    }
    Ok(found)
}

/// The files in `dir` that are called `prefix`, a hash, and `suffix`.
fn files(dir: &Path, prefix: &str, suffix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !is_real(dir)? {
        return Ok(found);
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let hash = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_suffix(suffix));
        let is_hash =
            hash.is_some_and(|hash| !hash.is_empty() && hash.bytes().all(|b| b.is_ascii_hexdigit()));
        if is_hash && entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Whether a directory is where its path says. What a link leads to is not ours to clear.
fn is_real(dir: &Path) -> io::Result<bool> {
    match fs::canonicalize(dir) {
        Ok(real) => Ok(real == dir && real.is_dir()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn same(path: &Path, other: &Path) -> bool {
    fs::canonicalize(other).is_ok_and(|other| other == path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::symlink;

    use wrenn_disk::{Qcow2Disks, RootDisks};

    use super::*;

    /// A data directory with current images `rootfs-c0.ext4` and `initramfs-c0`, and older ones.
    struct Data {
        dir: tempfile::TempDir,
        kernel: KernelImage,
    }

    impl Data {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = fs::canonicalize(dir.path()).unwrap();
            let (template, kernels) = (root.join("templates").join(built_in()), root.join("kernels/6.1"));
            for dir in [&template, &kernels, &root.join("kernels/5.10"), &root.join("capsules")] {
                fs::create_dir_all(dir).unwrap();
            }
            for disk in ["rootfs-c0.ext4", "rootfs-a1.ext4", "rootfs-a2.ext4", "rootfs-notes.ext4", "mine"] {
                fs::write(template.join(disk), [0; 512]).unwrap();
            }
            for name in ["6.1/initramfs-c0", "6.1/initramfs-a1", "5.10/initramfs-c0", "6.1/vmlinux"] {
                fs::write(root.join("kernels").join(name), name).unwrap();
            }
            let text = r#"{"name": "minimal", "type": "base", "kernel": "6.1", "default_user": "root",
                "default_env": {}, "disk": "rootfs-c0.ext4", "disk_mb": 1, "definition": "c0"}"#;
            fs::write(template.join(crate::images::TEMPLATE_FILE), text).unwrap();
            let kernel = KernelImage {
                version: "6.1".into(),
                kernel: kernels.join("vmlinux"),
                initramfs: kernels.join("initramfs-c0"),
                cmdline: String::new(),
            };
            Self { dir, kernel }
        }

        fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
            fs::canonicalize(self.dir.path()).unwrap().join(relative)
        }

        fn disk(&self, name: &str) -> PathBuf {
            self.path("templates").join(built_in()).join(name)
        }

        fn capsule(&self, name: &str) -> PathBuf {
            let dir = self.path("capsules").join(name);
            fs::create_dir_all(&dir).unwrap();
            dir
        }

        fn prune(&self) -> Result<BTreeSet<PathBuf>, PruneError> {
            let removed = prune(self.dir.path(), &self.kernel)?;
            assert!(removed.iter().all(|path| !path.exists()));
            Ok(removed.into_iter().collect())
        }

        fn old(&self) -> BTreeSet<PathBuf> {
            let initramfs = ["kernels/6.1/initramfs-a1", "kernels/5.10/initramfs-c0"];
            let disks = ["rootfs-a1.ext4", "rootfs-a2.ext4"].map(|name| self.disk(name));
            initramfs.into_iter().map(|name| self.path(name)).chain(disks).collect()
        }
    }

    #[test]
    fn old_images_go_and_current_ones_and_what_is_not_ours_stays() {
        let data = Data::new();
        assert_eq!(data.prune().unwrap(), data.old());
        for stays in ["rootfs-c0.ext4", "rootfs-notes.ext4", "mine", "template.json"] {
            assert!(data.disk(stays).exists(), "{stays}");
        }
        assert!(data.kernel.initramfs.exists() && data.kernel.kernel.exists());
        assert_eq!(data.prune().unwrap(), BTreeSet::new());
    }

    #[tokio::test]
    async fn a_capsule_keeps_the_disk_that_it_was_made_over() {
        let data = Data::new();
        let capsule = data.capsule("one");
        let made = Qcow2Disks::default().create(&capsule, &data.disk("rootfs-a1.ext4"), 1).await.unwrap();
        assert_eq!(data.prune().unwrap(), data.old());
        assert!(!data.disk("rootfs-a1.ext4").exists());
        assert_eq!(fs::read(made.base).unwrap(), [0; 512]);
    }

    #[test]
    fn links_are_not_followed_and_a_linked_cache_keeps_its_files() {
        let data = Data::new();
        let cache = tempfile::tempdir().unwrap();
        fs::hard_link(data.disk("rootfs-a1.ext4"), cache.path().join("rootfs-a1.ext4")).unwrap();
        fs::rename(data.path("kernels"), cache.path().join("kernels")).unwrap();
        symlink(cache.path().join("kernels"), data.path("kernels")).unwrap();
        symlink(cache.path().join("rootfs-a1.ext4"), data.disk("rootfs-a3.ext4")).unwrap();
        let removed = data.prune().unwrap();
        assert_eq!(removed, ["rootfs-a1.ext4", "rootfs-a2.ext4"].map(|name| data.disk(name)).into());
        assert!(cache.path().join("rootfs-a1.ext4").exists());
        assert!(cache.path().join("kernels/6.1/initramfs-a1").exists());
    }

    #[test]
    fn nothing_is_removed_while_another_process_makes_images() {
        let data = Data::new();
        let busy = Store::open(data.dir.path(), &|_| {}).unwrap();
        assert_eq!(data.prune().unwrap(), BTreeSet::new());
        drop(busy);
        assert_eq!(data.prune().unwrap(), data.old());
    }
}
