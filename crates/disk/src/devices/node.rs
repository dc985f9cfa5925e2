//! Opening a device by its number.
//!
//! Nodes in `/dev` come from udev or devtmpfs, when they come, and under names that others may take. So a node is made
//! for the moment of opening it: one that only root may open, under a name that nobody guesses.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::DeviceNumber;
use super::dm::Access;

/// Where the nodes are made, for other directories forbid devices.
const DIR: &str = "/dev";

/// A node that is there until this is dropped.
#[derive(Debug)]
struct Node(PathBuf);

impl Node {
    fn make(prefix: &str, number: DeviceNumber) -> io::Result<Self> {
        let path = Path::new(DIR).join(format!(".{prefix}-{}", hex::encode(rand::random::<[u8; 8]>())));
        let device = rustix::fs::makedev(number.major, number.minor);
        rustix::fs::mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, device)?;
        Ok(Self(path))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens the block device `number`.
pub(super) fn open(prefix: &str, number: DeviceNumber, access: Access) -> io::Result<File> {
    let write = if access == Access::ReadWrite { OFlags::RDWR } else { OFlags::RDONLY };
    let flags = write | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    loop {
        let node = Node::make(prefix, number)?;
        match rustix::fs::open(&node.0, flags, Mode::empty()) {
            Ok(file) => return Ok(File::from(file)),
            // Swept away, by someone who starts right now.
            Err(Errno::NOENT | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Removes the nodes that a crash has left.
pub(super) fn sweep(prefix: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(DIR)? {
        let entry = entry?;
        let name = entry.file_name();
        let id =
            name.to_str().and_then(|name| name.strip_prefix('.')?.strip_prefix(prefix)?.strip_prefix('-'));
        if id.is_some_and(crate::chain::is_id) && entry.file_type()?.is_block_device() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Opens the control device `path`; where only the node is missing, it is made. `misc` is its name in `/proc/misc`.
pub(super) fn open_control(path: &Path, misc: &str) -> io::Result<File> {
    let open = || File::options().read(true).write(true).open(path);
    match open() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let known = std::fs::read_to_string("/proc/misc")?;
            let minor = misc_minor(&known, misc).ok_or(error)?;
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            let device = rustix::fs::makedev(10, minor);
            match rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device) {
                Ok(()) | Err(Errno::EXIST) => open(),
                Err(errno) => Err(errno.into()),
            }
        }
        other => other,
    }
}

/// The minor number of `wanted` in the text of `/proc/misc`, whose lines are a number and a name.
fn misc_minor(text: &str, wanted: &str) -> Option<u32> {
    let mut lines = text.lines().filter_map(|line| line.trim().split_once(' '));
    lines.find(|(_, name)| *name == wanted).and_then(|(minor, _)| minor.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_mapper_is_found_among_the_others() {
        assert_eq!(
            misc_minor(" 62 rfkill\n236 device-mapper\n237 loop-control\n", "device-mapper"),
            Some(236)
        );
        assert_eq!(misc_minor("237 loop-control\n", "device-mapper"), None);
    }
}
