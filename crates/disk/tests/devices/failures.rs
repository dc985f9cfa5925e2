//! What fails, and leaves nothing behind.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use wrenn_disk::{AHEAD, DiskError, MIB, Room, RootDisks, allocated_bytes, keep_room};

use crate::bench::{Bench, Guest};
use crate::common::ext4::Ext4;
use crate::common::{Cow, Kind};

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn an_attach_that_fails_half_way_leaves_nothing() {
    let bench = Bench::new();
    let one = bench.disk("a", 8).await;
    let two = bench.lab.disks.push(&one, None).await.unwrap();
    let three = bench.lab.disks.push(&two, Some(9)).await.unwrap();
    let attach = async |layers: &[PathBuf], expected: fn(&DiskError) -> bool| {
        let error = bench.devices.attach("x", &three.base, layers).await.unwrap_err();
        assert!(expected(&error), "{error:?}");
        bench.assert_nothing_left().await;
    };
    let no_layer = |error: &DiskError| matches!(error, DiskError::NotALayer { .. });
    let swapped = [three.layers[0].clone(), three.layers[2].clone()];
    attach(&swapped, no_layer).await;
    attach(&[], no_layer).await;
    let mut missing = three.layers.clone();
    missing[2] = bench.lab.path("a/disk-0000000000000001.cow");
    attach(&missing, |error| matches!(error, DiskError::Io { .. })).await;
    let top = std::fs::File::options().write(true).open(three.top()).unwrap();
    top.write_all_at(&[0; 4], 4096).unwrap();
    attach(&three.layers, no_layer).await;
    top.write_all_at(b"SnAp", 4096).unwrap();
    drop(bench.attach("x", &three).await);
    let error = bench.devices.attach("x", &three.base, &three.layers).await.unwrap_err();
    assert!(matches!(error, DiskError::Attached { .. }), "{error}");
    assert_eq!(bench.devices.top("x").await.unwrap(), three.top_name());
    bench.devices.detach("x").await.unwrap();
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_layer_that_takes_writes_is_not_attached_a_second_time() {
    let bench = Bench::new();
    let chain = bench.disk("a", 8).await;
    let guest = bench.attach("one", &chain).await;
    let names = bench.names();
    let error = bench.devices.attach("two", &chain.base, &chain.layers).await.unwrap_err();
    assert!(matches!(error, DiskError::Busy { .. }), "{error}");
    assert_eq!(bench.names(), names);
    drop(guest);
    bench.devices.detach("one").await.unwrap();
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn calls_that_are_given_up_leave_nothing() {
    let bench = Bench::new();
    let one = bench.disk("a", 8).await;
    let two = bench.lab.disks.push(&one, Some(9)).await.unwrap();
    for _ in 0..10 {
        let attach = bench.devices.attach("x", &two.base, &two.layers);
        assert!(tokio::time::timeout(Duration::ZERO, attach).await.is_err());
        // The next call waits for its turn, so it meets nothing half made.
        assert_eq!(bench.devices.number("x").await.unwrap(), None);
        bench.assert_nothing_left().await;
    }
    drop(bench.attach("x", &one).await);
    let alone = bench.names();
    let stage = bench.devices.stage("x", two.top());
    assert!(tokio::time::timeout(Duration::ZERO, stage).await.is_err());
    assert_eq!(bench.devices.top("x").await.unwrap(), one.top_name());
    assert_eq!(bench.names(), alone);
    bench.devices.detach("x").await.unwrap();
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_device_that_is_open_is_not_removed_until_it_is_not() {
    let bench = Bench::new();
    let chain = bench.disk("a", 8).await;
    let guest = bench.attach("x", &chain).await;
    let error = bench.devices.detach("x").await.unwrap_err();
    assert!(matches!(error, DiskError::Busy { .. }), "{error}");
    guest.fill(0, 4096, 1);
    guest.file.sync_all().unwrap();
    let detach = bench.devices.detach("x");
    let close = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(guest);
    };
    tokio::join!(detach, close).0.unwrap();
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn room_is_kept_for_the_kernel_and_a_store_without_is_told_to_be_lost() {
    let bench = Bench::new();
    let fs = Ext4::mount(&bench.lab, Cow::SMALL_SYSTEM);
    let chain = bench.lab.disks.create(&fs.0, &bench.lab.base(), 256).await.unwrap();
    let guest = Guest::open(bench.devices.attach("x", &chain.base, &chain.layers).await.unwrap(), 0);
    fs.fill();
    // What was taken beforehand is there, though everyone else finds the disk full.
    guest.fill(0, 24 << 20, 1);
    bench.devices.flush("x").await.unwrap();
    let used = bench.devices.used("x").await.unwrap();
    assert!(used.valid && used.bytes > 24 * MIB, "{used:?}");
    assert_eq!(keep_room(chain.top(), used.bytes).unwrap(), Room::Short);
    assert!(Cow::content(&chain)[..24 << 20].iter().all(|byte| *byte == 1));
    // Nobody stops the guest.
    let written = guest.file.write_all_at(&vec![2; 64 << 20], 32 << 20).and_then(|()| guest.file.sync_all());
    assert!(written.is_err());
    let error = bench.devices.flush("x").await.unwrap_err();
    assert!(matches!(&error, DiskError::StoreLost { layer } if layer == chain.top_name()), "{error}");
    let used = bench.devices.used("x").await.unwrap();
    assert_eq!((used.valid, used.bytes), (false, 0));
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    bench.assert_nothing_left().await;
    let error = bench.lab.disks.open(&fs.0, chain.top_name()).await.unwrap_err();
    assert!(error.to_string().contains("could not write to it"), "{error}");
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_layer_that_is_frozen_gives_back_the_room_that_it_had_ahead() {
    let bench = Bench::new();
    let fs = Ext4::mount(&bench.lab, Cow::SMALL_SYSTEM);
    let one = bench.lab.disks.create(&fs.0, &bench.lab.base(), 256).await.unwrap();
    let guest = Guest::open(bench.devices.attach("x", &one.base, &one.layers).await.unwrap(), 0);
    guest.fill(0, 3 << 20, 1);
    assert!(allocated_bytes(one.top()).unwrap() >= AHEAD);
    let two = bench.lab.disks.push(&one, None).await.unwrap();
    bench.devices.stage("x", two.top()).await.unwrap();
    bench.devices.push("x", two.top()).await.unwrap();
    assert!(allocated_bytes(one.top()).unwrap() < 4 * MIB);
    guest.fill(1 << 20, 4096, 2);
    let seen = guest.content();
    assert!(seen[..3 << 20] == [vec![1; 1 << 20], vec![2; 4096], vec![1; (2 << 20) - 4096]].concat());
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    Cow::assert_sound(&two);
    assert!(Cow::content(&two) == seen);
    bench.assert_nothing_left().await;
}
