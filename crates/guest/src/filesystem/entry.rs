//! What the API says about one file.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use buffa_types::google::protobuf::Timestamp;
use rustix::fs::XattrFlags;
use wrenn_protocol::filesystem::{EntryInfo, FileType};

use super::METADATA_PREFIX;
use crate::accounts::Names;
use crate::error::{Error, Result};
use crate::paths;

/// Most bytes of attribute names that are looked through; the kernel's own limit.
const XATTR_LIST_BYTES: usize = 65_536;

/// Describes `path` without following a link at its end. `shown` is the path to report, which may be another where the
/// real one is no text.
pub(super) fn describe(path: impl AsRef<Path>, shown: &str, names: &Names) -> Result<EntryInfo> {
    let path = path.as_ref();
    let metadata = std::fs::symlink_metadata(path).map_err(|e| Error::io(shown, &e))?;
    let is_symlink = metadata.file_type().is_symlink();
    let target = is_symlink.then(|| std::fs::metadata(path).ok()).flatten();
    let judged = if is_symlink { target.as_ref() } else { Some(&metadata) };
    let symlink_target = is_symlink.then(|| resolved(path, shown));
    Ok(EntryInfo {
        name: paths::name(shown).to_owned(),
        r#type: judged.map_or(FileType::FILE_TYPE_UNSPECIFIED, kind).into(),
        path: shown.to_owned(),
        size: i64::try_from(metadata.len()).unwrap_or(i64::MAX),
        mode: judged.map_or(0, |m| m.mode() & 0o7777),
        permissions: permissions(&metadata),
        owner: names.user(metadata.uid()),
        group: names.group(metadata.gid()),
        modified_time: Some(modified(&metadata)).into(),
        symlink_target,
        metadata: if metadata.is_file() {
            read_metadata(path).into_iter().collect()
        } else {
            Default::default()
        },
        is_symlink,
        ..EntryInfo::default()
    })
}

fn kind(metadata: &std::fs::Metadata) -> FileType {
    if metadata.is_file() {
        FileType::FILE_TYPE_FILE
    } else if metadata.is_dir() {
        FileType::FILE_TYPE_DIRECTORY
    } else {
        FileType::FILE_TYPE_UNSPECIFIED
    }
}

fn resolved(path: &Path, shown: &str) -> String {
    match std::fs::canonicalize(path) {
        Ok(target) => target.to_string_lossy().into_owned(),
        Err(_) => shown.to_owned(),
    }
}

fn modified(metadata: &std::fs::Metadata) -> Timestamp {
    Timestamp {
        seconds: metadata.mtime(),
        nanos: i32::try_from(metadata.mtime_nsec()).unwrap_or_default(),
        ..Timestamp::default()
    }
}

/// Ten characters as `ls` prints them, with the type letters of the API.
fn permissions(metadata: &std::fs::Metadata) -> String {
    let file_type = metadata.file_type();
    let letter = match () {
        () if file_type.is_dir() => 'd',
        () if file_type.is_symlink() => 'L',
        () if file_type.is_block_device() => 'b',
        () if file_type.is_char_device() => 'c',
        () if file_type.is_fifo() => 'p',
        () if file_type.is_socket() => 'S',
        () => '-',
    };
    let mode = metadata.mode();
    let bits = "rwxrwxrwx".chars().enumerate();
    let flags = bits.map(|(i, flag)| if mode & (0o400 >> i) == 0 { '-' } else { flag });
    std::iter::once(letter).chain(flags).collect()
}

/// What a caller attached to a file when it was uploaded. A file system without attributes has none.
fn read_metadata(path: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for name in attribute_names(path) {
        let Some(key) = name.strip_prefix(METADATA_PREFIX) else { continue };
        let mut value = vec![0; XATTR_LIST_BYTES];
        if let Ok(length) = rustix::fs::getxattr(path, name.as_str(), &mut value[..]) {
            found.insert(key.to_owned(), String::from_utf8_lossy(&value[..length]).into_owned());
        }
    }
    found
}

fn attribute_names(path: &Path) -> Vec<String> {
    let mut list = [0; 1024];
    let read = rustix::fs::llistxattr(path, &mut list[..]).map(|length| list[..length].to_vec());
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(rustix::io::Errno::RANGE) => {
            let mut list = vec![0; XATTR_LIST_BYTES];
            let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or_default();
            list.truncate(length);
            list
        }
        Err(_) => return Vec::new(),
    };
    bytes
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|n| String::from_utf8_lossy(n).into_owned())
        .collect()
}

/// Replaces what is attached to an open file. A file system without attributes keeps nothing, which is no error.
pub(crate) fn write_metadata(file: &std::fs::File, path: &str, metadata: &BTreeMap<String, String>) {
    for name in attribute_names(Path::new(path)) {
        if name.starts_with(METADATA_PREFIX) {
            let _ = rustix::fs::fremovexattr(file, name.as_str());
        }
    }
    for (key, value) in metadata {
        let name = format!("{METADATA_PREFIX}{key}");
        let _ = rustix::fs::fsetxattr(file, name.as_str(), value.as_bytes(), XattrFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_tell_about_their_target_and_broken_ones_about_themselves() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        std::fs::write(path("file"), "12345").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        std::os::unix::fs::symlink("gone", path("broken")).unwrap();
        let entry = |name: &str| describe(path(name), &path(name), &Names::load()).unwrap();
        let link = entry("link");
        assert_eq!(link.r#type.as_known(), Some(FileType::FILE_TYPE_FILE));
        assert_eq!(link.mode, 0o644);
        assert!(link.is_symlink && link.permissions.starts_with('L'));
        let real = std::fs::canonicalize(path("file")).unwrap();
        assert_eq!(link.symlink_target.as_deref(), real.to_str());
        let broken = entry("broken");
        assert_eq!(broken.r#type.as_known(), Some(FileType::FILE_TYPE_UNSPECIFIED));
        assert_eq!((broken.mode, broken.symlink_target), (0, Some(path("broken"))));
    }

    #[test]
    fn what_is_neither_file_nor_directory_is_known_by_its_letter() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
        let path = path.to_str().unwrap();
        let entry = describe(path, path, &Names::load()).unwrap();
        assert_eq!(entry.r#type.as_known(), Some(FileType::FILE_TYPE_UNSPECIFIED));
        assert_eq!(entry.permissions, "prw-r-----");
        assert!(!entry.is_symlink);
    }
}
