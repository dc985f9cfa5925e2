//! Stops a guest before its writes find the host's disk full: a device-mapper snapshot that cannot be written is lost. A
//! machine whose disk is lost all the same is ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::api::Api;
use super::ending::Ending;
use super::types::Vm;
use crate::ExitReason;
use crate::blocks::{BlockDevices, Room};

/// Pause between two looks where there is plenty, and where there is not.
const RARELY: Duration = Duration::from_secs(1);
const OFTEN: Duration = Duration::from_millis(100);

/// Looks after the room of one machine's disk for as long as it is started and not dropped.
#[derive(Debug)]
pub(super) struct RoomKeeper {
    inner: Arc<Inner>,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Inner {
    api: Arc<Api>,
    devices: Arc<dyn BlockDevices>,
    ending: Arc<Ending>,
    owner: String,
    full: AtomicBool,
    /// The guest stands still and is being saved. Locked for as long as a look takes: taking room changes a file, and one
    /// that is saved must not change any more.
    resting: tokio::sync::Mutex<bool>,
}

impl RoomKeeper {
    pub(super) fn new(
        api: &Arc<Api>,
        devices: &Arc<dyn BlockDevices>,
        ending: &Arc<Ending>,
        owner: &str,
    ) -> Self {
        let inner = Inner {
            api: Arc::clone(api),
            devices: Arc::clone(devices),
            ending: Arc::clone(ending),
            owner: owner.to_owned(),
            full: AtomicBool::new(false),
            resting: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner), task: Mutex::default() }
    }

    pub(super) fn start(&self) {
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move {
            loop {
                let resting = inner.resting.lock().await;
                let pause = if *resting { OFTEN } else { inner.look().await };
                drop(resting);
                tokio::time::sleep(pause).await;
            }
        });
        self.replace(Some(task));
    }

    /// Leaves the disk's files alone from now on.
    pub(super) async fn rest(&self) {
        *self.inner.resting.lock().await = true;
    }

    pub(super) fn stop(&self) {
        self.replace(None);
    }

    /// Looks after the disk's files again. As long as what comes back lives, nobody else looks: whoever lets the guest go
    /// on must not do so just after it was stopped for want of room. It tells whether there is none.
    pub(super) async fn resume(&self) -> (tokio::sync::MutexGuard<'_, bool>, bool) {
        let mut resting = self.inner.resting.lock().await;
        *resting = false;
        if self.was_full() {
            self.inner.look().await;
        }
        (resting, self.was_full())
    }

    /// Whether the guest was stopped because there is no room.
    pub(super) fn was_full(&self) -> bool {
        self.inner.full.load(Ordering::SeqCst)
    }

    fn replace(&self, task: Option<JoinHandle<()>>) {
        let old = std::mem::replace(&mut *self.task.lock().unwrap_or_else(PoisonError::into_inner), task);
        if let Some(old) = old {
            old.abort();
        }
    }
}

impl Inner {
    /// Takes room or stops the guest; says when to look again.
    async fn look(&self) -> Duration {
        match self.devices.keep_room(&self.owner, &self.api.beside("..")).await {
            Ok(Room::Plenty) => {
                self.full.store(false, Ordering::SeqCst);
                RARELY
            }
            Ok(Room::Enough) => {
                self.full.store(false, Ordering::SeqCst);
                OFTEN
            }
            Ok(Room::Full) => {
                self.full.store(true, Ordering::SeqCst);
                // Also one that stands still by all that is known: it does no harm.
                if let Err(error) = self.api.patch("/vm", &Vm { state: "Paused" }).await {
                    tracing::warn!(id = self.owner, %error, "a guest was not stopped before a full disk");
                }
                OFTEN
            }
            Ok(Room::Lost) => {
                self.ending.end(ExitReason::DiskLost);
                RARELY
            }
            Err(error) => {
                tracing::warn!(id = self.owner, %error, "the room of a disk is not known");
                RARELY
            }
        }
    }
}

impl Drop for RoomKeeper {
    fn drop(&mut self) {
        self.stop();
    }
}
