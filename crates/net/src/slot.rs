//! A slot in use.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::address::{SlotIndex, TAP_NAME};
use crate::assemble::{self, Built, Part};
use crate::dns::Forwarder;
use crate::error::{NetError, Result};
use crate::network::Shared;
use crate::{error, namespace, tap};

/// A slot that this process holds. End it with [`Slot::release`]; a slot that is only dropped stays on the
/// machine until the next [`crate::Network::sweep`].
#[derive(Debug)]
pub struct Slot {
    index: SlotIndex,
    shared: Arc<Shared>,
    /// `None` once released.
    forwarder: Option<Forwarder>,
    /// Until it is asked for.
    tap: Mutex<Option<OwnedFd>>,
}

impl Slot {
    /// One that was just built.
    pub(crate) fn new(index: SlotIndex, shared: Arc<Shared>, built: Built) -> Self {
        Self { index, shared, forwarder: Some(built.forwarder), tap: Mutex::new(Some(built.tap)) }
    }

    /// One that an earlier process has built.
    pub(crate) fn adopted(index: SlotIndex, shared: Arc<Shared>, forwarder: Forwarder) -> Self {
        Self { index, shared, forwarder: Some(forwarder), tap: Mutex::default() }
    }

    /// The slot's number, by which it can be adopted after a restart.
    pub fn index(&self) -> SlotIndex {
        self.index
    }

    /// The address at which this host reaches the guest.
    pub fn guest_addr(&self) -> Ipv4Addr {
        self.index.guest_addr()
    }

    /// Where the slot's namespace is mounted.
    pub fn netns_path(&self) -> PathBuf {
        self.index.netns_path()
    }

    /// Opens the TAP, to be handed to a VMM. It is closed on exec, and frames carry a virtio header of ten
    /// bytes. Takes no time at first; once it has been opened and closed, it may block for a second.
    ///
    /// # Errors
    /// Among others where it is open already: a TAP has one user.
    pub fn open_tap(&self) -> Result<OwnedFd> {
        if let Some(unused) = self.tap.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Ok(unused);
        }
        let object = format!("TAP {TAP_NAME} in namespace {}", self.index.name());
        namespace::run_inside(&self.netns_path(), tap::open).map_err(error::tap_refused("open", object))
    }

    /// Removes the slot from the machine. Goes on to the end even if the returned future is dropped.
    ///
    /// # Errors
    /// Where something could not be removed; the claim then stays, and the next sweep tries again. That
    /// something was gone already is no error.
    pub async fn release(mut self) -> Result<()> {
        let (index, shared, forwarder) = (self.index, Arc::clone(&self.shared), self.forwarder.take());
        let tap = std::mem::take(self.tap.get_mut().unwrap_or_else(PoisonError::into_inner));
        let removal = tokio::spawn(async move {
            // Descriptors from inside would keep the namespace alive.
            drop(tap);
            if let Some(forwarder) = forwarder {
                forwarder.stop().await;
            }
            let outcome = assemble::demolish(&shared, index, &Part::ALL).await;
            let mut ledger = shared.ledger();
            match outcome {
                Ok(()) => ledger.free(index),
                Err(_) => ledger.disown(index),
            }
            outcome
        });
        removal.await.map_err(|_| NetError::Interrupted)?
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.forwarder.is_some() {
            tracing::warn!(slot = %self.index, "slot dropped without release; the next sweep removes it");
            self.shared.ledger().disown(self.index);
        }
    }
}
