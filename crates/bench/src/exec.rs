//! The round trip of a command through the public API, against the same call made straight to the guest daemon.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::Instant;
use wrenn_agent::endpoint::Processes;
use wrenn_client::{CapsuleId, Command};

use crate::lab::{Lab, Subject};
use crate::report::{Goal, Line};
use crate::stats::Samples;

const PROGRAM: &str = "/bin/true";
const WARM_UP: usize = 30;
const PAIRS: usize = 600;

/// Measures both in turn; every second pair begins with the other.
pub(crate) async fn run(lab: &Lab, subject: &Subject) -> anyhow::Result<Vec<Line>> {
    let daemon = subject.daemon().processes(None)?;
    let (mut api, mut direct, mut answer) = <(Samples, Samples, Samples)>::default();
    for pair in 0..WARM_UP + PAIRS {
        let mut took = [Duration::ZERO; 2];
        for turn in [pair % 2, 1 - pair % 2] {
            let begun = Instant::now();
            match turn {
                0 => through_api(lab, subject.id).await?,
                _ => straight(&daemon, PROGRAM, &[]).await?,
            }
            took[turn] = begun.elapsed();
        }
        let begun = Instant::now();
        lab.client.get(subject.id).await?;
        if pair >= WARM_UP {
            api.time(took[0]);
            direct.time(took[1]);
            answer.time(begun.elapsed());
        }
    }
    let line = |name: &str, this: &Samples, goal| Line {
        name: name.to_owned(),
        unit: "ms",
        this: this.summary(),
        bare: direct.summary(),
        goal,
    };
    Ok(vec![
        line("exec: API / guest daemon", &api, Goal::AtMost(1.3)),
        line("  an API call without a guest / guest daemon", &answer, Goal::Shown),
    ])
}

/// Runs `/bin/true` in a capsule.
pub(crate) async fn through_api(lab: &Lab, id: CapsuleId) -> anyhow::Result<()> {
    let ran = lab.client.exec(id, &Command::new(PROGRAM)).await?;
    ensure!(ran.exit_code == 0, "{PROGRAM} failed in the capsule");
    Ok(())
}

/// Runs a program to its end, past the platform, and demands that it succeeds.
pub(crate) async fn straight(daemon: &Processes, program: &str, args: &[&str]) -> anyhow::Result<()> {
    ensure!(daemon.run(program, args).await? == 0, "{program} failed");
    Ok(())
}
