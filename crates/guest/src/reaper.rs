//! Waits for every child, once, in one place.
//!
//! A process 1 inherits orphans, so somebody must wait for *any* child; and whoever does takes the exit statuses of
//! the processes the daemon started itself. Hence one thread owns all waiting. It sleeps in `waitid` without
//! collecting, then collects the child it woke up for under the same lock that covers starting and signalling:
//!
//! - a child cannot be collected before it is registered, however quickly it ends;
//! - while the lock is held, the number of a registered process cannot come to mean another one.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// Handle on the one waiting thread.
#[derive(Debug, Clone)]
pub(crate) struct Reaper(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
    started: Condvar,
}

impl Reaper {
    /// Starts the waiting thread. There may be one per program.
    pub(crate) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let reaper = Self(Arc::clone(&shared));
        std::thread::Builder::new().name("reaper".into()).spawn(move || run(&shared))?;
        Ok(reaper)
    }

    /// Starts a process with `start`, which returns its id, and promises its exit.
    pub(crate) fn spawn<E>(
        &self,
        start: impl FnOnce() -> Result<i32, E>,
    ) -> Result<(i32, oneshot::Receiver<Exit>), E> {
        let mut waiting = self.0.lock();
        let pid = start()?;
        let (sender, receiver) = oneshot::channel();
        waiting.insert(pid, sender);
        self.0.started.notify_one();
        Ok((pid, receiver))
    }

    /// Calls `act` if `pid` has not been collected, and keeps it uncollected meanwhile.
    pub(crate) fn with_running<T>(&self, pid: i32, act: impl FnOnce() -> T) -> Option<T> {
        let waiting = self.0.lock();
        waiting.contains_key(&pid).then(act)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Exit>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(shared: &Shared) {
    loop {
        match next_ended(libc::P_ALL, 0, libc::WNOWAIT) {
            Ok(Some((pid, _))) => collect(shared, pid),
            Ok(None) => {}
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => wait_for_first_child(shared),
            Err(_) => {}
        }
    }
}

/// There is no child at all, so the next one can only come from [`Reaper::spawn`].
fn wait_for_first_child(shared: &Shared) {
    let waiting = shared.lock();
    if waiting.is_empty() {
        drop(shared.started.wait(waiting));
    }
}

fn collect(shared: &Shared, pid: i32) {
    let mut waiting = shared.lock();
    let ended = next_ended(libc::P_PID, pid.cast_unsigned(), libc::WNOHANG);
    if let Ok(Some((pid, exit))) = ended
        && let Some(sender) = waiting.remove(&pid)
    {
        // Nobody waiting any more is no loss: the child is collected either way.
        let _ = sender.send(exit);
    }
}

fn next_ended(kind: libc::idtype_t, id: u32, flags: libc::c_int) -> io::Result<Option<(i32, Exit)>> {
    // SAFETY: an all-zero siginfo_t is a valid value of this plain C struct.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid place to write to for the duration of the call.
    let result = unsafe { libc::waitid(kind, id, &raw mut info, libc::WEXITED | libc::__WALL | flags) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid fills these fields for a child event, and zeros mean that there was none.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let exit = if info.si_code == libc::CLD_EXITED { Exit::Code(status) } else { Exit::Signal(status) };
    Ok((pid != 0).then_some((pid, exit)))
}
