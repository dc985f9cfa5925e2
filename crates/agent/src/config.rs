//! What an agent is told at its start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use wrenn_vmm::AcceleratorChoice;
use wrenn_vmm::firecracker::Restore;
use wrenn_vmm::pager::PagerProgram;

use crate::drivers::DriverChoice;

/// Configuration of a host agent. The command line fills it; nothing here reads the environment.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The data directory (`WRENN_DIR`).
    pub dir: PathBuf,
    /// Where the mutual-TLS listener binds.
    pub listen: SocketAddr,
    /// Address (`ip:port`) that the control plane is told to use.
    pub advertise: SocketAddr,
    /// Base URL of the control plane, for registration and renewal.
    pub control_url: String,
    /// A one-use registration token; needed only until the host has credentials.
    pub registration_token: Option<String>,
    /// What should execute the guests' instructions.
    pub accelerator: AcceleratorChoice,
    /// Which driver new capsules get.
    pub driver: DriverChoice,
    /// The Firecracker to use; one of that name in `PATH` where absent.
    pub firecracker: Option<PathBuf>,
    /// How Firecracker gets the memory of a snapshot.
    pub restore: Restore,
    /// Starts the process that serves a Firecracker its memory.
    pub pager: PagerProgram,
    /// Bytes a second that a guest may send, where its driver can keep it to that; `None` for any number.
    pub egress_bytes_per_second: Option<u64>,
    /// Whether guests may reach private address ranges.
    pub allow_private_networks: bool,
    /// First of the 32768 user ids under which VMMs run, one for each network slot.
    pub uid_base: u32,
    /// How long a guest may take from power-on to its daemon's first answer.
    pub boot_timeout: Duration,
    /// MiB of disk that warm templates may take; 0 for none.
    pub warm_mb: u64,
    /// Machines that are kept ready for the next creates; 0 for none. Each takes memory as a small capsule does.
    pub pool_size: u32,
    /// Directory of base images shared with other installations on the machine.
    pub image_cache: Option<PathBuf>,
    /// Mirror from which the base image is made.
    pub debian_mirror: Option<String>,
}

impl AgentConfig {
    /// Where capsules live, one directory each.
    pub fn capsules_dir(&self) -> PathBuf {
        self.dir.join("capsules")
    }

    /// Where templates live: `<team id>/<template id>`.
    pub fn templates_dir(&self) -> PathBuf {
        self.dir.join("templates")
    }

    /// Where the host keeps its credentials.
    pub fn credentials_dir(&self) -> PathBuf {
        self.dir.join("agent")
    }
}
