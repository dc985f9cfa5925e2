//! A directory for each test, and for each driver somebody who writes to its layers and judges what is in them.
#![allow(dead_code, unused_imports, unused_macros, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

pub(crate) mod cow;
pub(crate) mod ext4;
pub(crate) mod qcow2;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use wrenn_disk::{Chain, RootDisks};

pub(crate) use cow::Cow;
pub(crate) use qcow2::Qcow2;

/// A driver under test, with the other side of it: what a VMM does to the layers.
pub(crate) trait Kind {
    /// The driver.
    type Disks: RootDisks + Default;
    /// How its layers' names end.
    const SUFFIX: &str;
    /// Bytes that an empty layer may take.
    const EMPTY: u64;
    /// Bytes of a file system on which a few layers fit, and that a test can fill.
    const SMALL_SYSTEM: u64;

    /// Fills a part of the disk, as a VMM that runs and is stopped. All numbers are multiples of 4096.
    fn write(chain: &Chain, at: usize, length: usize, value: u8);

    /// Lets go of a part of the disk, which then reads as zeros, and says whether VMMs can do that.
    fn discard(chain: &Chain, at: usize, length: usize) -> bool;

    /// The whole disk as a guest reads it.
    fn content(chain: &Chain) -> Vec<u8>;

    /// Nothing is wrong with any layer, and what they say is what the chain says.
    fn assert_sound(chain: &Chain);
}

/// A directory with a base image of random bytes and the driver under test.
pub(crate) struct Lab<K: Kind> {
    dir: TempDir,
    /// The driver under test.
    pub(crate) disks: K::Disks,
}

impl<K: Kind> Lab<K> {
    /// A laboratory whose base has `base_bytes`.
    pub(crate) fn new(base_bytes: usize) -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap(), disks: K::Disks::default() };
        std::fs::write(lab.base(), noise(base_bytes)).unwrap();
        lab
    }

    /// A path inside.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        std::fs::canonicalize(self.dir.path()).unwrap().join(name)
    }

    /// The template's image.
    pub(crate) fn base(&self) -> PathBuf {
        self.path("base.raw")
    }

    /// A new directory.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        std::fs::create_dir(&dir).unwrap();
        dir
    }
}

/// Makes a test of each function for each driver.
macro_rules! for_both_kinds {
    ($($test:ident),* $(,)?) => {
        mod qcow2 {
            $(#[tokio::test]
            async fn $test() {
                super::$test::<super::common::Qcow2>().await;
            })*
        }
        mod cow {
            $(#[tokio::test]
            async fn $test() {
                super::$test::<super::common::Cow>().await;
            })*
        }
    };
}
pub(crate) use for_both_kinds;

/// Bytes that are never zero and differ from place to place.
pub(crate) fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8 | 1
    };
    (0..count).map(|_| next()).collect()
}

/// What a file's owner, group and others may do with it.
pub(crate) fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

/// The names in a directory, in order.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// `start`, and zeros up to the capacity of the disk.
pub(crate) fn padded(chain: &Chain, mut start: Vec<u8>) -> Vec<u8> {
    start.resize(usize::try_from(chain.virtual_bytes).unwrap(), 0);
    start
}
