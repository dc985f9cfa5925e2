//! A file system of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Kind, Lab};

/// An ext4 file system in a file, mounted while this lives.
pub(crate) struct Ext4(pub(crate) PathBuf);

impl Ext4 {
    pub(crate) fn mount<K: Kind>(lab: &Lab<K>, bytes: u64) -> Self {
        let (image, at) = (lab.path("fs.img"), lab.dir("fs"));
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-O", "^has_journal"], &[&image]);
        run("mount", &["-o", "loop"], &[&image, &at]);
        Self(at)
    }

    /// Leaves no block free. The file system promises blocks before it knows how many it needs itself, so it takes
    /// several rounds.
    pub(crate) fn fill(&self) {
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
