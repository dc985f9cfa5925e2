//! `GET /metrics`: what the guest uses now.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use wrenn_protocol::guest::GuestMetrics;

/// Counters of the call before, from which shares are computed.
static PREVIOUS: Mutex<CpuTimes> = Mutex::new(CpuTimes { busy: 0, total: 0 });

/// Ticks since boot, over all CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CpuTimes {
    busy: u64,
    total: u64,
}

/// Answers with figures read this moment.
pub(super) async fn metrics() -> Json<GuestMetrics> {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name| meminfo(&memory, name);
    let (disk_used, disk_total) = disk();
    Json(GuestMetrics {
        ts: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)),
        cpu_count: u32::try_from(stat.lines().filter(|line| is_one_cpu(line)).count()).unwrap_or(u32::MAX),
        cpu_used_pct: cpu_used(&stat),
        mem_total: field("MemTotal"),
        mem_used: field("MemTotal").saturating_sub(field("MemAvailable")),
        mem_cache: field("Cached"),
        disk_used,
        disk_total,
    })
}

fn is_one_cpu(line: &str) -> bool {
    line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn cpu_used(stat: &str) -> f64 {
    let Some(now) = cpu_times(stat) else { return 0.0 };
    let mut previous = PREVIOUS.lock().unwrap_or_else(PoisonError::into_inner);
    let share = share(*previous, now);
    *previous = now;
    share
}

#[expect(clippy::cast_precision_loss, reason = "ticks of a few seconds are far below 2^52")]
fn share(before: CpuTimes, now: CpuTimes) -> f64 {
    let total = now.total.saturating_sub(before.total);
    if total == 0 {
        return 0.0;
    }
    let busy = now.busy.saturating_sub(before.busy);
    (busy as f64 / total as f64 * 100.0).clamp(0.0, 100.0)
}

/// The first line: user nice system idle iowait irq softirq steal …; guest times are contained in user and nice.
fn cpu_times(stat: &str) -> Option<CpuTimes> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).filter_map(|n| n.parse().ok()).collect();
    let total = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Some(CpuTimes { busy: total - idle, total })
}

/// A field of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .find_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Used and total bytes of the root file system.
fn disk() -> (u64, u64) {
    match rustix::fs::statvfs("/") {
        Ok(fs) => ((fs.f_blocks - fs.f_bfree) * fs.f_frsize, fs.f_blocks * fs.f_frsize),
        Err(_) => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_kernels_texts() {
        let stat = "cpu  10 0 20 60 10 0 0 0 0 0\ncpu0 1 2\ncpu1 1 2\nintr 5\n";
        assert_eq!(cpu_times(stat), Some(CpuTimes { busy: 30, total: 100 }));
        assert_eq!(stat.lines().filter(|l| is_one_cpu(l)).count(), 2);
        let memory = "MemTotal:  100 kB\nMemAvailable: 40 kB\nCached: 7 kB\n";
        assert_eq!((meminfo(memory, "MemTotal"), meminfo(memory, "Cached")), (102_400, 7168));
    }

    #[test]
    fn the_share_is_that_of_the_time_since_the_call_before() {
        let before = CpuTimes { busy: 30, total: 100 };
        assert!((share(before, CpuTimes { busy: 80, total: 200 }) - 50.0).abs() < 1e-9);
        assert!(share(before, before).abs() < 1e-9);
    }
}
