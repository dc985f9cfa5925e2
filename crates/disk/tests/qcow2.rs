//! The qcow2 driver with the real `qemu-img`.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

use std::path::PathBuf;

use tempfile::TempDir;
use wrenn_disk::{DiskError, MIB, Qcow2Disks, RootDisks, allocated_bytes};

struct Lab {
    dir: TempDir,
    disks: Qcow2Disks,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap(), disks: Qcow2Disks::default() };
        std::fs::File::create(lab.path("base.raw")).unwrap().set_len(8 * MIB).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[tokio::test]
async fn an_overlay_has_the_asked_size_an_absolute_base_and_takes_almost_no_room() {
    let lab = Lab::new();
    let made = lab.disks.create(&lab.path("a.qcow2"), &lab.path("base.raw"), 5120).await.unwrap();
    assert_eq!(made.virtual_bytes, 5120 * MIB);
    assert!(made.base.is_absolute());
    assert_eq!(lab.disks.open(&made.overlay).await.unwrap(), made);
    let allocated = allocated_bytes(&made.overlay).unwrap();
    assert!(allocated > 0 && allocated < MIB, "{allocated} bytes");
}

#[tokio::test]
async fn the_largest_disk_costs_no_more_than_a_small_one() {
    let lab = Lab::new();
    let made = lab.disks.create(&lab.path("a.qcow2"), &lab.path("base.raw"), 512 * 1024).await.unwrap();
    assert_eq!(made.virtual_bytes, 512 << 30);
    assert!(allocated_bytes(&made.overlay).unwrap() < MIB);
}

#[tokio::test]
async fn deleting_twice_is_fine_and_leaves_nothing() {
    let lab = Lab::new();
    let made = lab.disks.create(&lab.path("a.qcow2"), &lab.path("base.raw"), 64).await.unwrap();
    lab.disks.delete(&made.overlay).await.unwrap();
    lab.disks.delete(&made.overlay).await.unwrap();
    assert!(!made.overlay.exists() && made.base.exists());
}

#[tokio::test]
async fn an_existing_disk_is_never_overwritten() {
    let lab = Lab::new();
    std::fs::write(lab.path("a.qcow2"), "precious").unwrap();
    let error = lab.disks.create(&lab.path("a.qcow2"), &lab.path("base.raw"), 64).await.unwrap_err();
    assert!(matches!(error, DiskError::Exists { .. }), "{error}");
    assert_eq!(std::fs::read(lab.path("a.qcow2")).unwrap(), b"precious");
}

#[tokio::test]
async fn a_missing_base_is_named_and_leaves_no_file() {
    let lab = Lab::new();
    let error = lab.disks.create(&lab.path("a.qcow2"), &lab.path("nowhere.raw"), 64).await.unwrap_err();
    assert!(matches!(&error, DiskError::BackingMissing { path } if path.ends_with("nowhere.raw")), "{error}");
    assert!(!lab.path("a.qcow2").exists());
}

#[tokio::test]
async fn opening_a_disk_whose_base_went_away_names_the_base() {
    let lab = Lab::new();
    let made = lab.disks.create(&lab.path("a.qcow2"), &lab.path("base.raw"), 64).await.unwrap();
    std::fs::remove_file(lab.path("base.raw")).unwrap();
    let error = lab.disks.open(&made.overlay).await.unwrap_err();
    assert!(matches!(&error, DiskError::BackingMissing { path } if path.ends_with("base.raw")), "{error}");
}

#[tokio::test]
async fn a_disk_smaller_than_its_base_is_refused() {
    let lab = Lab::new();
    let error = lab.disks.create(&lab.path("a.qcow2"), &lab.path("base.raw"), 7).await.unwrap_err();
    assert!(matches!(error, DiskError::TooSmall { asked_mb: 7, base_mb: 8 }), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_qcow2_is_refused_in_the_tools_own_words() {
    let lab = Lab::new();
    let error = lab.disks.open(&lab.path("base.raw")).await.unwrap_err();
    assert!(matches!(error, DiskError::Tool { .. }), "{error}");
    assert!(error.to_string().contains("not in qcow2 format"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_told_apart_and_leaves_no_file() {
    let lab = Lab::new();
    let small = lab.path("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = Tmpfs::mount(&small, "size=64k");
    std::fs::write(small.join("filler"), vec![1; 60 * 1024]).unwrap();
    let error =
        lab.disks.create(&small.join("a.qcow2"), &lab.path("base.raw"), 512 * 1024).await.unwrap_err();
    assert!(matches!(error, DiskError::Full { .. }), "{error}");
    assert!(!small.join("a.qcow2").exists());
    drop(mounted);
}

#[tokio::test]
async fn a_missing_tool_is_named_with_the_command_that_installs_it() {
    let lab = Lab::new();
    let disks = Qcow2Disks::new("qemu-img-that-is-not-there");
    let error = disks.create(&lab.path("a.qcow2"), &lab.path("base.raw"), 64).await.unwrap_err();
    assert!(error.to_string().contains("apt-get install qemu-utils"), "{error}");
    assert!(!lab.path("a.qcow2").exists());
}

struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &std::path::Path, options: &str) -> Self {
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("tmpfs", at, "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str())
            .unwrap();
        Self(at.to_path_buf())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
