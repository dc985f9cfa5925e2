//! A directory for each test, and QEMU's own tools as the judge of what is in it.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use wrenn_disk::{Chain, Qcow2Disks};

/// A directory with a base image of random bytes and the driver under test.
pub(crate) struct Lab {
    dir: TempDir,
    /// The driver under test.
    pub(crate) disks: Qcow2Disks,
}

impl Lab {
    /// A laboratory whose base has `base_bytes`.
    pub(crate) fn new(base_bytes: usize) -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap(), disks: Qcow2Disks::default() };
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

/// Bytes that are never zero and differ from place to place.
pub(crate) fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8 | 1
    };
    (0..count).map(|_| next()).collect()
}

/// Runs a tool of QEMU's to success and returns what it printed.
pub(crate) fn qemu(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs commands of `qemu-io` on the top of a chain, like a VMM that runs and is stopped.
pub(crate) fn io(top: &Path, commands: &[String]) {
    let mut args = vec!["-f", "qcow2", "-d", "unmap"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(top.to_str().unwrap());
    let said = qemu("qemu-io", &args);
    assert!(!said.contains("failed"), "{commands:?}: {said}");
}

/// The whole disk as a guest reads it.
pub(crate) fn content(chain: &Chain) -> Vec<u8> {
    let raw = tempfile::NamedTempFile::new().unwrap();
    let (from, to) = (chain.top().to_str().unwrap(), raw.path().to_str().unwrap());
    qemu("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", from, to]);
    std::fs::read(raw.path()).unwrap()
}

/// QEMU finds nothing wrong with any layer, and reads of it what the chain says.
pub(crate) fn assert_sound(chain: &Chain) {
    for layer in &chain.layers {
        qemu("qemu-img", &["check", "-q", "-f", "qcow2", layer.to_str().unwrap()]);
    }
    let info = qemu("qemu-img", &["info", "-f", "qcow2", "--output=json", chain.top().to_str().unwrap()]);
    assert!(info.contains(&format!("\"virtual-size\": {},", chain.virtual_bytes)), "{info}");
}
