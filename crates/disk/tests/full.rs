//! What happens on a file system of its own: one that is full, and one that cannot link to another.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Lab, assert_sound, content, io, noise};
use wrenn_disk::{DiskError, RootDisks};

/// An ext4 file system in a file, mounted while this lives.
struct Ext4(PathBuf);

impl Ext4 {
    fn mount(lab: &Lab, bytes: u64) -> Self {
        let (image, at) = (lab.path("fs.img"), lab.dir("fs"));
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-O", "^has_journal"], &[&image]);
        run("mount", &["-o", "loop"], &[&image, &at]);
        Self(at)
    }

    /// Leaves no block free. The file system promises blocks before it knows how many it needs itself, so it takes
    /// several rounds.
    fn fill(&self) {
        for round in 0..4 {
            let filler =
                (0..).map(|index| std::fs::write(self.0.join(format!("{round}-{index}")), vec![1; 1 << 18]));
            let written = filler.take_while(Result::is_ok).count();
            let small =
                (0..).map(|index| std::fs::write(self.0.join(format!("{round}-s{index}")), vec![1; 4096]));
            let written = written + small.take_while(Result::is_ok).count();
            std::fs::File::open(&self.0).and_then(|dir| Ok(rustix::fs::syncfs(dir)?)).unwrap();
            assert!(round > 0 || written > 0);
        }
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        run("umount", &["-l"], &[&self.0]);
    }
}

fn run(program: &str, args: &[&str], paths: &[&Path]) {
    let status = Command::new(program).args(args).args(paths).status().unwrap();
    assert!(status.success(), "{program} {args:?} {paths:?}");
}

fn disk_files(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("disk-")).count()
}

#[tokio::test]
async fn a_base_on_another_file_system_is_copied() {
    let lab = Lab::new(3 << 20);
    let fs = Ext4::mount(&lab, 32 << 20);
    let chain = lab.disks.create(&fs.0, &lab.base(), 8).await.unwrap();
    assert_sound(&chain);
    assert!(content(&chain)[..3 << 20] == noise(3 << 20));
    let linked = lab.disks.link(&chain, &lab.dir("back")).await.unwrap();
    assert_sound(&linked);
    assert_eq!(linked.top_name(), chain.top_name());
}

#[tokio::test]
async fn a_full_disk_is_told_apart_and_no_attempt_leaves_a_file() {
    let lab = Lab::new(1 << 20);
    let fs = Ext4::mount(&lab, 32 << 20);
    let dir = fs.0.join("a");
    std::fs::create_dir(&dir).unwrap();
    let one = lab.disks.create(&dir, &lab.base(), 64).await.unwrap();
    io(one.top(), &["write -P 1 0 4M".into()]);
    let two = lab.disks.push(&one, None).await.unwrap();
    let before = content(&two);
    fs.fill();
    let full = |error: DiskError| assert!(matches!(error, DiskError::Full { .. }), "{error}");
    full(lab.disks.flatten(&two, 0).await.unwrap_err());
    full(lab.disks.push(&two, None).await.unwrap_err());
    let other = lab.dir("empty");
    std::fs::rename(lab.base(), other.join("base")).unwrap();
    full(lab.disks.create(&fs.0, &other.join("base"), 64).await.unwrap_err());
    assert_eq!((disk_files(&dir), disk_files(&fs.0)), (3, 0));
    assert!(content(&two) == before);
}
