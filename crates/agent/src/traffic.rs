//! Leases: who is using a capsule's guest right now.
//!
//! Traffic does not pass through the capsule's actor. Each request takes a lease; the actor closes the gate, which
//! refuses new leases, may wait until the old ones are given back, and cuts those that are left.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The gate in front of one guest.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    // The count and the open flag share one word, so that a lease taken while the gate closes is either counted or
    // refused: bit 0 is the flag, the rest counts leases in steps of two.
    word: AtomicUsize,
    idle: Notify,
    /// Ends the leases of the time since the gate was last opened.
    cut: Mutex<CancellationToken>,
}

const OPEN: usize = 1;
const LEASE: usize = 2;

impl Gate {
    /// A gate that lets nothing through yet.
    pub fn closed() -> Self {
        Self::default()
    }

    /// Lets traffic through, also after a [`cut`](Self::cut).
    pub fn open(&self) {
        let mut cut = self.inner.cut.lock().unwrap_or_else(PoisonError::into_inner);
        if cut.is_cancelled() {
            *cut = CancellationToken::new();
        }
        drop(cut);
        self.inner.word.fetch_or(OPEN, Ordering::AcqRel);
    }

    /// Refuses new leases; those given out go on.
    pub fn close(&self) {
        self.inner.word.fetch_and(!OPEN, Ordering::AcqRel);
    }

    /// Refuses new leases and ends every one that is still out.
    pub fn cut(&self) {
        self.close();
        self.inner.cut.lock().unwrap_or_else(PoisonError::into_inner).cancel();
    }

    /// A lease, where the gate is open.
    pub fn lease(&self) -> Option<Lease> {
        // Taken before the lease: one that is cut at once was taken while the gate closed.
        let cut = self.inner.cut.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let taken = self.inner.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            (word & OPEN == OPEN).then_some(word + LEASE)
        });
        taken.ok().map(|_| Lease { inner: Arc::clone(&self.inner), cut })
    }

    /// Leases that are out.
    pub fn leases(&self) -> usize {
        self.inner.word.load(Ordering::Acquire) / LEASE
    }

    /// Resolves when no lease is out.
    pub async fn drained(&self) {
        loop {
            let idle = self.inner.idle.notified();
            if self.leases() == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// The right to use the guest until it is dropped or cut.
#[derive(Debug)]
pub struct Lease {
    inner: Arc<Inner>,
    cut: CancellationToken,
}

impl Lease {
    /// Resolves when the lease is taken back.
    pub async fn revoked(&self) {
        self.cut.cancelled().await;
    }

    /// A token that is cancelled when the lease is taken back.
    pub fn revocation(&self) -> CancellationToken {
        self.cut.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.inner.word.fetch_sub(LEASE, Ordering::AcqRel) / LEASE == 1 {
            self.inner.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_gives_no_lease() {
        let gate = Gate::closed();
        assert!(gate.lease().is_none());
        gate.open();
        let held = gate.lease().unwrap();
        gate.close();
        assert!(gate.lease().is_none());
        assert_eq!(gate.leases(), 1);
        drop(held);
        assert_eq!(gate.leases(), 0);
    }

    #[tokio::test]
    async fn draining_waits_for_the_last_lease() {
        let gate = Gate::closed();
        gate.open();
        let held = gate.lease().unwrap();
        gate.close();
        let drained = tokio::spawn({
            let gate = gate.clone();
            async move { gate.drained().await }
        });
        tokio::task::yield_now().await;
        assert!(!drained.is_finished());
        drop(held);
        drained.await.unwrap();
    }

    #[tokio::test]
    async fn cutting_revokes_leases_that_are_out() {
        let gate = Gate::closed();
        gate.open();
        let held = gate.lease().unwrap();
        gate.cut();
        held.revoked().await;
    }

    #[tokio::test]
    async fn a_gate_that_was_cut_opens_again_for_new_leases() {
        let gate = Gate::closed();
        gate.open();
        let old = gate.lease().unwrap();
        gate.cut();
        assert!(gate.lease().is_none());
        gate.open();
        let new = gate.lease().unwrap();
        old.revoked().await;
        assert!(!new.revocation().is_cancelled());
        gate.cut();
        new.revoked().await;
    }
}
