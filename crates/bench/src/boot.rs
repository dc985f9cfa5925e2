//! From the request for a capsule to the end of its first command, against a bare boot to the guest daemon's first
//! answer.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::Instant;
use wrenn_client::Command;
use wrenn_core::limits::DEFAULT_MEMORY_MB;

use crate::bare::Bare;
use crate::lab::Lab;
use crate::report::{Goal, Line};
use crate::stats::{Samples, Summary};

/// Alternates the two, `pairs` times after one pair to warm up.
pub(crate) async fn run(lab: &Lab, bare: &Bare, pairs: usize) -> anyhow::Result<Vec<Line>> {
    let (mut whole, mut created, mut booted, mut prepared) =
        <(Samples, Samples, Samples, Samples)>::default();
    for pair in 0..=pairs {
        let (to_running, to_end) = cold(lab).await?;
        let boot = bare.boot().await?;
        if pair > 0 {
            whole.time(to_end);
            created.time(to_running);
            booted.time(boot.booted);
            prepared.time(boot.prepared + boot.booted);
        }
    }
    let line = |name: &str, this: Summary, goal| Line {
        name: name.to_owned(),
        unit: "ms",
        this,
        bare: booted.summary(),
        goal,
    };
    Ok(vec![
        line("create and first exec: API / bare boot", whole.summary(), Goal::AtMost(1.1)),
        line("  create alone / bare boot", created.summary(), Goal::Shown),
        line("  bare boot with its slot and disk / bare boot", prepared.summary(), Goal::Shown),
    ])
}

/// Times from the request until the capsule runs, and until its first command has ended.
async fn cold(lab: &Lab) -> anyhow::Result<(Duration, Duration)> {
    let begun = Instant::now();
    let id = lab.create(DEFAULT_MEMORY_MB).await?;
    let running = begun.elapsed();
    let ran = lab.client.exec(id, &Command::new("/bin/true")).await?;
    let ended = begun.elapsed();
    ensure!(ran.exit_code == 0, "the first command failed");
    lab.destroy(id).await?;
    Ok((running, ended))
}
