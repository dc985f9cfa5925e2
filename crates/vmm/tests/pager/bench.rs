//! An image with a known content, and pagers that serve it.

use std::ffi::OsString;
use std::fs::File;
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tempfile::TempDir;
use wrenn_image::{BLOCK_BYTES, BaseWriter, Image, LayerWriter};
use wrenn_vmm::pager::{Job, Pager, PagerProgram};
use wrenn_vmm::{ExitReason, VmmError};

use crate::vmm::{Do, Vmm};

/// Catches a hang; nothing here is timed.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < until, "{what}: not within {LONG:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The test binary as a pager.
pub(crate) fn program() -> PagerProgram {
    PagerProgram {
        program: std::env::current_exe().unwrap(),
        args: ["--exact", "be_pager", "--ignored", "--nocapture"].map(OsString::from).to_vec(),
        env: Vec::new(),
    }
}

/// The files of one test.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    /// What the image holds.
    pub(crate) model: Vec<u8>,
    layers: Vec<PathBuf>,
}

impl Bench {
    /// An image of this many blocks: data and holes in the base, data and zeros of two layers over it.
    pub(crate) fn new(blocks: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Self { dir, model: vec![0; blocks * BLOCK_BYTES], layers: Vec::new() };
        let size = bench.model.len() as u64;
        let mut base = BaseWriter::create(&bench.path("base"), size).unwrap();
        // Whole chunks of holes, and holes of a block within chunks.
        for block in (0..blocks).filter(|block| block / 64 % 3 != 1 && block % 11 != 4) {
            bench.put(block, 1, |block, bytes| base.write(block, bytes).unwrap());
        }
        base.finish(false).unwrap();
        bench.layer(|block| (block % 29 < 7).then_some(block % 29 != 3));
        bench.layer(|block| (block % 41 > 36).then_some(block % 2 == 0));
        let layers: Vec<&Path> = bench.layers.iter().map(PathBuf::as_path).collect();
        Image::create(&bench.path("image"), &bench.path("base"), &layers, false).unwrap();
        bench
    }

    /// Adds a layer: what it has at a block is nothing, zeros (`false`) or data.
    fn layer(&mut self, what: impl Fn(usize) -> Option<bool>) {
        let path = self.path(&format!("layer-{}", self.layers.len()));
        let mut layer = LayerWriter::create(&path, self.model.len() as u64).unwrap();
        let mark = u8::try_from(self.layers.len() + 2).unwrap();
        for block in 0..self.blocks() {
            match what(block) {
                Some(true) => self.put(block, mark, |block, bytes| layer.write(block, bytes).unwrap()),
                Some(false) => {
                    self.model[block * BLOCK_BYTES..][..BLOCK_BYTES].fill(0);
                    layer.zero(block as u64, 1).unwrap();
                }
                None => {}
            }
        }
        layer.finish(false).unwrap();
        self.layers.push(path);
    }

    /// Writes a block that is different for each place and mark.
    fn put(&mut self, block: usize, mark: u8, write: impl FnOnce(u64, &[u8])) {
        let bytes = &mut self.model[block * BLOCK_BYTES..][..BLOCK_BYTES];
        bytes.fill(mark);
        bytes[8..16].copy_from_slice(&(block as u64).to_le_bytes());
        write(block as u64, bytes);
    }

    pub(crate) fn blocks(&self) -> usize {
        self.model.len() / BLOCK_BYTES
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a pager has said so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// The job of a pager for a VMM, whoever does it.
    pub(crate) fn job<'a>(&self, image: &'a Path, vmm: &'a OwnedFd) -> Job<'a> {
        let _ = std::fs::remove_file(self.path("socket"));
        Job {
            image,
            socket: UnixListener::bind(self.path("socket")).unwrap(),
            vmm: vmm.as_fd(),
            uid: 1_100_000,
            gid: 1_100_001,
            cgroup: None,
            stderr: File::create(self.path("stderr")).unwrap(),
            prefetch: Vec::new(),
        }
    }

    /// A pager for a VMM that has not connected.
    pub(crate) async fn pager(&self, vmm: &OwnedFd, prefetch: &[Range<u64>]) -> Running {
        let image = self.path("image");
        let job = Job { prefetch: prefetch.to_vec(), ..self.job(&image, vmm) };
        Running::new(Pager::start(&program(), job).await.unwrap())
    }

    /// A VMM with regions of these many blocks, and its pager.
    pub(crate) async fn serve(&self, regions: &[usize], prefetch: &[Range<u64>]) -> (Vmm, Running) {
        let mut vmm = Vmm::start(&self.path("socket"), regions);
        let pager = self.pager(&vmm.pidfd(), prefetch).await;
        vmm.run(Do::Connect);
        (vmm, pager)
    }

    /// The content of some blocks.
    pub(crate) fn part(&self, from: usize, to: usize) -> &[u8] {
        &self.model[from * BLOCK_BYTES..to * BLOCK_BYTES]
    }

    /// Alters a byte of one of the image's files.
    pub(crate) fn damage(&self, name: &str, at: u64) {
        use std::os::unix::fs::FileExt;
        let file = File::options().read(true).write(true).open(self.path(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }
}

/// A pager that does not outlive its test.
pub(crate) struct Running {
    pager: Pager,
    pidfd: OwnedFd,
}

impl Running {
    pub(crate) fn new(pager: Pager) -> Self {
        let pid = Pid::from_raw(i32::try_from(pager.record().pid).unwrap()).unwrap();
        Self { pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap(), pager }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pager.record().pid
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::pidfd_send_signal(&self.pidfd, signal).unwrap();
    }

    /// How it ended.
    pub(crate) async fn end(&self) -> ExitReason {
        tokio::time::timeout(LONG, self.pager.exited()).await.expect("the pager ends")
    }

    /// What `/proc/PID/…` says of it.
    pub(crate) fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.pid())).unwrap()
    }
}

impl Deref for Running {
    type Target = Pager;

    fn deref(&self) -> &Pager {
        &self.pager
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// What a failed start says.
pub(crate) async fn refused(program: &PagerProgram, job: Job<'_>) -> VmmError {
    match Pager::start(program, job).await {
        Ok(pager) => {
            drop(Running::new(pager));
            panic!("the pager started");
        }
        Err(error) => error,
    }
}
