//! Chains of qcow2 layers, judged by QEMU's own tools.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Lab, assert_sound, content, io, noise, qemu};
use wrenn_disk::{Chain, DiskError, MIB, MOST_LAYERS, Qcow2Disks, RootDisks, allocated_bytes};

const BASE_BYTES: usize = 3 << 20;

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn names(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn padded(chain: &Chain, mut start: Vec<u8>) -> Vec<u8> {
    start.resize(usize::try_from(chain.virtual_bytes).unwrap(), 0);
    start
}

#[tokio::test]
async fn a_new_disk_shares_its_base_and_reads_like_it() {
    let lab = Lab::new(BASE_BYTES);
    let chain = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    assert_eq!(chain.virtual_bytes, 8 * MIB);
    assert_eq!(chain.base.metadata().unwrap().ino(), lab.base().metadata().unwrap().ino());
    assert_eq!((chain.layers.len(), mode(chain.top())), (1, 0o600));
    assert_sound(&chain);
    assert_eq!(lab.disks.open(&lab.path("a"), chain.top_name()).await.unwrap(), chain);
    assert!(content(&chain) == padded(&chain, noise(BASE_BYTES)));
    let allocated = chain.allocated().unwrap();
    assert!(allocated.shared >= BASE_BYTES as u64 && (1..MIB).contains(&allocated.own), "{allocated:?}");
}

#[tokio::test]
async fn qemu_accepts_disks_of_every_size() {
    let lab = Lab::new(512);
    for (index, mb) in
        [1, 2, 511, 512, 513, 10 << 10, 512 << 10, 2 << 20, (4 << 20) + 1, 1 << 28].iter().enumerate()
    {
        let chain = lab.disks.create(&lab.dir(&index.to_string()), &lab.base(), *mb).await.unwrap();
        assert_sound(&chain);
        assert_eq!(lab.disks.open(&lab.path(&index.to_string()), chain.top_name()).await.unwrap(), chain);
        let last = chain.virtual_bytes - 65536;
        io(
            chain.top(),
            &[format!("write -P 5 {last} 64k"), format!("read -P 5 {last} 64k"), "read -P 0 512 512".into()],
        );
        assert_sound(&chain);
        assert!(allocated_bytes(chain.top()).unwrap() < MIB, "{mb} MiB");
    }
}

#[tokio::test]
async fn a_pushed_layer_takes_the_writes_and_can_grow_the_disk() {
    let lab = Lab::new(BASE_BYTES);
    let first = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    io(first.top(), &["write -P 1 1M 64k".into()]);
    let before = content(&first);
    let second = lab.disks.push(&first, Some(700)).await.unwrap();
    assert_eq!((second.virtual_bytes, second.layers.len()), (700 * MIB, 2));
    assert_eq!((mode(first.top()), mode(second.top())), (0o444, 0o600));
    assert!(content(&second) == padded(&second, before.clone()));
    io(second.top(), &["write -P 2 1M 4k".into(), "write -P 3 600M 64k".into(), "read -P 1 1028k 4k".into()]);
    assert!(content(&first) == before);
    let third = lab.disks.push(&second, None).await.unwrap();
    assert_eq!(third.virtual_bytes, second.virtual_bytes);
    assert_sound(&third);
    assert_eq!(lab.disks.open(&lab.path("a"), third.top_name()).await.unwrap(), third);
    let error = lab.disks.push(&third, Some(699)).await.unwrap_err();
    assert!(matches!(error, DiskError::TooSmall { asked_mb: 699, base_mb: 700 }), "{error}");
}

#[tokio::test]
async fn linked_chains_go_separate_ways_and_outlive_one_another() {
    let lab = Lab::new(BASE_BYTES);
    let source = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    io(source.top(), &["write -P 1 0 64k".into()]);
    let clone = lab.disks.link(&source, &lab.dir("b")).await.unwrap();
    assert_eq!(mode(clone.top()), 0o444);
    assert_eq!(clone.allocated().unwrap().own, 0);
    let (mine, yours) =
        (lab.disks.push(&source, None).await.unwrap(), lab.disks.push(&clone, None).await.unwrap());
    io(mine.top(), &["write -P 2 0 4k".into()]);
    io(yours.top(), &["read -P 1 0 64k".into(), "write -P 3 1M 4k".into()]);
    io(mine.top(), &["read -P 2 0 4k".into()]);
    std::fs::remove_dir_all(lab.path("a")).unwrap();
    assert_sound(&yours);
    assert_eq!(lab.disks.open(&lab.path("b"), yours.top_name()).await.unwrap(), yours);
    let mut expected = padded(&yours, noise(BASE_BYTES));
    expected[..65536].fill(1);
    expected[1 << 20..(1 << 20) + 4096].fill(3);
    assert!(content(&yours) == expected);
    assert!(matches!(lab.disks.link(&yours, &lab.path("b")).await, Err(DiskError::Exists { .. })));
    assert_sound(&yours);
}

#[tokio::test]
async fn flattening_keeps_zeros_zero_and_holes_holes() {
    let lab = Lab::new(BASE_BYTES);
    let one = lab.disks.create(&lab.dir("a"), &lab.base(), 64).await.unwrap();
    io(one.top(), &["write -P 1 0 1M".into(), "write -P 9 20M 1M".into(), "write -P 0 40M 8M".into()]);
    let two = lab.disks.push(&one, Some(1024)).await.unwrap();
    io(two.top(), &["write -z 0 64k".into(), "discard 2M 512k".into(), "discard 20M 1M".into()]);
    let three = lab.disks.push(&two, None).await.unwrap();
    io(three.top(), &["write -P 4 900M 4k".into()]);
    let before = content(&three);
    let flat = lab.disks.flatten(&three, 0).await.unwrap();
    assert_eq!((flat.layers.len(), mode(flat.top())), (1, 0o600));
    assert_sound(&flat);
    assert!(content(&flat) == before);
    assert!(
        before[..65536].iter().all(|b| *b == 0)
            && before[2 << 20..(2 << 20) + (512 << 10)].iter().all(|b| *b == 0)
    );
    assert!(allocated_bytes(flat.top()).unwrap() < 2 * MIB);
    let half = lab.disks.flatten(&three, 1).await.unwrap();
    assert_eq!((half.layers.len(), &half.layers[0]), (2, &three.layers[0]));
    assert!(content(&half) == before);
    assert_sound(&half);
    lab.disks.remove_unlisted(&lab.path("a"), &half).await.unwrap();
    assert_eq!(names(&lab.path("a")).len(), 3);
    assert!(content(&half) == before);
    assert_eq!(lab.disks.flatten(&half, 1).await.unwrap(), half);
}

#[tokio::test]
async fn a_merged_layer_takes_writes_in_place() {
    let lab = Lab::new(BASE_BYTES);
    let one = lab.disks.create(&lab.dir("a"), &lab.base(), 64).await.unwrap();
    io(one.top(), &["write -P 1 0 4M".into()]);
    let two = lab.disks.push(&one, None).await.unwrap();
    let flat = lab.disks.flatten(&two, 0).await.unwrap();
    let length = flat.top().metadata().unwrap().len();
    io(flat.top(), &["write -P 2 0 4M".into()]);
    assert_eq!(flat.top().metadata().unwrap().len(), length);
    assert_sound(&flat);
}

#[tokio::test]
async fn only_disk_files_that_are_not_listed_are_removed() {
    let lab = Lab::new(BASE_BYTES);
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

#[tokio::test]
async fn an_existing_disk_is_never_overwritten() {
    let lab = Lab::new(BASE_BYTES);
    let dir = lab.dir("a");
    std::fs::write(dir.join("disk-0"), "precious").unwrap();
    let error = lab.disks.create(&dir, &lab.base(), 64).await.unwrap_err();
    assert!(matches!(error, DiskError::Exists { .. }), "{error}");
    assert_eq!(std::fs::read(dir.join("disk-0")).unwrap(), b"precious");
    assert_eq!(names(&dir), ["disk-0"]);
}

#[tokio::test]
async fn sizes_and_bases_that_cannot_be_are_refused_and_leave_no_file() {
    let lab = Lab::new(BASE_BYTES);
    let dir = lab.dir("a");
    let error = lab.disks.create(&dir, &lab.path("nowhere.raw"), 64).await.unwrap_err();
    assert!(matches!(&error, DiskError::BackingMissing { path } if path.ends_with("nowhere.raw")), "{error}");
    let error = lab.disks.create(&dir, &lab.base(), 2).await.unwrap_err();
    assert!(matches!(error, DiskError::TooSmall { asked_mb: 2, base_mb: 3 }), "{error}");
    let error = lab.disks.create(&dir, &lab.base(), u32::MAX).await.unwrap_err();
    assert!(matches!(error, DiskError::TooLarge { .. }), "{error}");
    assert_eq!(names(&dir), Vec::<String>::new());
}

#[tokio::test]
async fn a_chain_has_a_limit() {
    let lab = Lab::new(BASE_BYTES);
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
    assert!(content(&flat) == padded(&flat, noise(BASE_BYTES)));
}

/// A layer made by `qemu-img` with `backing` in its header, in a directory that has `disk-0`.
async fn foreign(lab: &Lab, format: &str, backing: &str, options: &[&str]) -> DiskError {
    let dir = lab.path("foreign");
    let _ = std::fs::create_dir(&dir);
    std::fs::write(dir.join("disk-0"), noise(65536)).unwrap();
    let top = dir.join("disk-0000000000000001.qcow2");
    let head = ["create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", backing];
    let args = [&head, options, &[top.to_str().unwrap(), "1M"]].concat();
    qemu("qemu-img", &args);
    lab.disks.open(&dir, "disk-0000000000000001.qcow2").await.unwrap_err()
}

#[tokio::test]
async fn layers_that_build_on_anything_but_a_disk_in_their_directory_are_refused() {
    let lab = Lab::new(BASE_BYTES);
    let outside = lab.disks.create(&lab.dir("other"), &lab.base(), 8).await.unwrap();
    let absolute = outside.top().to_str().unwrap();
    let upwards = format!("../other/{}", outside.top_name());
    let cases = [
        ("qcow2", absolute, "whose name is not"),
        ("qcow2", &upwards, "whose name is not"),
        ("qcow2", "json:{\"driver\":\"null-co\"}", "whose name is not"),
        ("qcow2", "disk-0000000000000001.qcow2", "builds on itself"),
        ("raw", "disk-0000000000000002.qcow2", "another format than its name says"),
        ("raw", "/etc/passwd", "another format than its name says"),
        ("qcow2", "disk-0", "another format than its name says"),
        ("vmdk", "disk-0", "of another format"),
    ];
    for (format, backing, says) in cases {
        let error = foreign(&lab, format, backing, &[]).await;
        assert!(error.to_string().contains(says), "{backing}: {error}");
    }
    let error = foreign(&lab, "qcow2", "disk-0000000000000002.qcow2", &[]).await;
    assert!(matches!(error, DiskError::BackingMissing { .. }), "{error}");
}

#[tokio::test]
async fn variants_of_the_format_that_layers_do_not_use_are_refused() {
    let lab = Lab::new(BASE_BYTES);
    let variants =
        ["cluster_size=2M", "compat=0.10", "extended_l2=on", "refcount_bits=8", "compression_type=zstd"];
    for options in variants {
        let error = foreign(&lab, "raw", "disk-0", &["-o", options]).await;
        assert!(matches!(error, DiskError::NotALayer { .. }), "{options}: {error}");
    }
}

#[tokio::test]
async fn a_link_and_a_name_of_another_kind_are_not_opened() {
    let lab = Lab::new(BASE_BYTES);
    let chain = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    let dir = lab.dir("b");
    std::os::unix::fs::symlink(chain.top(), dir.join(chain.top_name())).unwrap();
    assert!(lab.disks.open(&dir, chain.top_name()).await.is_err());
    for name in ["disk-0", "", "..", "../a/disk-0"] {
        let error = lab.disks.open(&lab.path("a"), name).await.unwrap_err();
        assert!(matches!(error, DiskError::NotALayer { .. }), "{error}");
    }
}

#[tokio::test]
async fn damage_in_the_tables_is_found_and_the_old_layers_stay() {
    let lab = Lab::new(BASE_BYTES);
    let one = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    let two = lab.disks.push(&one, None).await.unwrap();
    for entry in [0x1234_u64, 1 << 50, (1 << 63) | 0x0123_4567_89ab_0000] {
        let file = std::fs::OpenOptions::new().write(true).open(two.top()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &entry.to_be_bytes(), 65536).unwrap();
        let error = lab.disks.flatten(&two, 0).await.unwrap_err();
        assert!(matches!(error, DiskError::NotALayer { .. }), "{error}");
    }
    assert_eq!(names(&lab.path("a")).len(), 3);
}

#[tokio::test]
async fn a_merge_that_is_given_up_leaves_no_file() {
    let lab = Lab::new(BASE_BYTES);
    let one = lab.disks.create(&lab.dir("a"), &lab.base(), 1024).await.unwrap();
    io(one.top(), &["write -P 1 0 256M".into()]);
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

#[tokio::test]
async fn a_missing_tool_is_named_with_the_command_that_installs_it() {
    let error = Qcow2Disks::new("qemu-img-that-is-not-there").version().await.unwrap_err();
    assert!(error.to_string().contains("apt-get install qemu-utils"), "{error}");
    assert!(Qcow2Disks::default().version().await.unwrap().contains("qemu-img version"));
}
