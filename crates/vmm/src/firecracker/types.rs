//! The bodies of Firecracker's requests, named as in its own description.

use serde::{Deserialize, Serialize};

/// The one drive.
pub(super) const DRIVE: &str = "root";
/// The one network interface.
pub(super) const INTERFACE: &str = "eth0";

#[derive(Debug, Serialize)]
pub(super) struct MachineConfiguration {
    pub(super) vcpu_count: u32,
    pub(super) mem_size_mib: u32,
    pub(super) smt: bool,
    pub(super) track_dirty_pages: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct BootSource<'a> {
    pub(super) kernel_image_path: &'a str,
    pub(super) initrd_path: &'a str,
    pub(super) boot_args: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct Drive<'a> {
    pub(super) drive_id: &'a str,
    pub(super) path_on_host: &'a str,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
    pub(super) cache_type: &'a str,
    pub(super) io_engine: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct PartialDrive<'a> {
    pub(super) drive_id: &'a str,
    pub(super) path_on_host: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct NetworkInterface<'a> {
    pub(super) iface_id: &'a str,
    pub(super) host_dev_name: &'a str,
    pub(super) guest_mac: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tx_rate_limiter: Option<RateLimiter>,
}

#[derive(Debug, Serialize)]
pub(super) struct PartialNetworkInterface<'a> {
    pub(super) iface_id: &'a str,
    pub(super) tx_rate_limiter: RateLimiter,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub(super) struct RateLimiter {
    pub(super) bandwidth: TokenBucket,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub(super) struct TokenBucket {
    /// Bytes.
    pub(super) size: u64,
    /// Milliseconds.
    pub(super) refill_time: u64,
}

impl RateLimiter {
    /// So many bytes a second; none is what lifts a limit.
    pub(super) fn of(bytes_per_second: Option<u64>) -> Self {
        let bandwidth = match bytes_per_second {
            Some(size) => TokenBucket { size, refill_time: 1000 },
            None => TokenBucket { size: 0, refill_time: 0 },
        };
        Self { bandwidth }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct MmdsConfig<'a> {
    pub(super) version: &'a str,
    pub(super) network_interfaces: &'a [&'a str],
}

#[derive(Debug, Serialize)]
pub(super) struct Action<'a> {
    pub(super) action_type: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct Vm<'a> {
    pub(super) state: &'a str,
}

#[derive(Debug, Deserialize)]
pub(super) struct InstanceInfo {
    pub(super) state: String,
    pub(super) vmm_version: String,
}

#[derive(Debug, Serialize)]
pub(super) struct SnapshotCreate<'a> {
    pub(super) snapshot_type: &'a str,
    pub(super) snapshot_path: &'a str,
    pub(super) mem_file_path: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct SnapshotLoad<'a> {
    pub(super) snapshot_path: &'a str,
    pub(super) mem_backend: MemoryBackend<'a>,
    pub(super) track_dirty_pages: bool,
    pub(super) resume_vm: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct MemoryBackend<'a> {
    pub(super) backend_type: &'a str,
    pub(super) backend_path: &'a str,
}
