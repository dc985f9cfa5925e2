//! The root disk of a base image: Debian's packages in an ext4 file system, in a sparse raw file.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use wrenn_core::limits::MAX_DISK_MB;

use super::definition::Definition;
use super::store::Store;
use super::tool::{Tool, retry};
use super::{ImageError, Progress, built_in};

const MMDEBSTRAP: Tool = Tool("mmdebstrap", "mmdebstrap");
const MKE2FS: Tool = Tool("mke2fs", "e2fsprogs");

const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

/// The disk of `definition` in the data directory, made in the cache where there is one.
pub(super) fn ensure(
    store: &Store,
    cache: Option<&Store>,
    definition: &Definition,
    mirror: Option<&str>,
    progress: Progress,
) -> Result<PathBuf, ImageError> {
    let name = format!("rootfs-{}.ext4", definition.hash());
    let path = store.path("templates").join(built_in()).join(&name);
    if path.exists() {
        return Ok(path);
    }
    let Some(cache) = cache else {
        make(store, &path, definition, mirror, progress)?;
        return Ok(path);
    };
    let cached = cache.path("rootfs").join(&name);
    if !cached.exists() {
        make(cache, &cached, definition, mirror, progress)?;
    }
    store.take(&cached, &path)?;
    Ok(path)
}

fn make(
    store: &Store,
    path: &Path,
    definition: &Definition,
    mirror: Option<&str>,
    progress: Progress,
) -> Result<(), ImageError> {
    let name = &definition.name;
    progress(&format!("making the base image {name} (this takes minutes, once)"));
    let (root, staging) = retry(progress, || {
        // A fresh directory each time: mmdebstrap does not go on where it stopped.
        let staging = store.staging()?;
        let root = staging.path().join("root");
        bootstrap(&root, definition, mirror, progress)?;
        Ok((root, staging))
    })?;
    finish(&root, definition)?;
    progress(&format!("writing the disk of {name}"));
    let disk = staging.path().join("disk");
    format(&root, &disk, definition.size_mb)?;
    store.publish(&disk, path)
}

/// Installs the packages into the directory `root`.
fn bootstrap(
    root: &Path,
    definition: &Definition,
    mirror: Option<&str>,
    progress: Progress,
) -> Result<(), ImageError> {
    let mut command = MMDEBSTRAP.command();
    command
        .args(["--variant=minbase", "--mode=root", "--format=directory"])
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Retries \"3\""])
        .arg(format!("--include={}", definition.packages.join(",")))
        .args(definition.users.iter().map(|user| {
            format!(
                "--customize-hook=chroot \"$1\" useradd --create-home --shell /bin/bash --groups sudo {user}"
            )
        }))
        .arg(&definition.suite)
        .arg(root)
        .args(sources(&definition.suite, mirror.unwrap_or(DEFAULT_MIRROR)));
    let name = &definition.name;
    MMDEBSTRAP
        .run(&mut command, &|line| {
            // Its steps; what else it writes goes into the error if it fails.
            if let Some(step) = line.strip_prefix("I: ") {
                progress(&format!("{name}: {step}"));
            }
        })
        .map(drop)
}

/// apt's sources: the release, its updates, and the security archive, which a whole mirror has beside the main one.
fn sources(suite: &str, mirror: &str) -> Vec<String> {
    let mirror = mirror.trim_end_matches('/');
    let mut lines = vec![format!("deb {mirror} {suite} main"), format!("deb {mirror} {suite}-updates main")];
    if let Some(host) = mirror.strip_suffix("/debian") {
        lines.push(format!("deb {host}/debian-security {suite}-security main"));
    }
    lines
}

/// Applies what the definition says beside the packages.
fn finish(root: &Path, definition: &Definition) -> Result<(), ImageError> {
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    for path in &definition.empty {
        empty(&inside(path)).map_err(|source| ImageError::io("empty", path, source))?;
    }
    for (path, content) in &definition.files {
        write(&inside(path), content).map_err(|source| ImageError::io("write", path, source))?;
    }
    for (path, target) in &definition.links {
        symlink(target, inside(path)).map_err(|source| ImageError::io("link", path, source))?;
    }
    Ok(())
}

fn empty(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // In place of a link (`/etc/hostname` may be one), never through it.
    if path.symlink_metadata().is_ok() {
        fs::remove_file(path)?;
    }
    fs::write(path, content)?;
    fs::set_permissions(path, Permissions::from_mode(0o644))
}

/// Makes a file system of `size_mb` with the content of `root`.
///
/// Room is reserved for group descriptors up to the largest disk, so that a guest can grow it while it is mounted. All
/// inode tables are written now (as holes): else each capsule's kernel would do so in the background, into its overlay.
fn format(root: &Path, disk: &Path, size_mb: u32) -> Result<(), ImageError> {
    let io = |source| ImageError::io("write", disk, source);
    File::create(disk).and_then(|file| file.set_len(u64::from(size_mb) * MIB)).map_err(io)?;
    let largest = u64::from(MAX_DISK_MB) * MIB / BLOCK;
    let mut command = MKE2FS.command();
    command
        .args(["-q", "-F", "-t", "ext4", "-b", &BLOCK.to_string(), "-m", "0", "-L", "root", "-J", "size=16"])
        .arg("-E")
        .arg(format!("resize={largest},lazy_itable_init=0,lazy_journal_init=0"))
        .arg("-d")
        .args([root, disk]);
    MKE2FS.run(&mut command, &|_| {})?;
    fs::set_permissions(disk, Permissions::from_mode(0o444)).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_mirror_gives_security_updates_and_a_partial_one_does_without() {
        let lines = sources("bookworm", "http://mirror/debian/");
        assert_eq!(lines.last().unwrap(), "deb http://mirror/debian-security bookworm-security main");
        assert_eq!(sources("bookworm", "http://mirror/snapshot").len(), 2);
    }

    #[test]
    fn a_file_of_the_definition_replaces_a_link_and_does_not_follow_it() {
        let root = tempfile::tempdir().unwrap();
        let (outside, link) = (root.path().join("outside"), root.path().join("etc/hostname"));
        fs::write(&outside, "precious").unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        symlink(&outside, &link).unwrap();
        write(&link, "capsule\n").unwrap();
        assert_eq!(fs::read_to_string(outside).unwrap(), "precious");
        assert_eq!(fs::read_to_string(link).unwrap(), "capsule\n");
    }
}
