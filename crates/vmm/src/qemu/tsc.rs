//! The rate of the guest's time stamp counter under emulation, which is that of the host's.
//!
//! The guest would calibrate its counter against a timer that the host emulates, and on a crowded host the attempt
//! fails; the kernel then waits for ever for a tick that it cannot count. So it is told the rate instead, measured once.

use std::time::Duration;

/// Long enough that the jitter of two clock reads is a few parts in a million.
const SPAN: Duration = Duration::from_millis(50);

/// The counter's rate in kHz; `None` on a CPU without one.
pub(super) async fn measure() -> Option<u64> {
    let (first_ticks, first_time) = sample()?;
    tokio::time::sleep(SPAN).await;
    let (last_ticks, last_time) = sample()?;
    let nanos = last_time.duration_since(first_time).as_nanos();
    let khz = u128::from(last_ticks.checked_sub(first_ticks)?) * 1_000_000 / nanos.max(1);
    u64::try_from(khz).ok().filter(|khz| *khz > 0)
}

/// The counter and the clock at one moment: of several readings, the one whose two counter reads lie closest.
#[cfg(target_arch = "x86_64")]
fn sample() -> Option<(u64, std::time::Instant)> {
    let readings = (0..16).map(|_| {
        // SAFETY: every x86-64 CPU has this instruction, and it touches no memory.
        let before = unsafe { core::arch::x86_64::_rdtsc() };
        let time = std::time::Instant::now();
        // SAFETY: as above.
        let after = unsafe { core::arch::x86_64::_rdtsc() };
        (after.wrapping_sub(before), before.wrapping_add(after.wrapping_sub(before) / 2), time)
    });
    readings.min_by_key(|(gap, ..)| *gap).map(|(_, ticks, time)| (ticks, time))
}

#[cfg(not(target_arch = "x86_64"))]
fn sample() -> Option<(u64, std::time::Instant)> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #[tokio::test]
    async fn two_measurements_agree() {
        let first = super::measure().await.unwrap();
        let second = super::measure().await.unwrap();
        assert!(first.abs_diff(second) * 1000 < first, "{first} and {second} kHz");
    }
}
