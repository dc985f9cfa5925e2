//! Attaching, detaching, and what the kernel leaves in the files.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use wrenn_disk::{Devices, DiskError, RootDisks};

use crate::bench::{BASE_BYTES, Bench, Guest, dmsetup, id};
use crate::common::{Cow, Kind, noise, padded};

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn what_the_kernel_writes_is_in_the_file_and_comes_back() {
    let bench = Bench::new();
    let chain = bench.disk("a", 8).await;
    let mut model = padded(&chain, noise(BASE_BYTES));
    let guest = bench.attach("one", &chain).await;
    assert!(guest.content() == model && guest.size() == 8 << 20);
    // Whole chunks, sectors, bytes; in the base, over its end, behind it; more than an area lists.
    for (at, length, value) in [
        (0, 4096, 1),
        (8704, 512, 2),
        (1 << 20, 16384, 3),
        ((1 << 20) + 4000, 100, 4),
        (2 << 20, 3 << 20, 5),
        ((8 << 20) - 1, 1, 6),
    ] {
        guest.fill(at, length, value);
        model[at..at + length].fill(value);
    }
    drop(guest);
    bench.devices.detach("one").await.unwrap();
    bench.assert_nothing_left().await;
    Cow::assert_sound(&chain);
    assert!(Cow::content(&chain) == model);
    assert_eq!(bench.lab.disks.open(&bench.lab.path("a"), chain.top_name()).await.unwrap(), chain);
    let guest = bench.attach("other", &chain).await;
    assert!(guest.content() == model);
    // The same chunk again, in place.
    guest.fill(0, 4096, 9);
    model[..4096].fill(9);
    drop(guest);
    bench.devices.detach("other").await.unwrap();
    assert!(Cow::content(&chain) == model);
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn frozen_files_are_shared_and_writes_are_not() {
    let bench = Bench::new();
    let first = bench.disk("a", 8).await;
    let guest = bench.attach("mine", &first).await;
    guest.fill(0, 65536, 1);
    drop(guest);
    bench.devices.detach("mine").await.unwrap();
    let linked = bench.lab.disks.link(&first, &bench.lab.dir("b")).await.unwrap();
    let mine = bench.lab.disks.push(&first, None).await.unwrap();
    let yours = bench.lab.disks.push(&linked, Some(16)).await.unwrap();
    // At once, so that both look for the same loop devices.
    let (one, two) = tokio::join!(bench.attach("mine", &mine), bench.attach("yours", &yours));
    assert_eq!(bench.loops().len(), 4, "{:?}", bench.loops());
    assert_eq!((one.size(), two.size()), (8 << 20, 16 << 20));
    one.fill(0, 4096, 2);
    two.fill(4096, 4096, 3);
    two.fill(12 << 20, 4096, 4);
    assert!(one.content()[..65536] == [vec![2; 4096], vec![1; 61440]].concat());
    assert_eq!(bench.devices.number("mine").await.unwrap(), Some(one.number));
    drop(one);
    bench.devices.detach("mine").await.unwrap();
    assert_eq!(bench.loops().len(), 3, "{:?}", bench.loops());
    let seen = two.content();
    assert!(seen[..65536] == [vec![1; 4096], vec![3; 4096], vec![1; 57344]].concat());
    drop(two);
    bench.devices.detach("yours").await.unwrap();
    bench.assert_nothing_left().await;
    Cow::assert_sound(&mine);
    assert!(Cow::content(&yours) == seen && Cow::content(&mine)[..4096] == [2; 4096]);
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_deep_chain_with_a_size_for_each_layer_reads_as_one_disk() {
    let bench = Bench::new();
    let mut chain = bench.disk("a", 2).await;
    let mut model = padded(&chain, noise(BASE_BYTES));
    for layer in 0..12_u8 {
        let guest = bench.attach("deep", &chain).await;
        assert!(guest.content() == model, "layer {layer}");
        let at = usize::from(layer) * 40960 + 512;
        guest.fill(at, 8192, layer + 1);
        model[at..at + 8192].fill(layer + 1);
        let end = model.len();
        guest.fill(end - 512, 512, layer + 1);
        model[end - 512..].fill(layer + 1);
        drop(guest);
        bench.devices.detach("deep").await.unwrap();
        let more = (layer % 3 != 2).then(|| 3 + u32::from(layer));
        chain = bench.lab.disks.push(&chain, more).await.unwrap();
        model = padded(&chain, model);
    }
    assert!(Cow::content(&chain) == model);
    let flat = bench.lab.disks.flatten(&chain, 3).await.unwrap();
    for chain in [&chain, &flat] {
        let guest = bench.attach("deep", chain).await;
        assert!(guest.content() == model);
        drop(guest);
        bench.devices.detach("deep").await.unwrap();
    }
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn the_kernel_reads_and_continues_what_a_merge_has_written() {
    let bench = Bench::new();
    let one = bench.disk("a", 16).await;
    let guest = bench.attach("x", &one).await;
    // From the back, and exactly one area.
    for chunk in (0..256).rev() {
        guest.file.write_all_at(&[(chunk % 251) as u8; 4096], (4 << 20) + chunk * 8192).unwrap();
        guest.file.sync_all().unwrap();
    }
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    let two = bench.lab.disks.push(&one, None).await.unwrap();
    let guest = bench.attach("x", &two).await;
    guest.fill(5 << 20, 4096, 77);
    let mut model = guest.content();
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    let flat = bench.lab.disks.flatten(&two, 0).await.unwrap();
    Cow::assert_sound(&flat);
    assert!(Cow::content(&flat) == model);
    bench.lab.disks.remove_unlisted(&bench.lab.path("a"), &flat).await.unwrap();
    let guest = bench.attach("x", &flat).await;
    assert!(guest.content() == model);
    guest.fill(10 << 20, 2 << 20, 8);
    model[10 << 20..12 << 20].fill(8);
    drop(guest);
    bench.devices.detach("x").await.unwrap();
    Cow::assert_sound(&flat);
    assert!(Cow::content(&flat) == model);
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn owners_are_found_by_a_new_agent_and_only_ones_own() {
    let bench = Bench::new();
    let (a, b) = (bench.disk("a", 8).await, bench.disk("b", 8).await);
    drop((bench.attach("a", &a).await, bench.attach("b-c", &b).await));
    let other = Devices::open(&format!("{}-a", bench.prefix)).unwrap();
    let again = Devices::open(&bench.prefix).unwrap();
    assert_eq!(again.owners().await.unwrap(), ["a", "b-c"]);
    assert_eq!(other.owners().await.unwrap(), Vec::<String>::new());
    // What a crash has left of an attach: the layer without a top.
    let lower = format!("{}-b-c-{}", bench.prefix, id(b.top()));
    dmsetup(&["remove", "--noudevsync", &format!("{}-b-c", bench.prefix)]);
    assert!(bench.names().contains(&lower));
    assert_eq!(again.owners().await.unwrap(), ["a", "b-c"]);
    assert!(matches!(again.top("b-c").await, Err(DiskError::NotAttached { .. })));
    assert_eq!(again.number("b-c").await.unwrap(), None);
    for owner in ["a", "b-c", "b-c", "nobody"] {
        again.detach(owner).await.unwrap();
    }
    assert_eq!(again.owners().await.unwrap(), Vec::<String>::new());
    bench.assert_nothing_left().await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in the lab"]
async fn a_device_number_is_all_that_is_needed_to_open_it() {
    let bench = Bench::new();
    let chain = bench.disk("a", 8).await;
    let guest = bench.attach("x", &chain).await;
    let number = bench.devices.number("x").await.unwrap().unwrap();
    let second = Guest::open(number, 0);
    guest.fill(0, 512, 3);
    let mut bytes = [0; 512];
    second.file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [3; 512]);
    drop((guest, second));
    bench.devices.detach("x").await.unwrap();
    bench.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs device-mapper: run in the lab"]
async fn owners_come_and_go_at_once_and_share_what_is_frozen() {
    let bench = Arc::new(Bench::new());
    let one = bench.disk("a", 8).await;
    let mut owners = Vec::new();
    for owner in 0..6_u8 {
        let name = format!("o{owner}");
        let linked = bench.lab.disks.link(&one, &bench.lab.dir(&name)).await.unwrap();
        let chain = bench.lab.disks.push(&linked, None).await.unwrap();
        let bench = Arc::clone(&bench);
        owners.push(tokio::spawn(async move {
            for round in 1..6 {
                let guest = bench.attach(&name, &chain).await;
                assert!(round == 1 || guest.content()[4096..8192] == [owner; 4096]);
                assert!(guest.content()[8192..BASE_BYTES] == noise(BASE_BYTES)[8192..]);
                guest.fill(4096, 4096, owner);
                drop(guest);
                bench.devices.detach(&name).await.unwrap();
            }
        }));
    }
    for owner in owners {
        owner.await.unwrap();
    }
    bench.assert_nothing_left().await;
}
