//! What an idle clone costs in memory: its VMM, against one that was restored bare and shares its pages with nobody; and
//! the agent.

use anyhow::Context;
use wrenn_client::{CapsuleId, ForkCapsule};

use crate::bare::Bare;
use crate::lab::Lab;
use crate::memory::{SETTLE, resident_mib, watch};
use crate::report::{Goal, Line};
use crate::stats::Samples;
use crate::warm::Warm;

/// Forks a capsule into `count` copies and looks at what each of them takes.
pub(crate) async fn run(lab: &Lab, bare: &Bare, warm: &Warm, count: u32) -> anyhow::Result<[Line; 2]> {
    let alone = alone(bare, warm).await?;
    let agent = lab.agent_pid()?;
    let source = lab.create(warm.memory_mb).await?;
    tokio::time::sleep(SETTLE).await;
    let without = watch(agent).await?;
    let copies = lab.client.fork_and_wait(source, &ForkCapsule::copies(count)).await?;
    tokio::time::sleep(SETTLE).await;
    let with = watch(agent).await?;
    let mut clones = Samples::default();
    for copy in &copies {
        clones.number(vmm_mib(lab, copy.id)?);
    }
    lab.release().await?;
    let line = |name, this, bare: &Samples| Line {
        name,
        unit: "MiB",
        this,
        bare: bare.summary(),
        goal: Goal::Shown,
    };
    let name = format!("VMM of an idle clone, {} MiB, one of {count} / a bare one alone", warm.memory_mb);
    let agent_name = format!("  agent with {count} idle clones / with their source alone");
    Ok([line(name, clones.summary(), &alone), line(agent_name, with.summary(), &without)])
}

async fn alone(bare: &Bare, warm: &Warm) -> anyhow::Result<Samples> {
    let machine = bare.restore(bare.ready(warm).await?).await?;
    tokio::time::sleep(SETTLE).await;
    let samples = watch(machine.pid()).await?;
    bare.remove(machine).await?;
    Ok(samples)
}

fn vmm_mib(lab: &Lab, id: CapsuleId) -> anyhow::Result<f64> {
    let machine = lab.record(id)?.machine.context("a running capsule has no VMM")?;
    resident_mib(machine.pid)
}
