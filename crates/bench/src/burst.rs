//! Many creates at once, against as many bare restores at once. There is no pool: both do the same work.

use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::Instant;

use crate::bare::Bare;
use crate::lab::Lab;
use crate::report::{Goal, Line};
use crate::stats::Samples;
use crate::warm::Warm;

/// Times of one side.
#[derive(Default)]
struct Times {
    /// Until the last was done.
    all: Samples,
    each: Samples,
}

impl Times {
    fn add(&mut self, all: Duration, each: &[Duration]) {
        self.all.time(all);
        each.iter().for_each(|&took| self.each.time(took));
    }
}

/// Alternates the two, `rounds` times after one round of both to warm up.
pub(crate) async fn run(
    lab: &Lab,
    bare: &Bare,
    warm: &Warm,
    count: usize,
    rounds: usize,
) -> anyhow::Result<[Line; 2]> {
    let (mut creates, mut restores) = (Times::default(), Times::default());
    let mut booted = 0;
    for round in 0..=rounds {
        let (all, each, boots) = create(lab, warm.memory_mb, count).await?;
        booted += boots;
        let (all_bare, each_bare) = restore(bare, warm, count).await?;
        if round > 0 {
            creates.add(all, &each);
            restores.add(all_bare, &each_bare);
        }
    }
    let line = |name, this: &Samples, bare: &Samples| Line {
        name,
        unit: "ms",
        this: this.summary(),
        bare: bare.summary(),
        goal: Goal::Shown,
    };
    let mut what = format!("{count} creates at once, {} MiB", warm.memory_mb);
    if booted > 0 {
        what.push_str(&format!(" ({booted} of {} were booted)", count * (rounds + 1)));
    }
    Ok([
        line(format!("{what}, until all run: API / {count} bare restores"), &creates.all, &restores.all),
        line(format!("  each of {what}: API / bare restore"), &creates.each, &restores.each),
    ])
}

/// Times of all and of each, and how many were booted in the end.
async fn create(lab: &Lab, memory_mb: u32, count: usize) -> anyhow::Result<(Duration, Vec<Duration>, usize)> {
    let begun = Instant::now();
    let one = async || {
        let id = lab.create(memory_mb).await?;
        anyhow::Ok((id, begun.elapsed()))
    };
    let created = try_join_all((0..count).map(|_| one())).await?;
    let all = begun.elapsed();
    let mut boots = 0;
    for (id, _) in &created {
        boots += usize::from(lab.record(*id)?.saved.is_none());
    }
    lab.release().await?;
    Ok((all, created.into_iter().map(|(_, took)| took).collect(), boots))
}

async fn restore(bare: &Bare, warm: &Warm, count: usize) -> anyhow::Result<(Duration, Vec<Duration>)> {
    let mut ready = Vec::new();
    for _ in 0..count {
        ready.push(bare.ready(warm).await?);
    }
    let begun = Instant::now();
    let restored = try_join_all(ready.into_iter().map(|ready| bare.restore(ready))).await?;
    let all = begun.elapsed();
    let each = restored.iter().map(|one| one.took).collect();
    for one in restored {
        bare.remove(one).await?;
    }
    Ok((all, each))
}
