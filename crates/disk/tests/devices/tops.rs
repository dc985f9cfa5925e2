//! What is done while a guest runs.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wrenn_disk::{Chain, Devices, DiskError, Room, RootDisks, keep_room};

use crate::bench::{BASE_BYTES, Bench, Guest, dmsetup, id};
use crate::common::cow::header;
use crate::common::{Cow, Kind, noise, padded};

/// Four KiB at a multiple of four KiB, as direct writing wants it.
#[repr(align(4096))]
struct Aligned([u8; 4096]);

/// A guest that writes chunk after chunk, each durable before the next, and counts them.
struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    /// Writes from `start` on.
    fn start(guest: &Guest, start: u64) -> Self {
        let direct = Guest::open(guest.number, libc_o_direct());
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            for chunk in 0_u64.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let data = Aligned([value(chunk); 4096]);
                direct.file.write_all_at(&data.0, start + chunk * 4096).unwrap();
                count.store(chunk + 1, Ordering::SeqCst);
            }
        });
        Self { stop, done, thread }
    }

    fn count(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    fn wait_for(&self, more: u64) {
        let until = self.count() + more;
        while self.count() < until {
            assert!(!self.thread.is_finished());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.done.load(Ordering::SeqCst)
    }
}

fn libc_o_direct() -> i32 {
    i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap()
}

fn value(chunk: u64) -> u8 {
    (chunk % 255) as u8 + 1
}

/// How many chunks of a writer's are in `content` from `start` on, without a gap.
fn written(content: &[u8], start: usize) -> u64 {
    let chunks = content[start..].chunks(4096).enumerate();
    let count = chunks.take_while(|(i, chunk)| chunk.iter().all(|b| *b == value(*i as u64))).count();
    assert!(
        content[start + count * 4096..].iter().all(|byte| *byte == 0),
        "something is behind chunk {count}"
    );
    count as u64
}

fn below(chain: &Chain) -> Chain {
    Chain { layers: chain.layers[..chain.layers.len() - 1].to_vec(), ..chain.clone() }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_push_cuts_the_writes_of_a_running_guest_in_two() {
    let bench = Bench::new();
    let mut chain = bench.disk("a", 256).await;
    let guest = bench.attach("x", &chain).await;
    let start = 2 << 20;
    let writer = Writer::start(&guest, start as u64);
    for _ in 0..4 {
        writer.wait_for(50);
        chain = bench.lab.disks.push(&chain, None).await.unwrap();
        bench.devices.stage("x", chain.top()).await.unwrap();
        writer.wait_for(20);
        let before = writer.count();
        bench.devices.push("x", chain.top()).await.unwrap();
        assert_eq!(bench.devices.top("x").await.unwrap(), chain.top_name());
        let after = writer.count() + 1;
        writer.wait_for(20);
        let frozen = written(&Cow::content(&below(&chain)), start);
        assert!((before..=after).contains(&frozen), "{before} ≤ {frozen} ≤ {after}");
    }
    let count = writer.finish();
    bench.devices.flush("x").await.unwrap();
    assert_eq!(written(&Cow::content(&chain), start), count);
    assert_eq!(written(&guest.content(), start), count);
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    Cow::assert_sound(&chain);
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_push_takes_along_what_a_vmm_has_not_synced() {
    let bench = Bench::new();
    let one = bench.disk("a", 8).await;
    let guest = bench.attach("x", &one).await;
    guest.fill(0, 1 << 20, 1);
    let two = bench.lab.disks.push(&one, Some(12)).await.unwrap();
    bench.devices.stage("x", two.top()).await.unwrap();
    guest.fill(1 << 20, 1 << 20, 2);
    bench.devices.push("x", two.top()).await.unwrap();
    // Once more is nothing to do.
    bench.devices.push("x", two.top()).await.unwrap();
    assert_eq!(guest.size(), 12 << 20);
    let frozen = Cow::content(&one);
    assert!(frozen[..2 << 20] == [vec![1; 1 << 20], vec![2; 1 << 20]].concat());
    guest.fill(11 << 20, 4096, 3);
    guest.fill(0, 4096, 4);
    bench.devices.flush("x").await.unwrap();
    assert!(Cow::content(&one) == frozen && Cow::content(&two) == guest.content());
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn what_is_staged_can_be_taken_back_and_never_be_pushed_over_another_top() {
    let bench = Bench::new();
    let one = bench.disk("a", 8).await;
    let guest = bench.attach("x", &one).await;
    let alone = bench.names();
    let (two, rival) =
        (bench.lab.disks.push(&one, None).await.unwrap(), bench.lab.disks.push(&one, None).await.unwrap());
    let error = bench.devices.push("x", two.top()).await.unwrap_err();
    assert!(matches!(error, DiskError::NotAttached { .. }), "{error}");
    bench.devices.stage("x", two.top()).await.unwrap();
    assert!(matches!(
        bench.devices.stage("x", two.top()).await,
        Err(DiskError::Busy { .. } | DiskError::Attached { .. })
    ));
    assert_eq!(bench.devices.top("x").await.unwrap(), one.top_name());
    bench.devices.unstage("x", two.top()).await.unwrap();
    bench.devices.unstage("x", two.top()).await.unwrap();
    assert_eq!(bench.names(), alone);
    // The layer that takes the writes was pushed: there is nothing to take back.
    bench.devices.unstage("x", one.top()).await.unwrap();
    assert_eq!(bench.names(), alone);
    bench.devices.stage("x", two.top()).await.unwrap();
    bench.devices.stage("x", rival.top()).await.unwrap();
    bench.devices.push("x", two.top()).await.unwrap();
    let error = bench.devices.push("x", rival.top()).await.unwrap_err();
    assert!(matches!(error, DiskError::StrangeDevice { .. }), "{error}");
    bench.devices.unstage("x", rival.top()).await.unwrap();
    guest.fill(0, 4096, 5);
    assert_eq!(bench.devices.top("x").await.unwrap(), two.top_name());
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_staged_layer_goes_with_the_rest() {
    let bench = Bench::new();
    let one = bench.disk("a", 8).await;
    drop(bench.attach("x", &one).await);
    let two = bench.lab.disks.push(&one, Some(9)).await.unwrap();
    bench.devices.stage("x", two.top()).await.unwrap();
    bench.devices.detach("x").await.unwrap();
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_new_agent_removes_what_the_one_before_has_staged_and_nothing_else() {
    let bench = Bench::new();
    let one = bench.disk("a", 8).await;
    let guest = bench.attach("x", &one).await;
    let two = bench.lab.disks.push(&one, Some(9)).await.unwrap();
    bench.devices.stage("x", two.top()).await.unwrap();
    bench.devices.push("x", two.top()).await.unwrap();
    let alone = bench.names();
    let three = bench.lab.disks.push(&two, Some(10)).await.unwrap();
    let four = bench.lab.disks.push(&two, None).await.unwrap();
    bench.devices.stage("x", three.top()).await.unwrap();
    bench.devices.stage("x", four.top()).await.unwrap();
    let again = Devices::open(&bench.prefix).unwrap();
    // One was about to be pushed.
    let top = format!("{}-x", bench.prefix);
    let table =
        format!("0 {} linear {} 0", (10 << 20) / 512, bench.number(&format!("{top}-{}", id(three.top()))));
    dmsetup(&["load", &top, "--table", &table]);
    again.settle("x").await.unwrap();
    assert_eq!(bench.names(), alone);
    again.settle("x").await.unwrap();
    again.settle("nobody").await.unwrap();
    assert_eq!(bench.names(), alone);
    guest.fill(0, 4096, 3);
    again.stage("x", three.top()).await.unwrap();
    again.push("x", three.top()).await.unwrap();
    guest.fill(4096, 4096, 4);
    again.flush("x").await.unwrap();
    drop(guest);
    again.detach("x").await.unwrap();
    assert_eq!(Cow::content(&three)[..8192], [[3; 4096], [4; 4096]].concat());
    bench.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_new_agent_finds_the_top_and_wakes_what_a_crash_left_suspended() {
    let bench = Bench::new();
    let one = bench.disk("a", 8).await;
    let guest = bench.attach("x", &one).await;
    let two = bench.lab.disks.push(&one, None).await.unwrap();
    bench.devices.stage("x", two.top()).await.unwrap();
    bench.devices.push("x", two.top()).await.unwrap();
    assert_eq!(Devices::open(&bench.prefix).unwrap().top("x").await.unwrap(), two.top_name());
    dmsetup(&["suspend", "--noudevsync", &format!("{}-x", bench.prefix)]);
    let writer = std::thread::spawn(move || {
        guest.fill(0, 4096, 7);
        guest.file.sync_all().unwrap();
    });
    let again = Devices::open(&bench.prefix).unwrap();
    writer.join().unwrap();
    assert_eq!(again.top("x").await.unwrap(), two.top_name());
    again.detach("x").await.unwrap();
    assert!(Cow::content(&two)[..4096] == [7; 4096]);
    bench.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_disk_grows_while_a_guest_writes_to_it() {
    let bench = Bench::new();
    let mut chain = bench.disk("a", 64).await;
    let guest = bench.attach("x", &chain).await;
    let start = 2 << 20;
    let writer = Writer::start(&guest, start as u64);
    for mb in [128_u64, 192, 256] {
        writer.wait_for(50);
        bench.devices.grow("x", mb << 20).await.unwrap();
        assert_eq!((guest.size(), header(chain.top()).0), (mb << 20, mb << 20));
        let opened = bench.lab.disks.open(&bench.lab.path("a"), chain.top_name()).await.unwrap();
        chain.virtual_bytes = mb << 20;
        assert_eq!(opened, chain);
        // One device makes what is below longer, whatever was there before.
        assert_eq!(bench.names().len(), 3, "{:?}", bench.names());
    }
    writer.wait_for(50);
    let error = bench.devices.grow("x", 255 << 20).await.unwrap_err();
    assert!(matches!(error, DiskError::TooSmall { asked_mb: 255, base_mb: 256 }), "{error}");
    bench.devices.grow("x", 256 << 20).await.unwrap();
    chain = bench.lab.disks.push(&chain, None).await.unwrap();
    bench.devices.stage("x", chain.top()).await.unwrap();
    bench.devices.push("x", chain.top()).await.unwrap();
    writer.wait_for(20);
    bench.devices.grow("x", 300 << 20).await.unwrap();
    chain.virtual_bytes = 300 << 20;
    writer.wait_for(20);
    let count = writer.finish();
    let mut model = padded(&chain, noise(BASE_BYTES));
    for chunk in 0..count {
        let at = start + usize::try_from(chunk).unwrap() * 4096;
        model[at..at + 4096].fill(value(chunk));
    }
    guest.fill((299 << 20) + 512, 1024, 9);
    model[(299 << 20) + 512..(299 << 20) + 1536].fill(9);
    assert!(guest.content() == model);
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    bench.assert_nothing_left().await;
    Cow::assert_sound(&chain);
    assert!(Cow::content(&chain) == model);
    let guest = bench.attach("x", &chain).await;
    assert!(guest.content() == model);
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_disk_of_which_every_chunk_is_written_does_not_overflow() {
    let bench = Bench::new();
    // A multiple of what an area lists, so that the last area is full.
    let chain = bench.disk("a", 4).await;
    let guest = bench.attach("x", &chain).await;
    guest.fill(0, 4 << 20, 6);
    bench.devices.flush("x").await.unwrap();
    bench.devices.grow("x", 5 << 20).await.unwrap();
    guest.fill(4 << 20, 1 << 20, 7);
    bench.devices.flush("x").await.unwrap();
    let used = bench.devices.used("x").await.unwrap();
    assert!(used.valid && used.bytes >= 5 << 20 && used.bytes <= used.capacity_bytes, "{used:?}");
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    assert!(Cow::content(&chain)[..] == [vec![6; 4 << 20], vec![7; 1 << 20]].concat());
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn use_is_told_as_the_file_shows_it() {
    let bench = Bench::new();
    let chain = bench.disk("a", 64).await;
    let guest = bench.attach("x", &chain).await;
    let empty = bench.devices.used("x").await.unwrap();
    assert_eq!((empty.layer.as_str(), empty.bytes, empty.valid), (chain.top_name(), 8192, true));
    guest.fill(0, 10 << 20, 1);
    bench.devices.flush("x").await.unwrap();
    let used = bench.devices.used("x").await.unwrap();
    // 2560 chunks in ten areas, and the header.
    assert_eq!(used.bytes, (2560 + 10 + 2) * 4096);
    assert_eq!(used.capacity_bytes, chain.top().metadata().unwrap().len() - 4096);
    let room = keep_room(&chain.top().with_file_name(&used.layer), used.bytes).unwrap();
    assert!(matches!(room, Room::Plenty | Room::Taken), "{room:?}");
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    bench.assert_nothing_left().await;
}
