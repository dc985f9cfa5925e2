//! What this machine has.

use std::path::Path;

use wrenn_vmm::Accelerator;

/// Version of the agent, as told to the control plane.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A machine's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// CPUs that the process may use.
    pub cpu_cores: u32,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Size of the data directory's file system in GiB.
    pub disk_gb: u64,
}

impl Capacity {
    /// Reads the machine's size; what cannot be read is 0.
    pub fn read(dir: &Path) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let disk = rustix::fs::statvfs(dir).map_or(0, |fs| fs.f_blocks * fs.f_frsize);
        Self {
            cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
            memory_mb: memory_kib() / 1024,
            disk_gb: disk / (1 << 30),
        }
    }
}

/// What executes guests' instructions, as precisely as a device state depends on it: emulation is the same everywhere,
/// a real CPU is not.
pub fn cpu(accelerator: Accelerator) -> String {
    if accelerator == Accelerator::Tcg {
        return accelerator.to_string();
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(": ")).map_or("?", |(_, value)| value)
    };
    let fields = ["vendor_id", "cpu family", "model", "stepping", "microcode"].map(field);
    format!("{accelerator} on {}", fields.join("/"))
}

fn memory_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_size() {
        let capacity = Capacity::read(Path::new("/"));
        assert!(capacity.cpu_cores > 0 && capacity.memory_mb > 0 && capacity.disk_gb > 0, "{capacity:?}");
    }
}
