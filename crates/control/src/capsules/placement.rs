//! Which host takes a capsule, and whether one that is settled takes it. Pure.

use wrenn_core::{HostId, Shape};

use crate::store::{HostLoad, HostStatus};

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

/// Why a capsule gets no room. Worded to follow the name of what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub(crate) enum Lack {
    #[error("no online host has room for this capsule; try a smaller one")]
    NoHost,
    #[error("the only host that has it is {0}")]
    Away(&'static str),
    #[error("the only host that has it lacks {0} MiB of memory; pause or destroy capsules there")]
    Memory(u64),
    #[error("the only host that has it lacks {0} MiB of disk; destroy capsules there")]
    Disk(u64),
}

/// What a host has left for capsules, in MiB and vCPUs; negative where it has too many, and what of it there is in all.
struct Room {
    memory: f64,
    disk: f64,
    cpu: f64,
    all_memory: f64,
    all_disk: f64,
    all_cpu: f64,
}

#[expect(clippy::cast_precision_loss, reason = "sizes of machines are far below 2^52")]
fn room(host: &HostLoad, reserve: Reserve) -> Room {
    // A machine smaller than twice the reserve keeps back half of itself, else a laptop would take no capsule at all.
    let disk_mb = host.disk_gb * 1024;
    let all_memory = (host.memory_mb - reserve.memory_mb.min(host.memory_mb / 2)) as f64;
    let all_disk = (disk_mb - reserve.disk_mb.min(disk_mb / 2)) as f64;
    let all_cpu = host.cpu_cores as f64 * CPU_OVERCOMMIT - reserve.cpus;
    Room {
        memory: all_memory - host.used_memory_mb as f64 - host.paused_memory_mb as f64 * PAUSED_MEMORY,
        disk: all_disk - host.used_disk_mb as f64 - host.paused_disk_mb as f64 * PAUSED_DISK,
        cpu: all_cpu - host.used_vcpus as f64,
        all_memory,
        all_disk,
        all_cpu,
    }
}

/// The host with the largest minimum of the free fractions of memory, CPU and disk, among those with enough free
/// memory and disk. CPU may be overcommitted, so it ranks hosts but excludes none.
pub(crate) fn choose(hosts: &[HostLoad], shape: Shape, reserve: Reserve) -> Result<HostId, Lack> {
    hosts
        .iter()
        .filter_map(|host| Some((score(&room(host, reserve), shape)?, host.host)))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, host)| host)
        .ok_or(Lack::NoHost)
}

/// `None` where the host has no room.
fn score(room: &Room, shape: Shape) -> Option<f64> {
    lack(room, shape).is_ok().then(|| {
        // A host smaller than the reserve has no CPU to share out; one is the least that makes its fraction comparable.
        let cpu = room.cpu / room.all_cpu.max(1.0);
        (room.memory / room.all_memory).min(room.disk / room.all_disk).min(cpu)
    })
}

fn lack(room: &Room, shape: Shape) -> Result<(), Lack> {
    let missing = |has: f64, wanted: u32| Some((f64::from(wanted) - has).ceil()).filter(|lacks| *lacks > 0.0);
    match (missing(room.memory, shape.memory_mb), missing(room.disk, shape.disk_mb)) {
        (Some(lacks), _) => Err(Lack::Memory(whole(lacks))),
        (None, Some(lacks)) => Err(Lack::Disk(whole(lacks))),
        (None, None) => Ok(()),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and far below 2^52")]
fn whole(mib: f64) -> u64 {
    mib as u64
}

/// `host`, where it is among the online `hosts` and has room: what is made from files that only one host has goes there.
pub(crate) fn choose_one(
    hosts: &[HostLoad],
    host: HostId,
    shape: Shape,
    reserve: Reserve,
) -> Result<HostId, Lack> {
    let load = hosts.iter().find(|load| load.host == host).ok_or(Lack::Away("offline"))?;
    lack(&room(load, reserve), shape).map(|()| host)
}

/// Whether a host takes copies of the capsule that it runs; `shape` is that of all of them together.
pub(crate) fn admit_copies(
    status: HostStatus,
    load: &HostLoad,
    shape: Shape,
    reserve: Reserve,
) -> Result<(), Lack> {
    match status {
        HostStatus::Online => lack(&room(load, reserve), shape),
        other => Err(Lack::Away(other.as_str())),
    }
}

/// Whether a host can go on with a capsule that `load` counts as running by now. A host that takes nothing new still
/// serves what it has.
pub(crate) fn admit_resumed(status: HostStatus, load: &HostLoad, reserve: Reserve) -> Result<(), Lack> {
    match status {
        HostStatus::Online | HostStatus::Draining => {
            let room = Room { disk: 0.0, ..room(load, reserve) };
            lack(&room, Shape { vcpus: 0, memory_mb: 0, disk_mb: 0 })
        }
        other => Err(Lack::Away(other.as_str())),
    }
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
        choose(hosts, SHAPE, Reserve::default()).ok()
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

    #[test]
    fn a_lack_is_told_to_the_mebibyte() {
        let mut full = host(8, 24_000, 100);
        full.used_memory_mb = 24_000 - 8192 - 500;
        let chosen = |load: HostLoad| choose_one(&[load], load.host, SHAPE, Reserve::default());
        assert_eq!(chosen(full), Err(Lack::Memory(12)));
        full.used_memory_mb -= 12;
        assert_eq!(chosen(full), Ok(full.host));
        full.used_disk_mb = 100 * 1024 - 30_720 - 5000;
        assert_eq!(chosen(full), Err(Lack::Disk(120)));
        let elsewhere = choose_one(&[full], HostId::random(), SHAPE, Reserve::default());
        assert_eq!(elsewhere, Err(Lack::Away("offline")));
    }

    #[test]
    fn a_capsule_is_resumed_where_memory_suffices_whatever_the_disk() {
        let mut load = host(8, 24_000, 1);
        load.used_memory_mb = 24_000 - 8192;
        load.used_disk_mb = 9000;
        let admitted = |status, load: HostLoad| admit_resumed(status, &load, Reserve::default());
        for serves in [HostStatus::Online, HostStatus::Draining] {
            assert_eq!(admitted(serves, load), Ok(()));
        }
        for away in [HostStatus::Offline, HostStatus::Pending, HostStatus::Unreachable] {
            assert_eq!(admitted(away, load), Err(Lack::Away(away.as_str())));
        }
        load.used_memory_mb += 1;
        assert_eq!(admitted(HostStatus::Online, load), Err(Lack::Memory(1)));
    }

    #[test]
    fn a_draining_host_takes_no_copies() {
        let load = host(8, 24_000, 100);
        let admitted = |status| admit_copies(status, &load, SHAPE, Reserve::default());
        assert_eq!(admitted(HostStatus::Online), Ok(()));
        assert_eq!(admitted(HostStatus::Draining), Err(Lack::Away("draining")));
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
