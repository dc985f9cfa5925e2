//! What an idle capsule costs the agent in memory.
//!
//! The proportional set size is what the agent's end would free: private pages whole, shared ones by share.

use std::time::Duration;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use wrenn_core::limits::MIN_MEMORY_MB;

use crate::lab::Lab;
use crate::report::{Goal, Line};
use crate::stats::{Samples, Summary};

/// After which nothing that a create or a restore set off goes on.
pub(crate) const SETTLE: Duration = Duration::from_secs(10);
const SAMPLES: usize = 20;
const PAUSE: Duration = Duration::from_millis(250);
/// Capsules that boot at a time.
const AT_A_TIME: usize = 2;

/// Measures the agent without capsules and with `count` of them.
pub(crate) async fn run(lab: &Lab, count: u32) -> anyhow::Result<Vec<Line>> {
    let agent = lab.agent_pid()?;
    // What the first capsules load once and for all is no cost of the next ones.
    create(lab, AT_A_TIME).await?;
    lab.release().await?;
    tokio::time::sleep(SETTLE).await;
    let without = watch(agent).await?;
    create(lab, usize::try_from(count)?).await?;
    tokio::time::sleep(SETTLE).await;
    let with = watch(agent).await?;
    lab.release().await?;
    let base = without.percentile(50);
    let each = |percent| (with.percentile(percent) - base) / f64::from(count);
    let line = |name: String, this, bare, goal| Line { name, unit: "MiB", this, bare, goal };
    let allowed = Summary { p50: 1.0, p99: 1.0, count: 1 };
    Ok(vec![
        line(
            "agent memory of an idle capsule / 1 MiB".to_owned(),
            Summary { p50: each(50), p99: each(99), count: with.len() },
            allowed,
            Goal::AtMost(1.0),
        ),
        line(
            format!("  agent with {count} idle capsules / with none"),
            with.summary(),
            without.summary(),
            Goal::Shown,
        ),
    ])
}

async fn create(lab: &Lab, count: usize) -> anyhow::Result<()> {
    let created = stream::iter(0..count).map(|_| lab.create(MIN_MEMORY_MB)).buffer_unordered(AT_A_TIME);
    created.try_for_each(async |_| Ok(())).await
}

/// Reads the proportional set size of a process a few times, in MiB.
pub(crate) async fn watch(pid: u32) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    for _ in 0..SAMPLES {
        samples.number(resident_mib(pid)?);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(samples)
}

/// The proportional set size of a process in MiB.
pub(crate) fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse(&text).with_context(|| format!("{path} names no Pss"))
}

fn parse(rollup: &str) -> Option<f64> {
    let value = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u32 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(f64::from(kib) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_and_not_a_part_of_it_is_read() {
        let text = "Rss: 5000 kB\nPss:                2048 kB\nPss_Anon:  1 kB\n";
        assert_eq!(parse(text), Some(2.0));
        assert_eq!(parse("Pss_Anon: 1 kB\n"), None);
        assert!(resident_mib(std::process::id()).unwrap() > 0.1);
    }
}
