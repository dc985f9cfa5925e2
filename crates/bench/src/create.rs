//! Capsules from warm templates: made of one, and resumed, against a bare restore. Without the pool both sides start a
//! VMM; with it, a create finds a machine that was restored ahead of time, and a resume finds a VMM that was started.

use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;
use wrenn_client::CapsuleId;

use crate::bare::Bare;
use crate::exec::through_api;
use crate::lab::Lab;
use crate::log::Log;
use crate::pairs;
use crate::report::{Goal, Line};
use crate::warm::Warm;

/// How the agent says that a machine waits.
const WAITS: &str = "is ready";
/// So long after the last one no more will be made, once some were; and where nobody knows whether any will be.
const SETTLED: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_secs(5);
/// Attempts at finding the pool full.
const ATTEMPTS: usize = 3;
/// Creates in which the pool must have learnt what is asked for.
const LESSONS: usize = 8;
/// Written by a guest before it is paused.
const DIRT: &str = "head -c 4M /dev/urandom > /dev/shm/dirt";
/// Goals: a VMM's start and all else that a restore takes; and where the pool has done most of that already.
const WHOLE: Goal = Goal::AtMost(1.15);
const POOLED: Goal = Goal::AtMost(0.5);

/// What a capsule comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A machine of its own.
    Own,
    /// One of the pool.
    Pool,
}

/// Creates without a pool.
pub(crate) async fn creates(lab: &Lab, bare: &Bare, warm: &Warm, pairs: usize) -> anyhow::Result<Line> {
    let create = async || insist(lab, async || create(lab, warm.memory_mb, Origin::Own).await).await;
    measure("create", bare, warm, pairs, create, WHOLE).await
}

/// Resumes without a pool.
pub(crate) async fn resumes(lab: &Lab, bare: &Bare, warm: &Warm, pairs: usize) -> anyhow::Result<Line> {
    let resume = async || insist(lab, async || resume(lab, warm.memory_mb, Origin::Own).await).await;
    measure("resume", bare, warm, pairs, resume, WHOLE).await
}

/// Both with a pool that is full before each.
pub(crate) async fn pooled(lab: &Lab, bare: &Bare, warm: &Warm, pairs: usize) -> anyhow::Result<[Line; 3]> {
    teach(lab, warm.memory_mb).await?;
    let create = async || insist(lab, async || create(lab, warm.memory_mb, Origin::Pool).await).await;
    let creates = measure("create with the pool", bare, warm, pairs, create, POOLED).await?;
    let used = async || insist(lab, async || create_and_use(lab, warm.memory_mb, Origin::Pool).await).await;
    let uses = measure("  create with the pool and first exec", bare, warm, pairs, used, Goal::Shown).await?;
    let resume = async || insist(lab, async || resume(lab, warm.memory_mb, Origin::Pool).await).await;
    let resumes = measure("resume with the pool", bare, warm, pairs, resume, POOLED).await?;
    Ok([creates, uses, resumes])
}

async fn measure(
    what: &str,
    bare: &Bare,
    warm: &Warm,
    pairs: usize,
    this: impl AsyncFn() -> anyhow::Result<Duration>,
    goal: Goal,
) -> anyhow::Result<Line> {
    let (this, bare) = pairs::run(pairs, this, async || bare.time_restore(warm).await).await?;
    Ok(Line {
        name: format!("{what}, {} MiB: API / bare restore", warm.memory_mb),
        unit: "ms",
        this: this.summary(),
        bare: bare.summary(),
        goal,
    })
}

/// The time of the first attempt that came from where it should: a pool that is still being filled gives nothing.
async fn insist(
    lab: &Lab,
    attempt: impl AsyncFn() -> anyhow::Result<Option<Duration>>,
) -> anyhow::Result<Duration> {
    for _ in 0..ATTEMPTS {
        if let Some(took) = attempt().await? {
            return Ok(took);
        }
        eprintln!("  a capsule did not come from where it should, and is not counted");
        quiet(lab, QUIET).await?;
    }
    bail!("capsules do not come from where they should")
}

async fn create(lab: &Lab, memory_mb: u32, from: Origin) -> anyhow::Result<Option<Duration>> {
    created(lab, memory_mb, from, async |_| Ok(())).await
}

async fn create_and_use(lab: &Lab, memory_mb: u32, from: Origin) -> anyhow::Result<Option<Duration>> {
    created(lab, memory_mb, from, async |id| through_api(lab, id).await).await
}

/// Creates a capsule and does something with it, which counts.
async fn created(
    lab: &Lab,
    memory_mb: u32,
    from: Origin,
    used: impl AsyncFn(CapsuleId) -> anyhow::Result<()>,
) -> anyhow::Result<Option<Duration>> {
    let log = lab.log()?;
    let begun = Instant::now();
    let id = lab.create(memory_mb).await?;
    used(id).await?;
    let took = begun.elapsed();
    let as_wanted = came_from(lab, id, from, &log).await?;
    lab.destroy(id).await?;
    Ok(as_wanted.then_some(took))
}

async fn resume(lab: &Lab, memory_mb: u32, from: Origin) -> anyhow::Result<Option<Duration>> {
    let log = lab.log()?;
    let id = lab.create(memory_mb).await?;
    came_from(lab, id, from, &log).await?;
    lab.shell(id, DIRT).await?;
    lab.pause(id).await?;
    let log = lab.log()?;
    let begun = Instant::now();
    lab.resume(id).await?;
    let took = begun.elapsed();
    let as_wanted = came_from(lab, id, from, &log).await?;
    lab.destroy(id).await?;
    Ok(as_wanted.then_some(took))
}

/// Whether a capsule that was just made or resumed came from there. Then what it took out of the pool is there again when
/// this returns; `log` is from before.
async fn came_from(lab: &Lab, id: CapsuleId, from: Origin, log: &Log) -> anyhow::Result<bool> {
    let as_wanted = origin(lab, id)? == from;
    if as_wanted && from == Origin::Pool {
        log.wait(WAITS, None).await?;
        quiet(lab, SETTLED).await?;
    }
    Ok(as_wanted)
}

/// A VMM of the pool has the name that it got before the capsule had it.
fn origin(lab: &Lab, id: CapsuleId) -> anyhow::Result<Origin> {
    let waited = lab.record(id)?.machine.is_some_and(|machine| machine.id != id.to_string());
    Ok(if waited { Origin::Pool } else { Origin::Own })
}

/// Creates capsules until the pool expects no others, and is full.
async fn teach(lab: &Lab, memory_mb: u32) -> anyhow::Result<()> {
    let mut in_a_row = 0;
    for _ in 0..LESSONS {
        quiet(lab, QUIET).await?;
        let id = lab.create(memory_mb).await?;
        in_a_row = if origin(lab, id)? == Origin::Pool { in_a_row + 1 } else { 0 };
        lab.destroy(id).await?;
        if in_a_row == 2 {
            return quiet(lab, QUIET).await;
        }
    }
    bail!("the pool keeps no machines of {memory_mb} MiB")
}

/// Waits until the pool has made no machine for so long.
async fn quiet(lab: &Lab, period: Duration) -> anyhow::Result<()> {
    loop {
        let log = lab.log()?;
        tokio::time::sleep(period).await;
        if log.lines(WAITS)?.is_empty() {
            return Ok(());
        }
    }
}
