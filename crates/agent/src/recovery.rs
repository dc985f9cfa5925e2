//! What an agent does with what the one before it left: VMs that run are taken over, capsules on disk stay there, and
//! everything else is removed to the last link, file and process. It acts on its own data directory and its own network slots only.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use tracing::{error, info, warn};
use wrenn_core::CapsuleId;
use wrenn_net::{NetError, SlotIndex};
use wrenn_vmm::VmmError;

use crate::capsule::Start;
use crate::environment::Environment;
use crate::manager::Manager;
use crate::record::{Phase, Record};

/// What recovery did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Capsules that run on.
    pub adopted: usize,
    /// Capsules that are on disk.
    pub paused: usize,
    /// Capsules of which something was left to remove.
    pub removed: usize,
}

/// Why recovery could not be done.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The capsules' directory cannot be read.
    #[error("cannot read the capsules' directory: {0}")]
    Directory(#[from] io::Error),
    /// Stale network slots cannot be removed.
    #[error("cannot remove stale network slots")]
    Network(#[from] NetError),
    /// Stale VMMs cannot be ended.
    #[error("cannot end stale virtual machines")]
    Vmm(#[from] VmmError),
}

/// Takes over or removes every capsule in the data directory, then removes network slots that belong to none.
///
/// # Errors
/// See [`RecoveryError`]; a single capsule that cannot be taken over is no error, it is removed.
pub async fn recover(manager: &Manager) -> Result<Recovered, RecoveryError> {
    let records = read_records(&manager.env().config.capsules_dir())?;
    let keep: BTreeSet<SlotIndex> = records.iter().filter_map(|record| record.slot).collect();
    sweep(manager.env(), &records, &keep).await?;
    let records = leave_strangers(manager.env(), records);
    // A pause that was not committed leaves the guest whole, and at most stopped.
    let (running, others): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| matches!(record.phase, Phase::Running | Phase::Pausing));
    let mut recovered = Recovered::default();
    // First, so that they hold their slots before the others give theirs back: a capsule that was just paused may still
    // name the slot that it gave to another.
    let running = running.into_iter().map(|record| (record.spec.id, Start::Adopt(Box::new(record))));
    recovered.count(manager, running.collect()).await;
    let others = others.into_iter().map(|record| {
        let id = record.spec.id;
        let start = match record.phase {
            // A resume that was not committed has let nobody in: what it was saved in is what it is.
            Phase::Paused | Phase::Resuming => Start::Paused(Box::new(record)),
            _ => Start::Remove(Box::new(record)),
        };
        (id, start)
    });
    recovered.count(manager, others.collect()).await;
    Ok(recovered)
}

impl Recovered {
    /// Lets capsules begin, all at once, and counts what becomes of them.
    async fn count(&mut self, manager: &Manager, starts: Vec<(CapsuleId, Start)>) {
        let begin = |(id, start)| manager.insert(id, start);
        let capsules: Vec<_> = starts.into_iter().map(begin).collect();
        for capsule in capsules {
            match capsule.booted().await {
                Ok(state) if state.phase == Phase::Paused => self.paused += 1,
                Ok(_) => self.adopted += 1,
                Err(why) => {
                    self.removed += 1;
                    info!(capsule = %capsule.id(), "removed what was left of a capsule: {}", why.chain());
                }
            }
        }
    }
}

/// Leaves capsules alone whose machine runs under a driver that this host does not have at the moment: nobody could end it
/// in order, and it may be all that somebody has. The next agent that has the driver takes them over.
fn leave_strangers(env: &Environment, records: Vec<Record>) -> Vec<Record> {
    let is_known = |record: &Record| {
        let named = record.machine.as_ref().map_or(&*record.driver, |machine| &*machine.driver);
        let missing = record.machine.as_ref().and_then(|_| env.drivers.get(named).err());
        if let Some(missing) = &missing {
            error!(capsule = %record.spec.id, "a capsule is left alone: {missing}");
        }
        missing.is_none()
    };
    records.into_iter().filter(is_known).collect()
}

/// Removes VMMs and network slots of this installation that no record names.
async fn sweep(
    env: &Environment,
    records: &[Record],
    keep: &BTreeSet<SlotIndex>,
) -> Result<(), RecoveryError> {
    sweep_vmms(env.cgroup.as_deref(), records).await?;
    // After the VMMs, which had them open. One that stays costs nothing but its name, and the next start tries again.
    if let Err(error) = env.drivers.sweep(records).await {
        warn!("block devices that nobody needs are left: {}", error.chain());
    }
    let report = env.network.sweep(keep).await?;
    if !report.removed.is_empty() {
        info!("removed stale network slots: {:?}", report.removed);
    }
    for (slot, error) in report.failed {
        warn!("cannot remove network slot {slot}, trying again at the next start: {error}");
    }
    Ok(())
}

/// Ends VMMs of this installation that no record names.
pub(crate) async fn sweep_vmms(cgroup: Option<&Path>, records: &[Record]) -> Result<(), RecoveryError> {
    let Some(cgroup) = cgroup else { return Ok(()) };
    let known: BTreeSet<&str> =
        records.iter().filter_map(|record| Some(record.machine.as_ref()?.id.as_str())).collect();
    let removed = wrenn_vmm::cgroup::sweep(cgroup, |id| known.contains(id)).await?;
    if !removed.is_empty() {
        warn!("ended VMMs that no record names: {removed:?}");
    }
    Ok(())
}

/// Every readable record. Directories of capsules without one hold nothing that runs, because the record is
/// written before anything is started; they are removed. Those with a record that cannot be read stay.
pub(crate) fn read_records(dir: &Path) -> io::Result<Vec<Record>> {
    fs::create_dir_all(dir)?;
    let mut records = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<CapsuleId>().ok()) else {
            warn!("{} is not a capsule's directory and is left alone", entry.path().display());
            continue;
        };
        match Record::read(&entry.path()) {
            Ok(record) if record.spec.id == id => records.push(record),
            // A spare that was about to become that capsule: not that capsule yet, but with all that it holds.
            Ok(mut record) => {
                record.spec.id = id;
                record.phase = Phase::Stopping;
                records.push(record);
            }
            Err(why) if why.kind() != io::ErrorKind::NotFound => {
                // Perhaps of another release, perhaps damaged: what it lies in may be all that somebody has.
                error!(capsule = %id, "a capsule is left alone, for its record cannot be used: {why}");
            }
            Err(why) => {
                warn!(capsule = %id, "removing a capsule without a record: {why}");
                fs::remove_dir_all(entry.path())?;
            }
        }
    }
    Ok(records)
}
