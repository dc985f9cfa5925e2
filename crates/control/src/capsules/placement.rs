//! Which host takes a new capsule. Pure.

use wrenn_core::{HostId, Shape};

use crate::store::HostLoad;

/// What is kept back on every host for the host itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reserve {
    /// MiB of memory.
    pub memory_mb: i64,
    /// MiB of disk.
    pub disk_mb: i64,
    /// CPUs, after overcommitting.
    pub cpus: f64,
}

impl Default for Reserve {
    fn default() -> Self {
        Self { memory_mb: 8192, disk_mb: 30_720, cpus: 4.0 }
    }
}

/// How many vCPUs a core is counted for.
const CPU_OVERCOMMIT: f64 = 1.5;
/// Share of its memory that a paused capsule counts.
const PAUSED_MEMORY: f64 = 0.5;
/// Share of its disk that a paused capsule counts.
const PAUSED_DISK: f64 = 2.0 / 3.0;

/// The host with the largest minimum of the free fractions of memory, CPU and disk, among those with enough free
/// memory and disk. CPU may be overcommitted, so it ranks hosts but excludes none.
pub(crate) fn choose(hosts: &[HostLoad], shape: Shape, reserve: Reserve) -> Option<HostId> {
    hosts
        .iter()
        .filter_map(|host| Some((score(host, shape, reserve)?, host.host)))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, host)| host)
}

/// `None` where the host has no room.
#[expect(clippy::cast_precision_loss, reason = "sizes of machines are far below 2^52")]
fn score(host: &HostLoad, shape: Shape, reserve: Reserve) -> Option<f64> {
    // A machine smaller than twice the reserve keeps back half of itself, else a laptop would take no capsule at all.
    let disk_mb = host.disk_gb * 1024;
    let memory = (host.memory_mb - reserve.memory_mb.min(host.memory_mb / 2)) as f64;
    let disk = (disk_mb - reserve.disk_mb.min(disk_mb / 2)) as f64;
    let cpu = host.cpu_cores as f64 * CPU_OVERCOMMIT - reserve.cpus;
    let free_memory = memory - host.used_memory_mb as f64 - host.paused_memory_mb as f64 * PAUSED_MEMORY;
    let free_disk = disk - host.used_disk_mb as f64 - host.paused_disk_mb as f64 * PAUSED_DISK;
    let free_cpu = cpu - host.used_vcpus as f64;
    if free_memory < f64::from(shape.memory_mb) || free_disk < f64::from(shape.disk_mb) {
        return None;
    }
    // A host smaller than the reserve has no CPU to share out; one is the least that makes its fraction comparable.
    Some((free_memory / memory).min(free_disk / disk).min(free_cpu / cpu.max(1.0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHAPE: Shape = Shape { vcpus: 1, memory_mb: 512, disk_mb: 5120 };

    fn host(cpu_cores: i64, memory_mb: i64, disk_gb: i64) -> HostLoad {
        HostLoad {
            host: HostId::random(),
            cpu_cores,
            memory_mb,
            disk_gb,
            used_vcpus: 0,
            used_memory_mb: 0,
            used_disk_mb: 0,
            paused_memory_mb: 0,
            paused_disk_mb: 0,
        }
    }

    fn chosen(hosts: &[HostLoad]) -> Option<HostId> {
        choose(hosts, SHAPE, Reserve::default())
    }

    #[test]
    fn nothing_fits_nowhere() {
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[host(8, 1021, 100)]), None);
        assert_eq!(chosen(&[host(8, 64_000, 9)]), None);
    }

    #[test]
    fn the_reserve_is_kept_to_the_last_mebibyte() {
        let mut exact = host(8, 24_000, 100);
        exact.used_memory_mb = 24_000 - 8192 - 512;
        assert_eq!(chosen(&[exact]), Some(exact.host));
        exact.used_memory_mb += 1;
        assert_eq!(chosen(&[exact]), None);
    }

    #[test]
    fn a_small_machine_keeps_back_half_of_itself() {
        let mut laptop = host(4, 8000, 50);
        assert_eq!(chosen(&[laptop]), Some(laptop.host));
        laptop.used_memory_mb = 3500;
        assert_eq!(chosen(&[laptop]), None);
    }

    #[test]
    fn two_cores_are_enough_because_cpu_may_be_overcommitted() {
        let small = host(2, 24_000, 200);
        assert_eq!(chosen(&[small]), Some(small.host));
    }

    #[test]
    fn the_scarcest_resource_decides() {
        let mut busy_cpu = host(16, 64_000, 1000);
        busy_cpu.used_vcpus = 18;
        let mut half_full = host(16, 64_000, 1000);
        half_full.used_memory_mb = 27_000;
        assert_eq!(chosen(&[busy_cpu, half_full]), Some(half_full.host));
    }

    #[test]
    fn paused_capsules_count_half_of_their_memory() {
        let mut paused = host(8, 24_000, 200);
        paused.used_memory_mb = 24_000 - 8192 - 1024;
        paused.paused_memory_mb = 1024;
        assert_eq!(chosen(&[paused]), Some(paused.host));
        paused.paused_memory_mb = 1026;
        assert_eq!(chosen(&[paused]), None);
    }

    proptest! {
        #[test]
        fn a_chosen_host_always_has_room(memory in 0i64..100_000, disk in 0i64..500, used in 0i64..100_000) {
            let mut one = host(4, memory, disk);
            one.used_memory_mb = used;
            if chosen(&[one]).is_some() {
                prop_assert!(memory - 8192.min(memory / 2) - used >= 512);
                prop_assert!(disk * 1024 - 30_720.min(disk * 512) >= 5120);
            }
        }
    }
}
