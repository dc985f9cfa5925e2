//! A pause, against writing as many bytes to a file on the same file system; and those bytes against what the guest had
//! written.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;
use tokio::time::Instant;
use wrenn_client::CapsuleId;

use crate::lab::Lab;
use crate::log::number;
use crate::report::{Goal, Line};
use crate::stats::Samples;
use crate::transfer::block;

/// MiB of random bytes that the guest writes before it is paused.
const DIRT_MIB: u32 = 64;
/// The unit in which the agent counts what a guest has written.
const PAGE: u64 = 4096;
/// Bytes written at once.
const PIECE: usize = 1 << 20;

/// What one pause was and did.
struct Paused {
    took: Duration,
    /// Bytes of the pages that the guest had written, and of the files that the pause made.
    dirty: u64,
    written: u64,
}

/// Pauses `count` capsules after one to warm up, and writes a file after each.
pub(crate) async fn run(lab: &Lab, memory_mb: u32, count: usize) -> anyhow::Result<[Line; 2]> {
    let (mut pauses, mut writes) = (Samples::default(), Samples::default());
    let (mut written, mut dirty) = (Samples::default(), Samples::default());
    for turn in 0..=count {
        let paused = pause(lab, memory_mb).await?;
        let wrote = write(lab.dir.join("bench.written"), paused.written).await?;
        if turn > 0 {
            pauses.time(paused.took);
            writes.time(wrote);
            written.number(mib(paused.written));
            dirty.number(mib(paused.dirty));
        }
    }
    let line = |name, unit, this: &Samples, bare: &Samples, bound| Line {
        name,
        unit,
        this: this.summary(),
        bare: bare.summary(),
        goal: Goal::AtMost(bound),
    };
    let what = format!("{memory_mb} MiB, {DIRT_MIB} of them written");
    Ok([
        line(format!("pause, {what}: API / writing as much"), "ms", &pauses, &writes, 1.3),
        line(format!("bytes of a pause, {what}: files / dirty memory"), "MiB", &written, &dirty, 1.05),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "a size of a few hundred MiB")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

async fn pause(lab: &Lab, memory_mb: u32) -> anyhow::Result<Paused> {
    let id = lab.create(memory_mb).await?;
    lab.shell(id, &format!("head -c {DIRT_MIB}M /dev/urandom > /dev/shm/dirt")).await?;
    let log = lab.log()?;
    sync().await?;
    let begun = Instant::now();
    lab.pause(id).await?;
    let took = begun.elapsed();
    let said = log.wait("paused", Some(id)).await?;
    let written = files(lab, id).await?;
    lab.destroy(id).await?;
    Ok(Paused { took, dirty: number(&said, "dirty")? * PAGE, written })
}

/// Bytes that the files of the first pause of a capsule take on the disk: the memory's new layer and its header, and the
/// devices.
async fn files(lab: &Lab, id: CapsuleId) -> anyhow::Result<u64> {
    let dir = lab.capsule_dir(id);
    let saved = lab.record(id)?.saved.context("a paused capsule has no saved state")?;
    let (devices, opened) = (dir.join(&saved.devices), dir.clone());
    let image = tokio::task::spawn_blocking(move || saved.open(&opened, &saved.fits)).await??;
    ensure!(image.layers() == 1, "the capsule was not made from a warm template, or was paused before");
    let files = image.layer_paths().into_iter().chain([image.header_path().to_owned(), devices]);
    files.map(|path| Ok(std::fs::metadata(path)?.blocks() * 512)).sum()
}

/// Writes so many bytes to a new file, brings them to the disk, and removes the file.
async fn write(path: PathBuf, bytes: u64) -> anyhow::Result<Duration> {
    sync().await?;
    let mut piece = block().to_vec();
    while piece.len() < PIECE {
        piece.extend_from_within(..);
    }
    let writing = move || {
        let begun = Instant::now();
        let mut file = File::create(&path)?;
        let mut left = bytes;
        while left > 0 {
            let part = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            file.write_all(&piece[..part])?;
            left -= part as u64;
        }
        file.sync_all()?;
        let took = begun.elapsed();
        std::fs::remove_file(&path)?;
        anyhow::Ok(took)
    };
    tokio::task::spawn_blocking(writing).await?
}

/// Has the kernel write out what others have left, so that neither side pays for it.
pub(crate) async fn sync() -> anyhow::Result<()> {
    ensure!(Command::new("sync").status().await?.success(), "`sync` failed");
    Ok(())
}
