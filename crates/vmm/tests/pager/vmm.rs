//! A VMM in a process of its own, as far as a pager can tell: memory behind a userfaultfd, the handshake, and threads that
//! touch pages. It is a process so that it may be killed, and so that a page that never comes hangs no test.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use wrenn_image::BLOCK_BYTES;

use crate::bench::{LONG, eventually};

/// The variable that makes a VMM of the test binary.
pub(crate) const VARIABLE: &str = "WRENN_TEST_VMM";

/// What the VMM is told, one line of JSON each.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Do {
    /// Hand the memory to whoever listens at the socket.
    Connect,
    /// Answer with the content of these blocks.
    Read(usize, usize),
    /// Touch every block from this many threads at once, each in an order of its own.
    Walk(usize),
    /// The same, while every so manyth block is dropped.
    Churn(usize, usize),
    /// Drop the memory of these blocks.
    Drop(usize, usize),
    /// Put zeros at these blocks without asking the pager.
    Own(usize, usize),
    /// Make these blocks a mapping of their own, in the eyes of the kernel.
    Split(usize, usize),
    /// Fill these blocks with a byte.
    Fill(usize, usize, u8),
}

#[derive(Debug, Serialize, Deserialize)]
struct Shape {
    socket: PathBuf,
    /// Blocks of each region.
    regions: Vec<usize>,
}

/// The VMM from outside. Dropped, it is killed.
pub(crate) struct Vmm {
    child: Child,
    stream: BufReader<UnixStream>,
    /// Address and blocks of each region.
    regions: Vec<(usize, usize)>,
    uffd: i32,
}

impl Vmm {
    /// Starts one that has not connected yet.
    pub(crate) fn start(socket: &Path, regions: &[usize]) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let shape = Shape { socket: socket.to_path_buf(), regions: regions.to_vec() };
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "be_vmm", "--ignored", "--nocapture"])
            .env(VARIABLE, serde_json::to_string(&shape).unwrap())
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        ours.set_read_timeout(Some(LONG)).unwrap();
        let mut vmm = Self { child, stream: BufReader::new(ours), regions: Vec::new(), uffd: -1 };
        let mut hello = String::new();
        vmm.stream.read_line(&mut hello).unwrap();
        let (addresses, uffd): (Vec<usize>, i32) = serde_json::from_str(&hello).unwrap();
        (vmm.regions, vmm.uffd) = (addresses.into_iter().zip(regions.to_vec()).collect(), uffd);
        vmm
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn pidfd(&self) -> OwnedFd {
        let pid = Pid::from_child(&self.child);
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap()
    }

    /// Tells it what to do and waits until it is done.
    pub(crate) fn run(&mut self, what: Do) -> Vec<u8> {
        self.begin(what);
        let bytes = match what {
            Do::Read(from, to) => (to - from) * BLOCK_BYTES,
            _ => 1,
        };
        let mut answer = vec![0; bytes];
        self.stream.read_exact(&mut answer).expect("an answer");
        answer
    }

    /// Tells it what to do.
    pub(crate) fn begin(&mut self, what: Do) {
        writeln!(self.stream.get_mut(), "{}", serde_json::to_string(&what).unwrap()).unwrap();
    }

    /// Whether nothing has come since the last answer was read.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.stream.get_ref().set_nonblocking(true).unwrap();
        let silent = self.stream.fill_buf().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
        self.stream.get_ref().set_nonblocking(false).unwrap();
        silent
    }

    /// The blocks that are in its memory, seen from outside: no fault is caused.
    pub(crate) fn present(&self) -> Vec<usize> {
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid())).unwrap();
        let (mut present, mut first) = (Vec::new(), 0);
        for (address, blocks) in &self.regions {
            let mut entries = vec![0; blocks * 8];
            pagemap.read_exact_at(&mut entries, (address / BLOCK_BYTES * 8) as u64).unwrap();
            let there = |entry: &[u8; 8]| u64::from_le_bytes(*entry) >> 63 == 1;
            let entries = entries.as_chunks::<8>().0.iter().enumerate();
            present.extend(entries.filter(|(_, entry)| there(entry)).map(|(at, _)| first + at));
            first += blocks;
        }
        present
    }

    /// Waits until at least this many of its threads wait for pages.
    pub(crate) fn await_faults(&self, count: u32) {
        eventually("threads wait for pages", || {
            let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{}", self.pid(), self.uffd)).unwrap();
            let waiting = info.lines().find_map(|line| line.strip_prefix("total:")).unwrap();
            waiting.trim().parse::<u32>().unwrap() >= count
        });
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The VMM from inside: its whole life.
pub(crate) fn be() {
    let Ok(shape) = std::env::var(VARIABLE) else { return };
    let shape: Shape = serde_json::from_str(&shape).unwrap();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let memory = Memory::new(&shape.regions);
    let addresses: Vec<usize> = memory.regions.iter().map(|(address, _)| *address).collect();
    // SAFETY: the descriptor is standard input, which is the socket to the test and used by nothing else.
    let mut stream = unsafe { UnixStream::from_raw_fd(0) };
    let hello = serde_json::to_string(&(addresses, memory.uffd.as_raw_fd())).unwrap();
    writeln!(stream, "{hello}").unwrap();
    for line in BufReader::new(stream.try_clone().unwrap()).lines() {
        let what: Do = serde_json::from_str(&line.unwrap()).unwrap();
        let answer = memory.run(what, &shape.socket);
        stream.write_all(&answer).unwrap();
    }
}

struct Memory {
    uffd: OwnedFd,
    regions: Vec<(usize, usize)>,
}

/// Blocks between two regions that are no memory.
const GAP: usize = 24;

impl Memory {
    fn new(regions: &[usize]) -> Self {
        let total: usize = regions.iter().map(|blocks| blocks + GAP).sum();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new memory at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), total * BLOCK_BYTES, access, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let (uffd, mut at, mut made) = (userfaultfd(), start.addr(), Vec::new());
        for &blocks in regions {
            register(&uffd, at, blocks * BLOCK_BYTES);
            made.push((at, blocks));
            at += blocks * BLOCK_BYTES;
            // SAFETY: the part of the new memory behind this region, which nothing uses.
            let unmapped =
                unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(at), GAP * BLOCK_BYTES) };
            assert_eq!(unmapped, 0);
            at += GAP * BLOCK_BYTES;
        }
        Self { uffd, regions: made }
    }

    fn run(&self, what: Do, socket: &Path) -> Vec<u8> {
        match what {
            Do::Connect => self.connect(socket),
            Do::Read(from, to) => return (from..to).flat_map(|block| self.read(block)).collect(),
            Do::Walk(threads) => self.walk_all(threads, || ()),
            Do::Churn(threads, step) => self.walk_all(threads, || {
                let blocks: usize = self.regions.iter().map(|(_, blocks)| blocks).sum();
                (0..blocks).step_by(step).for_each(|block| self.drop(block));
            }),
            Do::Drop(from, to) => (from..to).for_each(|block| self.drop(block)),
            Do::Own(from, to) => {
                let mut range = [self.at(from).addr() as u64, ((to - from) * BLOCK_BYTES) as u64, 0, 0];
                // SAFETY: UFFDIO_ZEROPAGE takes four numbers of 64 bits, and to the blocks no reference exists.
                let done = unsafe { libc::ioctl(self.uffd.as_raw_fd(), 0xC020_AA04, range.as_mut_ptr()) };
                assert_eq!(done, 0);
            }
            Do::Split(from, to) => {
                let bytes = (to - from) * BLOCK_BYTES;
                // SAFETY: the advice changes no content.
                let done = unsafe { libc::madvise(self.at(from).cast(), bytes, libc::MADV_DONTDUMP) };
                assert_eq!(done, 0);
            }
            Do::Fill(from, to, byte) => (from..to).for_each(|block| {
                // SAFETY: the block is memory of ours, and all threads that read it have ended.
                unsafe { std::ptr::write_bytes(self.at(block), byte, BLOCK_BYTES) };
            }),
        }
        vec![b'.']
    }

    fn connect(&self, socket: &Path) {
        let mut offset = 0;
        let mappings = self.regions.iter().map(|(address, blocks)| {
            let size = blocks * BLOCK_BYTES;
            offset += size;
            mapping(*address, size, offset - size, BLOCK_BYTES)
        });
        let text = serde_json::to_string(&mappings.collect::<Vec<_>>()).unwrap();
        let stream = UnixStream::connect(socket).unwrap();
        send(&stream, &text, &[&self.uffd]);
        // As Firecracker does, which never closes it.
        std::mem::forget(stream);
    }

    fn walk_all(&self, threads: usize, meanwhile: impl FnOnce()) {
        std::thread::scope(|scope| {
            (0..threads).for_each(|thread| drop(scope.spawn(move || self.walk(thread))));
            meanwhile();
        });
    }

    fn drop(&self, block: usize) {
        // SAFETY: the block is memory of ours, to which no reference exists.
        let dropped = unsafe { libc::madvise(self.at(block).cast(), BLOCK_BYTES, libc::MADV_DONTNEED) };
        assert_eq!(dropped, 0);
    }

    fn walk(&self, thread: usize) {
        let blocks: usize = self.regions.iter().map(|(_, blocks)| blocks).sum();
        let mut order: Vec<usize> = (0..blocks).collect();
        let mut state = thread as u64 * 2 + 1;
        for at in (1..blocks).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(at, usize::try_from(state >> 33).unwrap() % (at + 1));
        }
        for block in order {
            // SAFETY: the block is memory of ours that nobody writes meanwhile.
            unsafe { self.at(block).read_volatile() };
        }
    }

    fn read(&self, block: usize) -> [u8; BLOCK_BYTES] {
        // SAFETY: the block is memory of ours that nobody writes meanwhile.
        unsafe { self.at(block).cast::<[u8; BLOCK_BYTES]>().read_volatile() }
    }

    fn at(&self, mut block: usize) -> *mut u8 {
        for (address, blocks) in &self.regions {
            if block < *blocks {
                return std::ptr::with_exposed_provenance_mut(address + block * BLOCK_BYTES);
            }
            block -= blocks;
        }
        panic!("no such block");
    }
}

/// A region as Firecracker describes it.
pub(crate) fn mapping(address: usize, size: usize, offset: usize, page_size: usize) -> serde_json::Value {
    serde_json::json!({
        "base_host_virt_addr": address, "size": size, "offset": offset,
        "page_size": page_size, "page_size_kib": page_size,
    })
}

/// Sends a text with descriptors beside it.
pub(crate) fn send(stream: &UnixStream, text: &str, descriptors: &[&OwnedFd]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
    if !descriptors.is_empty() {
        assert!(beside.push(SendAncillaryMessage::ScmRights(&descriptors)));
    }
    let sent =
        rustix::net::sendmsg(stream, &[IoSlice::new(text.as_bytes())], &mut beside, SendFlags::NOSIGNAL);
    assert_eq!(sent.unwrap(), text.len());
}

/// A userfaultfd that tells of removals, as Firecracker asks for.
fn userfaultfd() -> OwnedFd {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
    const EVENT_REMOVE: u64 = 1 << 3;
    // The version of the interface, the features, and room for the kernel's answer.
    let mut api = [0xAA, EVENT_REMOVE, 0u64];
    // SAFETY: UFFDIO_API takes three numbers of 64 bits, which outlive the call.
    let agreed = unsafe { libc::ioctl(fd.as_raw_fd(), 0xC018_AA3F, api.as_mut_ptr()) };
    assert_eq!(agreed, 0, "{}", std::io::Error::last_os_error());
    fd
}

fn register(uffd: &OwnedFd, address: usize, bytes: usize) {
    const MODE_MISSING: u64 = 1;
    let mut range = [address as u64, bytes as u64, MODE_MISSING, 0];
    // SAFETY: UFFDIO_REGISTER takes four numbers of 64 bits, which outlive the call.
    let done = unsafe { libc::ioctl(uffd.as_raw_fd(), 0xC020_AA00, range.as_mut_ptr()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
