//! A file system of its own that can be filled.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A small ext4 in a file, mounted for as long as this lives.
#[derive(Debug)]
pub(crate) struct Volume {
    dir: TempDir,
}

impl Volume {
    pub(crate) fn new(megabytes: u64) -> Self {
        let volume = Self { dir: tempfile::tempdir().unwrap() };
        let image = volume.dir.path().join("image");
        File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        std::fs::create_dir(volume.root()).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-E", "lazy_itable_init=0"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(volume.root()));
        volume
    }

    /// Where it is mounted.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Takes all room but for `left` KiB.
    pub(crate) fn fill(&self, left: u64) {
        let path = self.ballast();
        let file = File::options().create(true).append(true).open(&path).unwrap();
        let stat = rustix::fs::statvfs(&path).unwrap();
        let mut bytes = (stat.f_bavail * stat.f_frsize).saturating_sub(left << 10);
        let mut at = file.metadata().unwrap().len();
        // The file system needs some blocks to note where the others are: the rest is taken in ever smaller pieces.
        while bytes >= 4096 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, bytes) {
                Ok(()) => return,
                Err(_full) => {
                    bytes = bytes / 2 / 4096 * 4096;
                    at = file.metadata().unwrap().len();
                }
            }
        }
    }

    /// Gives the room back.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.root().join("ballast")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        unmount(&self.root());
    }
}

/// The loop device goes with its last user.
fn unmount(root: &Path) {
    let lazily = || Command::new("umount").arg("-l").arg(root).status();
    let done = Command::new("umount").arg(root).status();
    if !done.is_ok_and(|status| status.success())
        && let Err(error) = lazily()
    {
        eprintln!("{} stays mounted: {error}", root.display());
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
