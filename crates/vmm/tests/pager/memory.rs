//! What the guest finds in its memory.

use std::ops::Range;

use wrenn_image::BLOCK_BYTES;
use wrenn_vmm::ExitReason;

use crate::bench::{Bench, Running, eventually};
use crate::vmm::{Do, Vmm};

/// Waits until the thread that fetches in advance has come to its last block, and has ended.
fn await_prefetch(pager: &Running, vmm: &Vmm, last: usize) {
    eventually("the last block is there", || vmm.present().contains(&last));
    eventually("the thread has ended", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", pager.pid())).unwrap();
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
        };
        tasks.map(name).all(|name| name.trim() != "prefetch")
    });
}

#[tokio::test]
async fn many_threads_find_bases_layers_zeros_and_holes_on_both_sides_of_the_device_hole() {
    let bench = Bench::new(1031);
    // The second region begins in the middle of a chunk.
    let (mut vmm, pager) = bench.serve(&[517, 514], &[]).await;
    vmm.run(Do::Walk(8));
    assert!(vmm.run(Do::Read(0, 1031)) == bench.model);
    vmm.kill();
    assert_eq!(pager.end().await, ExitReason::Exited { code: 0 }, "{}", bench.said());
}

#[tokio::test]
async fn a_fault_brings_the_64_kib_around_it_and_no_more() {
    let bench = Bench::new(200);
    let (mut vmm, _pager) = bench.serve(&[101, 99], &[]).await;
    assert!(vmm.present().is_empty());
    assert!(vmm.run(Do::Read(37, 38)) == bench.part(37, 38));
    // The guest goes on as soon as it can, while the rest still comes.
    let comes = |vmm: &Vmm, blocks: &[usize]| eventually("the blocks are there", || vmm.present() == blocks);
    comes(&vmm, &(32..48).collect::<Vec<_>>());
    // At the end of a region and of the image there is less around it.
    vmm.run(Do::Read(100, 101));
    vmm.run(Do::Read(199, 200));
    comes(&vmm, &(32..48).chain(96..101).chain(192..200).collect::<Vec<_>>());
    assert!(vmm.run(Do::Read(0, 200)) == bench.model);
}

#[tokio::test]
async fn what_the_last_run_touched_comes_without_a_fault_and_nothing_else_does() {
    let bench = Bench::new(3000);
    let ranges = [2000..2003, 10..700, 5..12, 1450..1550, 900..900, 2990..4000, 5000..5001];
    let (mut vmm, pager) = bench.serve(&[1500, 1500], &ranges).await;
    await_prefetch(&pager, &vmm, 2999);
    let wanted = |block: &usize| ranges.iter().any(|range| range.contains(&(*block as u64)));
    assert_eq!(vmm.present(), (0..3000).filter(wanted).collect::<Vec<_>>());
    assert!(vmm.run(Do::Read(0, 3000)) == bench.model);
}

#[tokio::test]
async fn faults_are_served_while_everything_is_fetched() {
    let bench = Bench::new(8192);
    let all: Range<u64> = 0..8192;
    let (mut vmm, pager) = bench.serve(&[4100, 4092], &[all]).await;
    vmm.run(Do::Walk(4));
    await_prefetch(&pager, &vmm, 8191);
    assert!(vmm.run(Do::Read(0, 8192)) == bench.model);
}

/// What a VMM drops is zeros from then on, whether the guest had it or not. It is anonymous memory, which reads as zeros
/// after `MADV_DONTNEED`; a balloon that drops pages has told the guest that their content is gone. The image's content
/// would be memory from the past, which the guest may have overwritten since.
#[tokio::test]
async fn what_was_dropped_reads_as_zeros_whether_it_was_there_or_not() {
    let bench = Bench::new(300);
    let (mut vmm, pager) = bench.serve(&[150, 150], &[]).await;
    let mut model = bench.model.clone();
    let mut fill = |from: usize, to: usize, byte| model[from * BLOCK_BYTES..to * BLOCK_BYTES].fill(byte);
    // Touched, written, and never touched; the last across both regions and in a chunk with blocks that stay.
    vmm.run(Do::Read(0, 32));
    vmm.run(Do::Fill(32, 48, 9));
    vmm.run(Do::Drop(8, 40));
    vmm.run(Do::Drop(140, 155));
    fill(40, 48, 9);
    fill(8, 40, 0);
    fill(140, 155, 0);
    vmm.run(Do::Walk(4));
    assert!(vmm.run(Do::Read(0, 300)) == model);
    // Once more: zeros that were written over and dropped again.
    vmm.run(Do::Fill(10, 20, 7));
    vmm.run(Do::Drop(15, 25));
    let mut fill = |from: usize, to: usize, byte| model[from * BLOCK_BYTES..to * BLOCK_BYTES].fill(byte);
    fill(10, 15, 7);
    fill(15, 25, 0);
    assert!(vmm.run(Do::Read(0, 300)) == model);
    vmm.kill();
    assert_eq!(pager.end().await, ExitReason::Exited { code: 0 }, "{}", bench.said());
}

#[tokio::test]
async fn what_is_dropped_while_everything_is_fetched_stays_dropped() {
    let bench = Bench::new(8192);
    let all: Range<u64> = 0..8192;
    let (mut vmm, pager) = bench.serve(&[4096, 4096], &[all]).await;
    let mut model = bench.model.clone();
    // From the end to the beginning, against the direction of the fetching, which meets it somewhere.
    for from in (0..8192).step_by(64).rev() {
        vmm.run(Do::Drop(from, from + 5));
        model[from * BLOCK_BYTES..(from + 5) * BLOCK_BYTES].fill(0);
    }
    await_prefetch(&pager, &vmm, 8191);
    vmm.run(Do::Walk(2));
    assert!(vmm.run(Do::Read(0, 8192)) == model);
}

#[tokio::test]
async fn what_is_dropped_while_threads_wait_for_pages_stays_dropped() {
    let bench = Bench::new(4096);
    let (mut vmm, pager) = bench.serve(&[4096], &[]).await;
    let mut model = bench.model.clone();
    for step in [7, 5] {
        vmm.run(Do::Churn(4, step));
        (0..4096).step_by(step).for_each(|block| model[block * BLOCK_BYTES..][..BLOCK_BYTES].fill(0));
    }
    assert!(vmm.run(Do::Read(0, 4096)) == model);
    vmm.kill();
    assert_eq!(pager.end().await, ExitReason::Exited { code: 0 }, "{}", bench.said());
}

#[tokio::test]
async fn blocks_that_the_vmm_has_already_and_regions_that_it_has_split_are_no_obstacle() {
    let bench = Bench::new(600);
    let mut model = bench.model.clone();
    let mut vmm = Vmm::start(&bench.path("socket"), &[600]);
    for (from, to) in [(5, 6), (40, 43), (550, 551)] {
        vmm.run(Do::Own(from, to));
        model[from * BLOCK_BYTES..to * BLOCK_BYTES].fill(0);
    }
    for (from, to) in [(21, 23), (58, 70), (530, 531)] {
        vmm.run(Do::Split(from, to));
    }
    let ahead: Range<u64> = 500..600;
    let pager = bench.pager(&vmm.pidfd(), &[ahead]).await;
    vmm.run(Do::Connect);
    await_prefetch(&pager, &vmm, 599);
    vmm.run(Do::Walk(4));
    assert!(vmm.run(Do::Read(0, 600)) == model);
}
