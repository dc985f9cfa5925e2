//! Memory that a pager serves, held against the same memory mapped from one file. It needs no virtual machine: this
//! process plays the VMM's part, as Firecracker does.

use std::fs::File;
use std::io::{Error, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use wrenn_image::{BLOCK_BYTES, BaseWriter, Image, LayerWriter};
use wrenn_vmm::pager::{Job, Pager, PagerProgram};

use crate::pairs;
use crate::report::{Goal, Line};

/// MiB of the memory.
const MEMORY_MIB: usize = 256;
const BYTES: usize = MEMORY_MIB << 20;
/// Nobody has it.
const UID: u32 = 1_100_000;

/// Measures each `rounds` times, with the pager of the program `wrenn`, whose directory has room for the files.
pub(crate) async fn run(wrenn: &Path, rounds: usize) -> anyhow::Result<Vec<Line>> {
    let program = PagerProgram { program: wrenn.to_path_buf(), args: vec!["pager".into()], env: Vec::new() };
    let dir = wrenn.parent().unwrap_or(Path::new(".")).to_path_buf();
    let snapshot = spawn_blocking(move || Snapshot::make(&dir)).await??;
    let sides = Sides { program, snapshot };
    let line = |name: &str, unit, (this, bare): pairs::Pair| Line {
        name: name.to_owned(),
        unit,
        this: this.summary(),
        bare: bare.summary(),
        goal: Goal::Shown,
    };
    let first = pairs::run(rounds, async || sides.first_paged().await, async || sides.first_flat().await);
    let mut lines =
        vec![line("first page of 256 MiB with layers: paged / made one file and mapped", "ms", first.await?)];
    for (name, touch) in [("read", Touch::Read), ("written", Touch::Write)] {
        let both =
            pairs::run(rounds, async || sides.all_paged(touch).await, async || sides.all_mapped(touch).await);
        let name = format!("all of 256 MiB {name}, page by page: paged / mapped");
        lines.push(line(&name, "ms", both.await?));
    }
    Ok(lines)
}

/// A memory in a base and two layers, and the same in one file.
#[derive(Debug)]
struct Snapshot {
    dir: TempDir,
    image: Image,
    flat: PathBuf,
}

impl Snapshot {
    fn make(parent: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(parent)?;
        let path = |name: &str| dir.path().join(name);
        let (base, layers, blocks) = (path("base"), [path("one"), path("two")], (BYTES / BLOCK_BYTES) as u64);
        let mut content = Content(1);
        let mut writer = BaseWriter::create(&base, BYTES as u64)?;
        for block in 0..blocks {
            writer.write(block, &content.next())?;
        }
        writer.finish(false)?;
        for (index, layer) in (0..).zip(&layers) {
            let mut writer = LayerWriter::create(layer, BYTES as u64)?;
            // A quarter of the memory each, in runs of 16 blocks.
            for block in (0..blocks).filter(|block| block / 16 % 4 == index) {
                writer.write(block, &content.next())?;
            }
            writer.finish(false)?;
        }
        let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        let image = Image::create(&path("image"), &base, &layers, false)?;
        let flat = path("flat");
        image.materialise(&flat, false)?;
        Ok(Self { dir, image, flat })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Blocks that differ from each other.
struct Content(u64);

impl Content {
    fn next(&mut self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        for word in block.as_chunks_mut::<8>().0 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *word = self.0.to_le_bytes();
        }
        block
    }
}

#[derive(Debug, Clone, Copy)]
enum Touch {
    First,
    Read,
    Write,
}

#[derive(Debug)]
struct Sides {
    program: PagerProgram,
    snapshot: Snapshot,
}

impl Sides {
    async fn first_paged(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let paged = self.start().await?;
        paged.memory.touch(Touch::First).await?;
        let took = begun.elapsed();
        paged.end().await?;
        Ok(took)
    }

    async fn first_flat(&self) -> anyhow::Result<Duration> {
        let (image, file) = (self.snapshot.image.header_path().to_path_buf(), self.snapshot.path("made"));
        let to = file.clone();
        let begun = Instant::now();
        spawn_blocking(move || Image::open(&image)?.materialise(&to, false)).await??;
        let memory = Memory::mapped(&file)?;
        memory.touch(Touch::First).await?;
        let took = begun.elapsed();
        drop(memory);
        std::fs::remove_file(file)?;
        Ok(took)
    }

    async fn all_paged(&self, touch: Touch) -> anyhow::Result<Duration> {
        let paged = self.start().await?;
        paged.memory.touch(Touch::First).await?;
        let took = paged.memory.touch(touch).await?;
        paged.end().await?;
        Ok(took)
    }

    async fn all_mapped(&self, touch: Touch) -> anyhow::Result<Duration> {
        let memory = Memory::mapped(&self.snapshot.flat)?;
        memory.touch(Touch::First).await?;
        memory.touch(touch).await
    }

    /// Does with the pager what the driver and Firecracker do.
    async fn start(&self) -> anyhow::Result<Paged> {
        let socket = self.snapshot.path("socket");
        let listener = UnixListener::bind(&socket)?;
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        let job = Job {
            image: self.snapshot.image.header_path(),
            socket: listener,
            vmm: own.as_fd(),
            uid: UID,
            gid: UID,
            cgroup: None,
            stderr: File::create(self.snapshot.path("stderr"))?,
            prefetch: Vec::new(),
        };
        let pager = Pager::start(&self.program, job).await?;
        let memory = Memory::map(-1, libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)?;
        let uffd = userfaultfd(&memory)?;
        let connection = UnixStream::connect(&socket)?;
        hand_over(&connection, &uffd, &memory)?;
        std::fs::remove_file(&socket)?;
        Ok(Paged { pager, memory, _uffd: uffd, _connection: connection })
    }
}

/// Memory with whoever serves it.
#[derive(Debug)]
struct Paged {
    pager: Pager,
    memory: Memory,
    _uffd: OwnedFd,
    _connection: UnixStream,
}

impl Paged {
    async fn end(self) -> anyhow::Result<()> {
        Ok(self.pager.kill().await?)
    }
}

/// Memory of this process, unmapped when nobody uses it any more.
#[derive(Debug, Clone)]
struct Memory(Arc<Mapping>);

#[derive(Debug)]
struct Mapping(usize);

impl Memory {
    fn map(file: i32, flags: libc::c_int) -> anyhow::Result<Self> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | flags);
        // SAFETY: new memory at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, access, flags, file, 0) };
        ensure!(start != libc::MAP_FAILED, "cannot map {MEMORY_MIB} MiB: {}", Error::last_os_error());
        Ok(Self(Arc::new(Mapping(start.expose_provenance()))))
    }

    fn mapped(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path)?;
        Self::map(file.as_raw_fd(), 0)
    }

    fn address(&self) -> usize {
        self.0.0
    }

    /// Touches pages on a thread that may wait for them; how long that took.
    async fn touch(&self, touch: Touch) -> anyhow::Result<Duration> {
        let memory = self.clone();
        let work = move || {
            let bytes = if matches!(touch, Touch::First) { 1 } else { BYTES };
            let begun = Instant::now();
            for at in (0..bytes).step_by(BLOCK_BYTES) {
                let page = std::ptr::with_exposed_provenance_mut::<u8>(memory.address() + at);
                // SAFETY: the page is part of a mapping that this closure keeps and to which no reference exists.
                unsafe {
                    match touch {
                        Touch::First | Touch::Read => drop(page.read_volatile()),
                        Touch::Write => page.write_volatile(1),
                    }
                }
            }
            begun.elapsed()
        };
        Ok(spawn_blocking(work).await?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody has a reference to it.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(self.0), BYTES) };
    }
}

/// A userfaultfd over the memory, made as Firecracker makes it (`linux/userfaultfd.h`).
fn userfaultfd(memory: &Memory) -> anyhow::Result<OwnedFd> {
    const UFFDIO_API: libc::Ioctl = 0xC018_AA3F_u32 as libc::Ioctl;
    const UFFDIO_REGISTER: libc::Ioctl = 0xC020_AA00_u32 as libc::Ioctl;
    const EVENT_REMOVE: u64 = 1 << 3;
    const MODE_MISSING: u64 = 1;
    // SAFETY: no pointer is passed.
    let made = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    let number = i32::try_from(made).ok().filter(|fd| *fd >= 0);
    let number = number.with_context(|| format!("no userfaultfd: {}", Error::last_os_error()))?;
    // SAFETY: the descriptor is new.
    let uffd = unsafe { OwnedFd::from_raw_fd(number) };
    let mut api = [0xAA, EVENT_REMOVE, 0_u64];
    let mut range = [memory.address() as u64, BYTES as u64, MODE_MISSING, 0];
    // SAFETY: they take three and four numbers of 64 bits, which outlive the calls.
    let done = unsafe {
        libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) == 0
            && libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, range.as_mut_ptr()) == 0
    };
    ensure!(done, "the userfaultfd cannot be used: {}", Error::last_os_error());
    Ok(uffd)
}

/// Tells the pager of the memory, as Firecracker does.
fn hand_over(connection: &UnixStream, uffd: &OwnedFd, memory: &Memory) -> anyhow::Result<()> {
    let mapping = serde_json::json!([{
        "base_host_virt_addr": memory.address(), "size": BYTES, "offset": 0,
        "page_size": BLOCK_BYTES, "page_size_kib": BLOCK_BYTES,
    }]);
    let text = mapping.to_string();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let descriptors = [uffd.as_fd()];
    ensure!(beside.push(SendAncillaryMessage::ScmRights(&descriptors)), "no room for a descriptor");
    let text = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(connection, &text, &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}
