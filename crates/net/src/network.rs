//! The network of one agent: takes slots, finds them again after a restart, and cleans up.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::address::{NETNS_DIR, SlotIndex, TAP_NAME};
use crate::assemble::{self, Part};
use crate::claims::{Claim, Claims};
use crate::dns::{self, Resolver};
use crate::error::{NetError, Result};
use crate::firewall::{Before, PrivateNetworks};
use crate::ledger::Ledger;
use crate::namespace::{self, Resident};
use crate::slot::Slot;
use crate::{host, links};

/// What a [`Network`] needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The stable id of this installation; slots of the same owner are ours, also those of an earlier process.
    pub owner: String,
    /// This installation's data directory. Once it is gone, any agent of the machine may remove our slots.
    pub data_dir: PathBuf,
    /// The directory of claims; the same for all agents of a machine, gone after a reboot, and on a file system
    /// that knows `O_TMPFILE` (tmpfs, as `/run` is; ext4, xfs and btrfs do too).
    pub state_dir: PathBuf,
    /// Whether guests may reach private networks (10/8, 172.16/12, 192.168/16, 100.64/10 and the like). This
    /// host, other slots and link-local addresses stay out of reach either way.
    pub allow_private: bool,
    /// Where the name servers are listed to which guests' queries go.
    pub resolv_conf: PathBuf,
}

impl NetworkConfig {
    /// The usual paths, and private networks out of reach.
    pub fn new(owner: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            owner: owner.into(),
            data_dir: data_dir.into(),
            state_dir: PathBuf::from("/run/wrenn/slots"),
            allow_private: false,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        }
    }
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// Slots that were removed.
    pub removed: Vec<SlotIndex>,
    /// Slots of this owner that stay: those to keep, and those this process holds.
    pub kept: Vec<SlotIndex>,
    /// Slots of other installations, which were not touched.
    pub foreign: Vec<SlotIndex>,
    /// Slots that could not be removed entirely; their claims stay for the next sweep.
    pub failed: Vec<(SlotIndex, NetError)>,
}

/// What the network and its slots share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) claim: Claim,
    pub(crate) claims: Claims,
    pub(crate) private: PrivateNetworks,
    pub(crate) netlink: rtnetlink::Handle,
    pub(crate) resolver: Arc<Resolver>,
    ledger: Mutex<Ledger>,
    #[cfg(test)]
    pub(crate) fail_after: Mutex<Option<assemble::Step>>,
}

impl Shared {
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the end of a step of building, where a test may want a failure.
    #[cfg_attr(not(test), expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests fail here"))]
    pub(crate) fn reached(&self, step: assemble::Step) -> Result<()> {
        #[cfg(test)]
        if *self.fail_after.lock().unwrap_or_else(PoisonError::into_inner) == Some(step) {
            return Err(NetError::Injected(format!("{step:?}")));
        }
        tracing::trace!(?step, "slot step done");
        Ok(())
    }

    fn taken(&self) -> Result<Vec<SlotIndex>> {
        self.claims.list().map_err(NetError::refused("list", "the slot claims"))
    }
}

/// The network of one agent.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    /// Tells other agents that this one lives.
    attendance: Mutex<Option<File>>,
}

impl Network {
    /// Prepares the host and connects to the kernel. Must be called inside a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// Where the process lacks the privileges, or the machine `nft` or kernel support.
    pub async fn open(config: NetworkConfig) -> Result<Self> {
        let state_dir = || config.state_dir.display().to_string();
        let claims =
            Claims::open(config.state_dir.clone()).map_err(NetError::refused("create", state_dir()))?;
        let lock = claims.lock().await.map_err(NetError::refused("lock", state_dir()))?;
        let attendance = claims.attend().map_err(NetError::refused("lock", state_dir()))?;
        namespace::prepare_dir().map_err(NetError::refused("share the mount", NETNS_DIR))?;
        host::prepare().await?;
        drop(lock);
        let taken = claims.list().map_err(NetError::refused("list", state_dir()))?;
        let private =
            if config.allow_private { PrivateNetworks::Allowed } else { PrivateNetworks::Forbidden };
        let shared = Shared {
            claim: Claim { owner: config.owner, data_dir: config.data_dir, pid: std::process::id() },
            claims,
            private,
            netlink: links::connect_apart().await.map_err(NetError::refused("open", "a netlink socket"))?,
            resolver: Arc::new(Resolver::new(config.resolv_conf)),
            ledger: Mutex::new(Ledger::new(taken)),
            #[cfg(test)]
            fail_after: Mutex::new(None),
        };
        Ok(Self { shared: Arc::new(shared), attendance: Mutex::new(Some(attendance)) })
    }

    /// Takes a free slot and builds everything in it.
    ///
    /// If the returned future is dropped, the slot is removed again in the background.
    ///
    /// # Errors
    /// Where a step was refused (what had been built is then removed), or all slots are taken.
    pub async fn acquire(&self) -> Result<Slot> {
        let shared = Arc::clone(&self.shared);
        let (deliver, delivery) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let built = acquire(&shared).await;
            if let Err(Ok(unwanted)) = deliver.send(built)
                && let Err(error) = unwanted.release().await
            {
                tracing::warn!(%error, "cannot remove a slot that nobody waited for");
            }
        });
        delivery.await.map_err(|_| NetError::Interrupted)?
    }

    /// Puts the host's firewall table back if somebody removed it, and says whether that was so. Every
    /// [`Network::acquire`] does this too; [`Network::keep_host_table`] does it for the guests that run already.
    ///
    /// # Errors
    /// Where the kernel cannot be asked, or `nft` fails.
    pub async fn restore_host_table(&self) -> Result<bool> {
        host::restore().await
    }

    /// Looks every `every` whether the host's firewall table is there, and puts it back if not, until `stop` resolves: a
    /// reload of the machine's own firewall may flush the tables of everybody. Looking is one netlink message. A look
    /// under way is finished first, so that nothing is put back after this has returned.
    pub async fn keep_host_table(&self, every: Duration, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(every) => {}
            }
            if let Err(error) = self.restore_host_table().await {
                tracing::warn!("cannot keep the firewall table inet wrenn in place, trying again: {error}");
            }
        }
    }

    /// Takes over a slot of an earlier process of this owner: checks that it is whole, writes its rules anew,
    /// and serves its DNS again.
    ///
    /// # Errors
    /// [`NetError::NotOurs`] where somebody else, or nobody, has claimed it; [`NetError::Incomplete`] where a
    /// part is gone. Nothing is removed then.
    pub async fn adopt(&self, index: SlotIndex) -> Result<Slot> {
        let shared = &self.shared;
        let claim_path = shared.claims.path(index);
        let claim =
            shared.claims.read(index).map_err(NetError::refused("read", claim_path.display().to_string()))?;
        if claim.is_none_or(|claim| claim.owner != shared.claim.owner) {
            return Err(NetError::NotOurs { index, claim: claim_path });
        }
        let forwarder = revive(shared, index).await?;
        shared.ledger().hold(index);
        Ok(Slot::adopted(index, Arc::clone(shared), forwarder))
    }

    /// Removes every slot of this owner that is neither in `keep` nor held by this process, and every slot of an
    /// owner whose data directory is gone. Touches nothing else.
    ///
    /// # Errors
    /// Where the claims cannot be listed or locked; a slot that cannot be removed is in the report instead.
    pub async fn sweep(&self, keep: &BTreeSet<SlotIndex>) -> Result<SweepReport> {
        let shared = &self.shared;
        // Two agents may find the same orphan; the second must see that its number has a new owner by now.
        let _lock = shared.claims.lock().await.map_err(NetError::refused("lock", "the slot claims"))?;
        let mut report = SweepReport::default();
        for index in shared.taken()? {
            match shared.judge(index, keep) {
                Fate::Kept => report.kept.push(index),
                Fate::Foreign => report.foreign.push(index),
                Fate::Doomed => match assemble::demolish(shared, index, &Part::ALL).await {
                    Ok(()) => {
                        shared.ledger().free(index);
                        report.removed.push(index);
                    }
                    Err(error) => report.failed.push((index, error)),
                },
            }
        }
        Ok(report)
    }

    /// Removes a slot of this owner, whole or not, that no [`Slot`] of this process holds; one that is gone, held, or
    /// somebody else's is left as it is.
    ///
    /// # Errors
    /// Where something could not be removed; the claim then stays, so that this or a sweep can be tried again.
    pub async fn remove(&self, index: SlotIndex) -> Result<()> {
        let shared = &self.shared;
        let _lock = shared.claims.lock().await.map_err(NetError::refused("lock", "the slot claims"))?;
        if shared.judge(index, &BTreeSet::new()) == Fate::Doomed {
            assemble::demolish(shared, index, &Part::ALL).await?;
            shared.ledger().free(index);
        }
        Ok(())
    }

    /// Ends this network. Slots that were not released stay, to be adopted later. The last agent of the machine
    /// removes the host's firewall table, unless slots remain, whose guests it still confines.
    ///
    /// # Errors
    /// Where the claims cannot be listed or locked, or `nft` fails.
    pub async fn close(&self) -> Result<()> {
        let claims = &self.shared.claims;
        let _lock = claims.lock().await.map_err(NetError::refused("lock", "the slot claims"))?;
        let attendance = self.attendance.lock().unwrap_or_else(PoisonError::into_inner).take();
        let is_last = attendance.as_ref().is_some_and(Claims::is_last);
        if is_last && self.shared.taken()?.is_empty() {
            host::clear().await?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn fail_after(&self, step: Option<assemble::Step>) {
        *self.shared.fail_after.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }
}

/// What a sweep does with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Foreign,
    Doomed,
}

impl Shared {
    fn judge(&self, index: SlotIndex, keep: &BTreeSet<SlotIndex>) -> Fate {
        let Ok(Some(claim)) = self.claims.read(index) else { return Fate::Foreign };
        if claim.owner == self.claim.owner {
            let wanted = keep.contains(&index) || self.ledger().is_live(index);
            return if wanted { Fate::Kept } else { Fate::Doomed };
        }
        if is_gone(&claim.data_dir) { Fate::Doomed } else { Fate::Foreign }
    }
}

/// Whether a directory certainly does not exist; one that cannot be looked at may.
fn is_gone(dir: &Path) -> bool {
    matches!(dir.try_exists(), Ok(false))
}

async fn acquire(shared: &Arc<Shared>) -> Result<Slot> {
    host::restore().await?;
    let mut refreshed = false;
    loop {
        let reserved = shared.ledger().reserve();
        let Some(index) = reserved else {
            if refreshed {
                return Err(NetError::Exhausted);
            }
            refreshed = true;
            let taken = shared.taken()?;
            shared.ledger().refresh(taken);
            continue;
        };
        match assemble::build(shared, index).await {
            Ok(built) => return Ok(Slot::new(index, Arc::clone(shared), built)),
            Err(NetError::Occupied { object, .. }) => {
                tracing::debug!(slot = %index, %object, "slot is occupied; trying the next");
                shared.ledger().disown(index);
            }
            Err(error) => {
                shared.ledger().free(index);
                return Err(error);
            }
        }
    }
}

/// Checks a slot that should be whole, and restarts what ended with the process that had built it.
async fn revive(shared: &Shared, index: SlotIndex) -> Result<dns::Forwarder> {
    let missing = |part| NetError::Incomplete { index, part };
    if !namespace::is_mounted(&index.netns_path()) {
        return Err(missing("namespace"));
    }
    let link = links::index_of(&index.name()).map_err(|_| missing("link on the host"))?;
    let resident = Resident::enter(index.netns_path())
        .await
        .map_err(NetError::refused("enter", format!("namespace {}", index.name())))?;
    resident.run(|| links::index_of(TAP_NAME)).await.map_err(|_| missing("TAP"))?;
    links::restore_host_route(&shared.netlink, index.guest_addr(), index.veth_namespace_addr(), link)
        .await
        .map_err(NetError::refused("restore", format!("route {}/32", index.guest_addr())))?;
    assemble::install_firewall(shared, index, &resident, Before::Rules).await?;
    dns::start(Arc::clone(&shared.resolver), index, &resident).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_send<T: Send>(_: &T) {}

    #[test]
    fn every_future_may_be_spawned() {
        let opening = Network::open(NetworkConfig::new("", ""));
        assert_send(&opening);
        let uses = async |network: Network, slot: Slot| {
            assert_send(&network.acquire());
            assert_send(&network.adopt(SlotIndex::MIN));
            assert_send(&network.sweep(&BTreeSet::new()));
            assert_send(&network.restore_host_table());
            assert_send(&network.close());
            assert_send(&slot.release());
        };
        // Only the types matter: nothing is polled.
        drop((opening, uses));
    }
}
