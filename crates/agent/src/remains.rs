//! The one place where what a capsule holds on the host goes: its VMM, its network slot, its directory.

use std::io::ErrorKind;
use std::path::Path;

use wrenn_net::Network;
use wrenn_vmm::Vmm;

use crate::config::AgentConfig;
use crate::record::Record;
use crate::recovery::{self, RecoveryError};

/// Removes everything that a record names, in the reverse of the order in which it came. What is gone already is
/// fine; after a failure the record still names what is left, and the call may be repeated.
///
/// # Errors
/// Where something does not go.
pub(crate) async fn remove(
    vmm: &dyn Vmm,
    network: &Network,
    record: &mut Record,
    dir: &Path,
) -> anyhow::Result<()> {
    if let Some(machine) = &record.machine {
        vmm.discard(machine).await?;
        record.machine = None;
    }
    if let Some(index) = record.slot {
        network.remove(index).await?;
        record.slot = None;
    }
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&dir) {
        Err(failure) if failure.kind() != ErrorKind::NotFound => Err(failure),
        _ => Ok(()),
    })
    .await??;
    Ok(())
}

/// Removes every capsule of a data directory whose agent does not run, and says how many there were. Needs neither
/// images nor a control plane.
///
/// # Errors
/// Where something does not go.
pub async fn remove_all(config: &AgentConfig) -> anyhow::Result<usize> {
    let parts = crate::Parts::open(config).await?;
    let capsules = config.capsules_dir();
    let mut records = recovery::read_records(&capsules).map_err(RecoveryError::from)?;
    recovery::sweep_vmms(parts.cgroup.as_deref(), &records).await?;
    for record in &mut records {
        let dir = capsules.join(record.spec.id.to_string());
        remove(&parts.vmm, &parts.network, record, &dir).await?;
    }
    parts.network.sweep(&std::collections::BTreeSet::new()).await?;
    parts.network.close().await?;
    if let Some(cgroup) = &parts.cgroup {
        // Made by the first capsule only.
        let _absent = std::fs::remove_dir(cgroup);
    }
    Ok(records.len())
}
