//! The one place where what a capsule holds on the host goes: its VMM, its network slot, its directory.

use std::path::Path;

use wrenn_net::Network;

use crate::config::AgentConfig;
use crate::drivers::Drivers;
use crate::files;
use crate::record::Record;
use crate::recovery::{self, RecoveryError};

/// Gives back what a record names but for files, in the reverse of the order in which it came. What is gone already is
/// fine; after a failure the record still names what is left, and the call may be repeated.
///
/// # Errors
/// Where something does not go.
pub(crate) async fn let_go(drivers: &Drivers, network: &Network, record: &mut Record) -> anyhow::Result<()> {
    if let Some(machine) = &record.machine {
        drivers.get(&machine.driver)?.vmm.discard(machine).await?;
        record.machine = None;
    }
    if let Some(index) = record.slot {
        network.remove(index).await?;
        record.slot = None;
    }
    Ok(())
}

/// Removes a capsule's directory; one that is gone already is fine.
///
/// # Errors
/// Where something does not go.
pub(crate) async fn remove_directory(dir: &Path) -> anyhow::Result<()> {
    let dir = dir.to_owned();
    Ok(crate::blocking(move || files::remove_directory(&dir)).await?)
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
    // Before anything goes.
    for machine in records.iter().filter_map(|record| record.machine.as_ref()) {
        parts.drivers.get(&machine.driver)?;
    }
    recovery::sweep_vmms(parts.cgroup.as_deref(), &records).await?;
    for record in &mut records {
        let dir = capsules.join(record.spec.id.to_string());
        let_go(&parts.drivers, &parts.network, record).await?;
        remove_directory(&dir).await?;
    }
    parts.drivers.sweep(&[]).await?;
    parts.network.sweep(&std::collections::BTreeSet::new()).await?;
    parts.network.close().await?;
    if let Some(cgroup) = &parts.cgroup {
        // Made by the first capsule only.
        let _absent = std::fs::remove_dir(cgroup);
    }
    Ok(records.len())
}
