//! What is particular to qcow2 layers, judged by QEMU's own tools.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

mod common;

use common::qcow2::{io, qemu};
use common::{Kind, Lab, Qcow2, names, noise};
use wrenn_disk::{DiskError, MIB, Qcow2Disks, RootDisks, allocated_bytes};

const BASE_BYTES: usize = 3 << 20;

#[tokio::test]
async fn qemu_accepts_disks_of_every_size() {
    let lab = Lab::<Qcow2>::new(512);
    for (index, mb) in
        [1, 2, 511, 512, 513, 10 << 10, 512 << 10, 2 << 20, (4 << 20) + 1, 1 << 28].iter().enumerate()
    {
        let chain = lab.disks.create(&lab.dir(&index.to_string()), &lab.base(), *mb).await.unwrap();
        Qcow2::assert_sound(&chain);
        assert_eq!(lab.disks.open(&lab.path(&index.to_string()), chain.top_name()).await.unwrap(), chain);
        let last = chain.virtual_bytes - 65536;
        io(
            chain.top(),
            &[format!("write -P 5 {last} 64k"), format!("read -P 5 {last} 64k"), "read -P 0 512 512".into()],
        );
        Qcow2::assert_sound(&chain);
        assert!(allocated_bytes(chain.top()).unwrap() < MIB, "{mb} MiB");
    }
}

/// A layer made by `qemu-img` with `backing` in its header, in a directory that has `disk-0`.
async fn foreign(lab: &Lab<Qcow2>, format: &str, backing: &str, options: &[&str]) -> DiskError {
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
    let lab = Lab::<Qcow2>::new(BASE_BYTES);
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
    let lab = Lab::<Qcow2>::new(BASE_BYTES);
    let variants =
        ["cluster_size=2M", "compat=0.10", "extended_l2=on", "refcount_bits=8", "compression_type=zstd"];
    for options in variants {
        let error = foreign(&lab, "raw", "disk-0", &["-o", options]).await;
        assert!(matches!(error, DiskError::NotALayer { .. }), "{options}: {error}");
    }
}

#[tokio::test]
async fn damage_in_the_tables_is_found_and_the_old_layers_stay() {
    let lab = Lab::<Qcow2>::new(BASE_BYTES);
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
async fn a_missing_tool_is_named_with_the_command_that_installs_it() {
    let error = Qcow2Disks::new("qemu-img-that-is-not-there").version().await.unwrap_err();
    assert!(error.to_string().contains("apt-get install qemu-utils"), "{error}");
    assert!(Qcow2Disks::default().version().await.unwrap().contains("qemu-img version"));
}

#[tokio::test]
async fn flattening_keeps_what_was_discarded_discarded() {
    let lab = Lab::<Qcow2>::new(BASE_BYTES);
    let one = lab.disks.create(&lab.dir("a"), &lab.base(), 64).await.unwrap();
    io(one.top(), &["write -P 9 20M 1M".into()]);
    let two = lab.disks.push(&one, None).await.unwrap();
    io(two.top(), &["discard 2M 512k".into(), "discard 20M 1M".into()]);
    let before = Qcow2::content(&two);
    assert!(before[2 << 20..(2 << 20) + (512 << 10)].iter().all(|b| *b == 0));
    let flat = lab.disks.flatten(&two, 0).await.unwrap();
    Qcow2::assert_sound(&flat);
    assert!(Qcow2::content(&flat) == before);
    assert!(allocated_bytes(flat.top()).unwrap() < MIB);
}
