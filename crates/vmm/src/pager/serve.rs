//! The pager's side: its life from the order to the end of its VMM.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use wrenn_image::{BLOCK_BYTES, Image};

use super::PagerError;
use super::guest::{BLOCK, Guest, Placed};
use super::handshake;
use super::order::{self, Order, READY};
use super::prefetch::{self, Gate, Leash};
use super::uffd::Uffd;

/// Blocks read for one fault: 64 KiB, the unit in which a base is summed.
const WINDOW: u64 = 16;
/// Events that a filling has to wait for come within this time, or have come already.
const CHANGE_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
/// A VMM that loses its memory is ending; what its last thread still does takes no longer.
const END_LIMIT: Duration = Duration::from_secs(60);
/// An image has at most ten files, and there are a handful of other descriptors.
const MAX_FILES: u64 = 64;

/// The whole life of a pager, in a process of its own that was started by [`Pager::start`](super::Pager::start). Call it
/// before anything else is opened or any thread started; what it is to do is in the variable `WRENN_PAGER` of the
/// environment. Returns when its VMM has ended. The process is an unprivileged one by then, so there is nothing left to do
/// but to exit, with a code other than 0 after an error.
///
/// # Errors
/// [`PagerError`], which has been written to standard error with all its causes.
pub fn serve() -> Result<(), PagerError> {
    let result = Order::of_this_process().and_then(live);
    if let Err(error) = &result {
        eprintln!("pager: {}", error.chain());
    }
    result
}

/// What a pager has once it is ready.
struct Prepared {
    image: Image,
    listener: UnixListener,
    vmm: OwnedFd,
    prefetch: Vec<Range<u64>>,
}

fn live(order: Order) -> Result<(), PagerError> {
    let ready = order::inherited(order.ready)?;
    let prepared = prepare(&order);
    let said = match &prepared {
        Ok(_) => READY.to_vec(),
        Err(error) => error.chain().into_bytes(),
    };
    // An agent that has died needs no answer, and its VMM may live on.
    let _ = rustix::io::write(&ready, &said);
    drop(ready);
    let Prepared { image, listener, vmm, prefetch } = prepared?;
    let Some((text, descriptor)) = handshake::receive(listener, vmm.as_fd())? else { return Ok(()) };
    let mappings = handshake::mappings(&text, image.header_path(), image.size_bytes())?;
    let first = mappings.first().ok_or_else(|| PagerError::handshake("it names no memory"))?;
    let guest = Guest::new(Uffd::new(descriptor, first.address)?, &mappings);
    page(&image, &guest, vmm.as_fd(), &prefetch)
}

fn prepare(order: &Order) -> Result<Prepared, PagerError> {
    let listener = UnixListener::from(order::inherited(order.socket)?);
    let vmm = order::inherited(order.vmm)?;
    let prefetch = order::read_ranges(order::inherited(order.prefetch)?)?;
    let image = Image::open(&order.image)?;
    give_up_root(order.uid, order.gid)?;
    Ok(Prepared { image, listener, vmm, prefetch })
}

/// Makes the whole process one of an unprivileged user. That no program can give it back is set since its start.
///
/// The C library's calls and not the bare system calls, which change the calling thread alone: this is no child of a fork
/// but a whole program, which may have threads.
fn give_up_root(uid: u32, gid: u32) -> Result<(), PagerError> {
    let failed = |error| PagerError::System { action: "become an unprivileged user", source: error };
    for (resource, value) in [(Resource::Core, 0), (Resource::Nofile, MAX_FILES)] {
        let limit = Rlimit { current: Some(value), maximum: Some(value) };
        rustix::process::setrlimit(resource, limit).map_err(|errno| failed(errno.into()))?;
    }
    let check = |done: libc::c_int| match done {
        0 => Ok(()),
        _ => Err(failed(std::io::Error::last_os_error())),
    };
    // SAFETY: no list is read, for it has no members.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: no pointer is passed.
    check(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: no pointer is passed.
    check(unsafe { libc::setresuid(uid, uid, uid) })?;
    // Of one user may be several processes: none of them is to read a guest's memory here.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|errno| failed(errno.into()))
}

/// Serves a guest until its VMM ends.
fn page(image: &Image, guest: &Guest, vmm: BorrowedFd<'_>, ranges: &[Range<u64>]) -> Result<(), PagerError> {
    let gate = Gate::default();
    let mut server = Server::new(image, guest, vmm, &gate);
    if ranges.is_empty() {
        return server.run(None).map(drop);
    }
    let (finished, running) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| PagerError::system("make a pipe", errno))?;
    std::thread::scope(|scope| {
        // Dropped in front of the scope's end, which waits for the thread.
        let _leash = Leash(&gate);
        let fetcher = std::thread::Builder::new().name("prefetch".to_owned());
        let fetch = || {
            // Closed when the thread ends, in whatever way.
            let _running = running;
            prefetch::run(image, guest, &gate, ranges)
        };
        let fetcher = fetcher
            .spawn_scoped(scope, fetch)
            .map_err(|error| PagerError::system("start a thread", error))?;
        if server.run(Some(finished.as_fd()))? == Over::Fetched {
            fetcher.join().map_err(|_| PagerError::Panic)??;
            server.run(None)?;
        }
        Ok(())
    })
}

/// Why a server stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The VMM has ended.
    Ended,
    /// The thread that fetches in advance has.
    Fetched,
}

/// What there is to do.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    ended: bool,
    events: bool,
    fetched: bool,
}

/// The thread that serves faults.
struct Server<'a> {
    image: &'a Image,
    guest: &'a Guest,
    vmm: BorrowedFd<'a>,
    gate: &'a Gate,
    /// Blocks that threads of the VMM wait for.
    faults: VecDeque<u64>,
    buf: Vec<u8>,
}

impl<'a> Server<'a> {
    fn new(image: &'a Image, guest: &'a Guest, vmm: BorrowedFd<'a>, gate: &'a Gate) -> Self {
        let buf = vec![0; BLOCK_BYTES << WINDOW.ilog2()];
        Self { image, guest, vmm, gate, faults: VecDeque::new(), buf }
    }

    /// Serves until the VMM ends, or `fetched` is closed.
    fn run(&mut self, fetched: Option<BorrowedFd<'_>>) -> Result<Over, PagerError> {
        loop {
            let ready = self.wait(fetched, None)?;
            if ready.ended {
                return Ok(Over::Ended);
            }
            if ready.fetched {
                return Ok(Over::Fetched);
            }
            if ready.events {
                self.gate.close();
                if !self.serve_all()? {
                    return self.outlive();
                }
                self.gate.open();
            }
        }
    }

    /// Serves all faults that there are. False if the VMM has no memory any more.
    fn serve_all(&mut self) -> Result<bool, PagerError> {
        self.receive()?;
        while let Some(block) = self.faults.pop_front() {
            if !self.serve(block)? {
                return Ok(false);
            }
            if self.faults.is_empty() {
                self.receive()?;
            }
        }
        Ok(true)
    }

    /// Serves a fault. False if the VMM has no memory any more.
    fn serve(&mut self, block: u64) -> Result<bool, PagerError> {
        loop {
            match self.try_serve(block)? {
                Placed::Done => break,
                Placed::Gone => return Ok(false),
                Placed::Changing => {
                    // The VMM changes its memory once this thread has read that it wants to.
                    if self.wait(None, Some(&CHANGE_PAUSE))?.ended {
                        return Ok(false);
                    }
                    self.receive()?;
                }
            }
        }
        self.guest.release(block)?;
        Ok(true)
    }

    fn try_serve(&mut self, block: u64) -> Result<Placed, PagerError> {
        if self.guest.is_given(block) {
            return self.guest.renew(block);
        }
        let around = self.guest.around(block).unwrap_or(block..block + 1);
        let start = block - block % WINDOW;
        let window = start.max(around.start)..(start + WINDOW).min(around.end);
        let missing = self.guest.missing(window);
        let bytes = usize::try_from((missing.end - missing.start) * BLOCK).unwrap_or(usize::MAX);
        let buf = &mut self.buf[..bytes];
        self.image.read(missing.start, buf)?;
        self.guest.place(missing.start, buf)
    }

    /// Reads all events that there are.
    fn receive(&mut self) -> Result<(), PagerError> {
        while let Some(addresses) = self.guest.events()? {
            for address in addresses {
                let block = self.guest.block_at(address).ok_or(PagerError::Stray { address })?;
                self.faults.push_back(block);
            }
        }
        Ok(())
    }

    /// Waits until there is something to do, or for the given time.
    fn wait(&self, fetched: Option<BorrowedFd<'_>>, limit: Option<&Timespec>) -> Result<Ready, PagerError> {
        let mut fds = vec![PollFd::new(&self.vmm, PollFlags::IN), PollFd::new(self.guest, PollFlags::IN)];
        if let Some(fetched) = &fetched {
            fds.push(PollFd::new(fetched, PollFlags::IN));
        }
        match poll(&mut fds, limit) {
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(errno) => return Err(PagerError::system("wait for faults", errno)),
            Ok(_) => {}
        }
        let events = fds[1].revents();
        if !events.is_empty() && !events.contains(PollFlags::IN) {
            return Err(PagerError::system("wait for faults", Errno::IO));
        }
        let told = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready { ended: told(0), events: told(1), fetched: told(2) })
    }

    /// Waits for the end of a VMM whose memory is gone.
    fn outlive(&self) -> Result<Over, PagerError> {
        let until = Instant::now() + END_LIMIT;
        while Instant::now() < until {
            let mut fds = [PollFd::new(&self.vmm, PollFlags::IN)];
            match poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(Over::Ended),
                Err(errno) => return Err(PagerError::system("wait for the VMM's end", errno)),
            }
        }
        Err(PagerError::Undead { after: END_LIMIT })
    }
}
