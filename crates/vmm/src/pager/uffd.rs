//! The system calls of a userfaultfd (`linux/userfaultfd.h`), seen from the process that serves another's memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

use super::PagerError;

/// Bytes of a message.
const MESSAGE_BYTES: usize = 32;
/// Messages read at once: more than a machine has CPUs.
const MESSAGES: usize = 64;

const EVENT_FAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Zero {
    range: Range,
    mode: u64,
    zeroed: i64,
}

const GROUP: u8 = 0xAA;
const WAKE: Opcode = opcode::read::<Range>(GROUP, 2);
const COPY: Opcode = opcode::read_write::<Copy>(GROUP, 3);
const ZERO: Opcode = opcode::read_write::<Zero>(GROUP, 4);

/// What the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// The memory from the first address up to the second is, or is about to be, dropped.
    Removed(u64, u64),
}

/// What became of an attempt to fill memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// This many bytes from the beginning are there, more than none; whoever waited for them was woken.
    Bytes(u64),
    /// The first page was there already.
    Exists,
    /// The memory is being changed: nothing can be filled until the kernel's events were read.
    Changing,
    /// There is no such memory in one piece.
    Nowhere,
    /// The process has no memory any more.
    Gone,
}

/// A userfaultfd of another process.
#[derive(Debug)]
pub(super) struct Uffd(OwnedFd);

impl Uffd {
    /// Takes a descriptor that should be a userfaultfd on which the one who made it has agreed with the kernel. `page` is
    /// an address in the memory it is for.
    pub(super) fn new(fd: OwnedFd, page: u64) -> Result<Self, PagerError> {
        let uffd = Self(fd);
        uffd.wake(page, super::guest::BLOCK).map_err(|errno| {
            let errno = io::Error::from(errno);
            PagerError::handshake(format!("its descriptor is no userfaultfd that is ready for use ({errno})"))
        })?;
        // One that blocks cannot be polled, and the flag is not in the hands of whoever receives it.
        let blocking = |error| PagerError::system("make the userfaultfd non-blocking", error);
        let flags = rustix::fs::fcntl_getfl(&uffd.0).map_err(blocking)?;
        rustix::fs::fcntl_setfl(&uffd.0, flags | OFlags::NONBLOCK).map_err(blocking)?;
        Ok(uffd)
    }

    /// Reads what events there are, up to a bound; none means that none are left.
    pub(super) fn read(&self) -> Result<Vec<Event>, PagerError> {
        let mut bytes = [0; MESSAGES * MESSAGE_BYTES];
        match rustix::io::read(&self.0, &mut bytes) {
            Ok(count) => bytes[..count].as_chunks::<MESSAGE_BYTES>().0.iter().map(event).collect(),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Vec::new()),
            Err(errno) => Err(PagerError::system("read from the userfaultfd", errno)),
        }
    }

    /// Copies whole pages to the address `to`, where nothing is yet.
    pub(super) fn copy(&self, to: u64, bytes: &[u8]) -> Result<Filled, PagerError> {
        let source = bytes.as_ptr().expose_provenance() as u64;
        let mut copy = Copy { dst: to, src: source, len: bytes.len() as u64, mode: 0, copied: 0 };
        // SAFETY: the type is the one of this opcode. The kernel reads `bytes`, which outlive the call, and writes to the
        // memory of the process that made the userfaultfd. That process is another one, so nothing of ours changes.
        let done = unsafe { ioctl(&self.0, Updater::<COPY, Copy>::new(&mut copy)) };
        filled(done, copy.len, copy.copied)
    }

    /// Puts zeros into the whole pages from the address `to` on, where nothing is yet.
    pub(super) fn zero(&self, to: u64, len: u64) -> Result<Filled, PagerError> {
        let mut zero = Zero { range: Range { start: to, len }, mode: 0, zeroed: 0 };
        // SAFETY: the type is the one of this opcode, and the memory that changes is another process's.
        let done = unsafe { ioctl(&self.0, Updater::<ZERO, Zero>::new(&mut zero)) };
        filled(done, len, zero.zeroed)
    }

    /// Lets the threads go on that wait for one of these pages; if it is still missing they say so again.
    pub(super) fn wake(&self, start: u64, len: u64) -> rustix::io::Result<()> {
        // SAFETY: the type is the one of this opcode, and the kernel only reads it.
        unsafe { ioctl(&self.0, Setter::<WAKE, Range>::new(Range { start, len })) }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a call that was to fill `len` bytes has done; `done` is the count that it left in its argument.
fn filled(result: rustix::io::Result<()>, len: u64, done: i64) -> Result<Filled, PagerError> {
    match (result, u64::try_from(done)) {
        (Ok(()), _) => Ok(Filled::Bytes(len)),
        // Stopped halfway, by a page that exists or by a change: the next call tells which.
        (Err(Errno::AGAIN), Ok(count)) if count > 0 => Ok(Filled::Bytes(count)),
        (Err(Errno::AGAIN | Errno::INTR), _) => Ok(Filled::Changing),
        (Err(Errno::EXIST), _) => Ok(Filled::Exists),
        (Err(Errno::NOENT), _) => Ok(Filled::Nowhere),
        (Err(Errno::SRCH), _) => Ok(Filled::Gone),
        (Err(errno), _) => Err(PagerError::system("fill the guest's memory", errno)),
    }
}

fn event(message: &[u8; MESSAGE_BYTES]) -> Result<Event, PagerError> {
    let field = |at: usize| {
        let bytes = message[at..].first_chunk().copied().unwrap_or_default();
        u64::from_ne_bytes(bytes)
    };
    match message[0] {
        EVENT_FAULT => Ok(Event::Fault(field(16))),
        EVENT_REMOVE | EVENT_UNMAP => Ok(Event::Removed(field(8), field(16))),
        event => Err(PagerError::Event { event }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_kernel_header() {
        assert_eq!((WAKE, COPY, ZERO), (0x8010_AA02, 0xC028_AA03, 0xC020_AA04));
    }

    #[test]
    fn messages_are_read_as_the_kernel_lays_them_out() {
        let mut message = [0; MESSAGE_BYTES];
        message[8..16].copy_from_slice(&0x1000u64.to_ne_bytes());
        message[16..24].copy_from_slice(&0x5000u64.to_ne_bytes());
        let mut as_event = |kind| {
            message[0] = kind;
            event(&message)
        };
        assert_eq!(as_event(EVENT_FAULT).unwrap(), Event::Fault(0x5000));
        assert_eq!(as_event(EVENT_REMOVE).unwrap(), Event::Removed(0x1000, 0x5000));
        assert_eq!(as_event(EVENT_UNMAP).unwrap(), Event::Removed(0x1000, 0x5000));
        assert!(matches!(as_event(0x14), Err(PagerError::Event { event: 0x14 })), "a move was not asked for");
    }

    #[test]
    fn half_done_is_told_from_not_begun() {
        let again = || Err(Errno::AGAIN);
        assert_eq!(filled(Ok(()), 8192, 8192).unwrap(), Filled::Bytes(8192));
        assert_eq!(filled(again(), 8192, 4096).unwrap(), Filled::Bytes(4096));
        // Kernels differ in whether they write the count when they have not begun.
        assert_eq!(filled(again(), 8192, 0).unwrap(), Filled::Changing);
        assert_eq!(filled(again(), 8192, -11).unwrap(), Filled::Changing);
        assert!(filled(Err(Errno::NOMEM), 8192, -12).is_err());
    }

    #[test]
    fn another_descriptor_is_no_userfaultfd() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Uffd::new(file.into(), 0x1000).unwrap_err();
        assert!(error.to_string().contains("no userfaultfd"), "{error}");
    }
}
