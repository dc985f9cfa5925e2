//! Chains of layers, of either driver.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

mod common;

use std::os::unix::fs::MetadataExt;

use common::{Kind, Lab, for_both_kinds, mode, names, noise, padded};
use wrenn_disk::{DiskError, MIB, MOST_LAYERS, RootDisks, allocated_bytes};

const BASE_BYTES: usize = 3 << 20;
const M: usize = 1 << 20;
const K4: usize = 4096;
const K64: usize = 65536;

for_both_kinds!(
    a_new_disk_shares_its_base_and_reads_like_it,
    a_pushed_layer_takes_the_writes_and_can_grow_the_disk,
    linked_chains_go_separate_ways_and_outlive_one_another,
    flattening_keeps_zeros_zero_and_holes_holes,
    a_merged_layer_takes_writes_in_place,
    only_disk_files_that_are_not_listed_are_removed,
    an_existing_disk_is_never_overwritten,
    sizes_and_bases_that_cannot_be_are_refused_and_leave_no_file,
    a_chain_has_a_limit,
    a_link_and_a_name_of_another_kind_are_not_opened,
    a_merge_that_is_given_up_leaves_no_file,
);

async fn a_new_disk_shares_its_base_and_reads_like_it<K: Kind>() {
    let lab = Lab::<K>::new(BASE_BYTES);
    let chain = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    assert_eq!(chain.virtual_bytes, 8 * MIB);
    assert_eq!(chain.base.metadata().unwrap().ino(), lab.base().metadata().unwrap().ino());
    assert_eq!((chain.layers.len(), mode(chain.top())), (1, 0o600));
    K::assert_sound(&chain);
    assert_eq!(lab.disks.open(&lab.path("a"), chain.top_name()).await.unwrap(), chain);
    assert!(K::content(&chain) == padded(&chain, noise(BASE_BYTES)));
    let allocated = chain.allocated().unwrap();
    assert!(allocated.shared >= BASE_BYTES as u64 && (1..K::EMPTY).contains(&allocated.own), "{allocated:?}");
}

async fn a_pushed_layer_takes_the_writes_and_can_grow_the_disk<K: Kind>() {
    let lab = Lab::<K>::new(BASE_BYTES);
    let first = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    K::write(&first, M, K64, 1);
    let before = K::content(&first);
    let second = lab.disks.push(&first, Some(700)).await.unwrap();
    assert_eq!((second.virtual_bytes, second.layers.len()), (700 * MIB, 2));
    assert_eq!((mode(first.top()), mode(second.top())), (0o444, 0o600));
    assert!(K::content(&second) == padded(&second, before.clone()));
    K::write(&second, M, K4, 2);
    K::write(&second, 600 * M, K64, 3);
    let mut expected = padded(&second, before.clone());
    expected[M..M + K4].fill(2);
    expected[600 * M..600 * M + K64].fill(3);
    assert!(K::content(&second) == expected);
    assert!(K::content(&first) == before);
    let third = lab.disks.push(&second, None).await.unwrap();
    assert_eq!(third.virtual_bytes, second.virtual_bytes);
    K::assert_sound(&third);
    assert_eq!(lab.disks.open(&lab.path("a"), third.top_name()).await.unwrap(), third);
    let error = lab.disks.push(&third, Some(699)).await.unwrap_err();
    assert!(matches!(error, DiskError::TooSmall { asked_mb: 699, base_mb: 700 }), "{error}");
}

async fn linked_chains_go_separate_ways_and_outlive_one_another<K: Kind>() {
    let lab = Lab::<K>::new(BASE_BYTES);
    let source = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    K::write(&source, 0, K64, 1);
    let clone = lab.disks.link(&source, &lab.dir("b")).await.unwrap();
    assert_eq!(mode(clone.top()), 0o444);
    assert_eq!(clone.allocated().unwrap().own, 0);
    let (mine, yours) =
        (lab.disks.push(&source, None).await.unwrap(), lab.disks.push(&clone, None).await.unwrap());
    K::write(&mine, 0, K4, 2);
    K::write(&yours, M, K4, 3);
    assert!(K::content(&mine)[..K64] == [[2; K4].as_slice(), &[1; K64 - K4]].concat());
    std::fs::remove_dir_all(lab.path("a")).unwrap();
    K::assert_sound(&yours);
    assert_eq!(lab.disks.open(&lab.path("b"), yours.top_name()).await.unwrap(), yours);
    let mut expected = padded(&yours, noise(BASE_BYTES));
    expected[..65536].fill(1);
    expected[1 << 20..(1 << 20) + 4096].fill(3);
    assert!(K::content(&yours) == expected);
    assert!(matches!(lab.disks.link(&yours, &lab.path("b")).await, Err(DiskError::Exists { .. })));
    K::assert_sound(&yours);
}

async fn flattening_keeps_zeros_zero_and_holes_holes<K: Kind>() {
    let lab = Lab::<K>::new(BASE_BYTES);
    let one = lab.disks.create(&lab.dir("a"), &lab.base(), 64).await.unwrap();
    for (at, length, value) in [(0, M, 1), (20 * M, M, 9), (40 * M, 8 * M, 0)] {
        K::write(&one, at, length, value);
    }
    let two = lab.disks.push(&one, Some(1024)).await.unwrap();
    for (at, length) in [(0, K64), (2 * M, M / 2), (20 * M, M)] {
        K::write(&two, at, length, 0);
    }
    let three = lab.disks.push(&two, None).await.unwrap();
    K::write(&three, 900 * M, K4, 4);
    let before = K::content(&three);
    let flat = lab.disks.flatten(&three, 0).await.unwrap();
    assert_eq!((flat.layers.len(), mode(flat.top())), (1, 0o600));
    K::assert_sound(&flat);
    assert!(K::content(&flat) == before);
    assert!(
        before[..65536].iter().all(|b| *b == 0)
            && before[2 << 20..(2 << 20) + (512 << 10)].iter().all(|b| *b == 0)
    );
    assert!(allocated_bytes(flat.top()).unwrap() < K::EMPTY + MIB);
    let half = lab.disks.flatten(&three, 1).await.unwrap();
    assert_eq!((half.layers.len(), &half.layers[0]), (2, &three.layers[0]));
    assert!(K::content(&half) == before);
    K::assert_sound(&half);
    lab.disks.remove_unlisted(&lab.path("a"), &half).await.unwrap();
    assert_eq!(names(&lab.path("a")).len(), 3);
    assert!(K::content(&half) == before);
    assert_eq!(lab.disks.flatten(&half, 1).await.unwrap(), half);
}

async fn a_merged_layer_takes_writes_in_place<K: Kind>() {
    let lab = Lab::<K>::new(BASE_BYTES);
    let one = lab.disks.create(&lab.dir("a"), &lab.base(), 64).await.unwrap();
    K::write(&one, 0, 4 * M, 1);
    let two = lab.disks.push(&one, None).await.unwrap();
    let flat = lab.disks.flatten(&two, 0).await.unwrap();
    let length = flat.top().metadata().unwrap().len();
    K::write(&flat, 0, 4 * M, 2);
    assert_eq!(flat.top().metadata().unwrap().len(), length);
    K::assert_sound(&flat);
}

async fn only_disk_files_that_are_not_listed_are_removed<K: Kind>() {
    let lab = Lab::<K>::new(BASE_BYTES);
    let dir = lab.dir("a");
    let chain = lab.disks.create(&dir, &lab.base(), 8).await.unwrap();
    let pushed = lab.disks.push(&chain, None).await.unwrap();
    for other in ["capsule.json", "disk-1.qcow2", "memory-0.base"] {
        std::fs::write(dir.join(other), "").unwrap();
    }
    lab.disks.remove_unlisted(&dir, &chain).await.unwrap();
    assert_eq!(names(&dir).len(), 5);
    assert!(!pushed.top().exists() && chain.top().exists() && chain.base.exists());
    lab.disks.sync(&chain).await.unwrap();
}

async fn an_existing_disk_is_never_overwritten<K: Kind>() {
    let lab = Lab::<K>::new(BASE_BYTES);
    let dir = lab.dir("a");
    std::fs::write(dir.join("disk-0"), "precious").unwrap();
    let error = lab.disks.create(&dir, &lab.base(), 64).await.unwrap_err();
    assert!(matches!(error, DiskError::Exists { .. }), "{error}");
    assert_eq!(std::fs::read(dir.join("disk-0")).unwrap(), b"precious");
    assert_eq!(names(&dir), ["disk-0"]);
}

async fn sizes_and_bases_that_cannot_be_are_refused_and_leave_no_file<K: Kind>() {
    let lab = Lab::<K>::new(BASE_BYTES);
    let dir = lab.dir("a");
    let error = lab.disks.create(&dir, &lab.path("nowhere.raw"), 64).await.unwrap_err();
    assert!(matches!(&error, DiskError::BackingMissing { path } if path.ends_with("nowhere.raw")), "{error}");
    let error = lab.disks.create(&dir, &lab.base(), 2).await.unwrap_err();
    assert!(matches!(error, DiskError::TooSmall { asked_mb: 2, base_mb: 3 }), "{error}");
    let error = lab.disks.create(&dir, &lab.base(), u32::MAX).await.unwrap_err();
    assert!(matches!(error, DiskError::TooLarge { .. }), "{error}");
    assert_eq!(names(&dir), Vec::<String>::new());
}

async fn a_chain_has_a_limit<K: Kind>() {
    let lab = Lab::<K>::new(BASE_BYTES);
    let mut chain = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    while chain.layers.len() < MOST_LAYERS {
        chain = lab.disks.push(&chain, None).await.unwrap();
    }
    assert_eq!(lab.disks.open(&lab.path("a"), chain.top_name()).await.unwrap(), chain);
    assert!(matches!(
        lab.disks.push(&chain, None).await,
        Err(DiskError::TooDeep { layers: MOST_LAYERS, .. })
    ));
    let flat = lab.disks.flatten(&chain, 0).await.unwrap();
    assert!(K::content(&flat) == padded(&flat, noise(BASE_BYTES)));
}

async fn a_link_and_a_name_of_another_kind_are_not_opened<K: Kind>() {
    let lab = Lab::<K>::new(BASE_BYTES);
    let chain = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    let dir = lab.dir("b");
    std::os::unix::fs::symlink(chain.top(), dir.join(chain.top_name())).unwrap();
    assert!(lab.disks.open(&dir, chain.top_name()).await.is_err());
    for name in ["disk-0", "", "..", "../a/disk-0"] {
        let error = lab.disks.open(&lab.path("a"), name).await.unwrap_err();
        assert!(matches!(error, DiskError::NotALayer { .. }), "{error}");
    }
}

async fn a_merge_that_is_given_up_leaves_no_file<K: Kind>() {
    let lab = Lab::<K>::new(BASE_BYTES);
    let one = lab.disks.create(&lab.dir("a"), &lab.base(), 1024).await.unwrap();
    K::write(&one, 0, 256 * M, 1);
    let two = lab.disks.push(&one, None).await.unwrap();
    let merge = lab.disks.flatten(&two, 0);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(5), merge).await.is_err());
    // The work notices by itself; the limit only catches a hang.
    for _ in 0..1000 {
        if names(&lab.path("a")).len() == 3 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{:?}", names(&lab.path("a")));
}
