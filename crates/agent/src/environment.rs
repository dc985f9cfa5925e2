//! What all capsules of an agent share.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wrenn_net::Network;

use crate::config::AgentConfig;
use crate::drivers::Drivers;
use crate::images::KernelImage;
use crate::staging::Staging;
use crate::templates::Templates;
use crate::warm::Warm;

/// The host's parts, each behind the room that knows it.
pub struct Environment {
    /// What the agent was told at its start.
    pub config: AgentConfig,
    /// Network slots.
    pub network: Network,
    /// Virtual machines and their root disks.
    pub drivers: Drivers,
    /// cgroup in which each VMM gets its own, where the host has the hierarchy.
    pub cgroup: Option<PathBuf>,
    /// The templates on this host.
    pub templates: Templates,
    /// Where templates and forks are made.
    pub staging: Staging,
    /// Kernel and initramfs that every guest boots with.
    pub kernel: KernelImage,
    /// Warm templates and spare machines.
    pub warm: Arc<Warm>,
    /// Everything that owns a machine, for as long as it does.
    pub tasks: TaskTracker,
    /// Cancelled when the agent ends and leaves its VMs to the next one.
    pub detach: CancellationToken,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("config", &self.config).finish_non_exhaustive()
    }
}
