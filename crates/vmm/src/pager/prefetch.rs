//! The thread that fetches what the last run touched, before the guest asks for it.
//!
//! It gives way: between two pieces, and before a piece that was read is placed, it waits until no fault is being served.
//! It ends with the ranges that it was given, because the rest of the memory may never be needed.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wrenn_image::Image;

use super::PagerError;
use super::guest::{BLOCK, Guest, Placed};

/// Blocks fetched at once: 1 MiB. A fault waits for no more than this.
const PIECE: u64 = 256;
/// The VMM's events are read by the other thread, which needs this long for it at most.
const CHANGE_PAUSE: Duration = Duration::from_millis(1);

/// Where the thread waits while faults are being served.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    over: bool,
}

impl Gate {
    /// Faults are about to be served.
    pub(super) fn close(&self) {
        self.state().closed = true;
    }

    /// No fault is left.
    pub(super) fn open(&self) {
        self.state().closed = false;
        self.changed.notify_all();
    }

    /// Waits until no fault is being served. False if nothing is to be fetched any more.
    fn pass(&self) -> bool {
        let state = self.state();
        let waiting = |state: &mut State| state.closed && !state.over;
        let state = self.changed.wait_while(state, waiting).unwrap_or_else(PoisonError::into_inner);
        !state.over
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the thread end, however whoever holds this ends.
#[derive(Debug)]
pub(super) struct Leash<'a>(pub(super) &'a Gate);

impl Drop for Leash<'_> {
    fn drop(&mut self) {
        self.0.state().over = true;
        self.0.changed.notify_all();
    }
}

/// Fetches the ranges in their order, as far as they lie in the guest.
pub(super) fn run(
    image: &Image,
    guest: &Guest,
    gate: &Gate,
    ranges: &[Range<u64>],
) -> Result<(), PagerError> {
    let mut buf = vec![0; wrenn_image::BLOCK_BYTES << PIECE.ilog2()];
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let Some(around) = guest.around(at) else { break };
            // Along the pieces of the image, so that no chunk of its base is read twice.
            let end = (at - at % PIECE + PIECE).min(around.end).min(range.end);
            if !gate.pass() || !fetch(image, guest, gate, at..end, &mut buf)? {
                return Ok(());
            }
            at = end;
        }
    }
    Ok(())
}

/// Fetches one piece. False if nothing is to be fetched any more.
fn fetch(
    image: &Image,
    guest: &Guest,
    gate: &Gate,
    piece: Range<u64>,
    buf: &mut [u8],
) -> Result<bool, PagerError> {
    let missing = guest.missing(piece);
    let bytes = usize::try_from((missing.end - missing.start) * BLOCK).unwrap_or(usize::MAX);
    let Some(buf) = buf.get_mut(..bytes).filter(|buf| !buf.is_empty()) else { return Ok(true) };
    image.read(missing.start, buf)?;
    while gate.pass() {
        match guest.place(missing.start, buf)? {
            Placed::Done => return Ok(true),
            // The other thread finds out as well, and knows what to do.
            Placed::Gone => return Ok(false),
            Placed::Changing => std::thread::sleep(CHANGE_PAUSE),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_at_the_gate_goes_on_when_it_opens_and_when_all_is_over() {
        let gate = Gate::default();
        assert!(gate.pass());
        for over in [false, true] {
            gate.close();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| gate.pass());
                if over {
                    drop(Leash(&gate));
                } else {
                    gate.open();
                }
                assert_eq!(waiting.join().unwrap(), !over);
            });
        }
        assert!(!gate.pass(), "over is over");
    }
}
