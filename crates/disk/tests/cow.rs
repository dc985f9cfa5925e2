//! What is particular to copy-on-write layers: damage in them, and what flattening leaves out.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::cow::{CHUNK, StandInKernel, exceptions};
use common::{Cow, Kind, Lab, names, noise};
use wrenn_disk::{Chain, CowDisks, DiskError, Qcow2Disks, RootDisks};

const BASE_BYTES: usize = 3 << 20;
const STORE: u64 = 4096;

fn change(layer: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(layer).unwrap().write_all_at(bytes, at).unwrap();
}

/// A disk of 8 MiB with a chunk written in the lower of its two layers.
async fn two_layers(lab: &Lab<Cow>) -> Chain {
    let one = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    Cow::write(&one, 0, CHUNK, 1);
    lab.disks.push(&one, None).await.unwrap()
}

fn chunks(layer: &Path) -> Vec<u64> {
    exceptions(&File::open(layer).unwrap()).into_iter().map(|(old, _)| old).collect()
}

#[tokio::test]
async fn damage_in_a_header_is_found_when_the_chain_is_opened() {
    let lab = Lab::<Cow>::new(BASE_BYTES);
    let chain = two_layers(&lab).await;
    let open = async || lab.disks.open(&lab.path("a"), chain.top_name()).await;
    assert_eq!(open().await.unwrap(), chain);
    let cases: [(u64, &[u8], &str); 6] = [
        (0, b"X", "does not start like"),
        (17, &[1], "checksum"),
        // No digit of an id, which may be there already.
        (30, b"!", "checksum"),
        (STORE, &[0; 4], "no exception store"),
        (STORE + 4, &[0], "could not write to it"),
        (STORE + 12, &[16], "another size"),
    ];
    for layer in &chain.layers {
        let sound = std::fs::read(layer).unwrap();
        for (at, bytes, says) in cases {
            change(layer, at, bytes);
            let error = open().await.unwrap_err();
            assert!(error.to_string().contains(says), "{at}: {error}");
            change(layer, 0, &sound[..8192]);
        }
        File::options().write(true).open(layer).unwrap().set_len(sound.len() as u64 - 4096).unwrap();
        let error = open().await.unwrap_err();
        assert!(error.to_string().contains("shorter than its capacity"), "{error}");
        File::options().write(true).open(layer).unwrap().set_len(sound.len() as u64).unwrap();
    }
    assert_eq!(open().await.unwrap(), chain);
}

#[tokio::test]
async fn damage_in_a_store_is_found_and_the_old_layers_stay() {
    let lab = Lab::<Cow>::new(BASE_BYTES);
    let chain = two_layers(&lab).await;
    Cow::write(&chain, CHUNK, CHUNK, 2);
    let area = STORE + 4096;
    let entry = |old: u64, new: u64| [old.to_le_bytes(), new.to_le_bytes()].concat();
    for (slot, bytes, says) in [
        (0, entry(2048, 2), "behind the end of the disk"),
        (0, entry(0, 1), "impossible place"),
        (0, entry(0, 258), "impossible place"),
        (0, entry(0, u64::MAX), "impossible place"),
        (1, entry(1, 3), "twice"),
    ] {
        change(chain.top(), area + slot * 16, &bytes);
        let error = lab.disks.flatten(&chain, 0).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        change(chain.top(), area, &[entry(1, 2), entry(0, 0)].concat());
    }
    assert_eq!(names(&lab.path("a")).len(), 3);
    lab.disks.flatten(&chain, 0).await.unwrap();
}

/// Gives a layer another name below, with a right checksum.
fn rename_below(layer: &Path, name: &str) {
    let mut block = [0; 512];
    File::open(layer).unwrap().read_exact_at(&mut block, 0).unwrap();
    block[12..16].copy_from_slice(&u32::try_from(name.len()).unwrap().to_le_bytes());
    block[24..508].fill(0);
    block[24..24 + name.len()].copy_from_slice(name.as_bytes());
    let sum = crc32c::crc32c(&block[..508]).to_le_bytes();
    block[508..].copy_from_slice(&sum);
    change(layer, 0, &block);
}

#[tokio::test]
async fn layers_that_build_on_anything_but_a_disk_in_their_directory_are_refused() {
    let lab = Lab::<Cow>::new(BASE_BYTES);
    let chain = two_layers(&lab).await;
    let dir = lab.path("a");
    for (name, says) in [
        ("/etc/passwd", "whose name is not"),
        ("../a/disk-0", "whose name is not"),
        (chain.top_name(), "builds on itself"),
    ] {
        rename_below(chain.top(), name);
        let error = lab.disks.open(&dir, chain.top_name()).await.unwrap_err();
        assert!(error.to_string().contains(says), "{name}: {error}");
    }
    rename_below(chain.top(), "disk-0000000000000002.cow");
    let error = lab.disks.open(&dir, chain.top_name()).await.unwrap_err();
    assert!(matches!(error, DiskError::BackingMissing { .. }), "{error}");
}

#[tokio::test]
async fn a_layer_of_the_other_driver_is_refused_by_each() {
    let lab = Lab::<Cow>::new(BASE_BYTES);
    let (cow, qcow2) = (CowDisks, Qcow2Disks::default());
    let one = cow.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    let other = qcow2.create(&lab.dir("b"), &lab.base(), 8).await.unwrap();
    let error = qcow2.open(&lab.path("a"), one.top_name()).await.unwrap_err();
    assert!(matches!(error, DiskError::NotALayer { .. }), "{error}");
    let error = cow.open(&lab.path("b"), other.top_name()).await.unwrap_err();
    assert!(matches!(error, DiskError::NotALayer { .. }), "{error}");
}

#[tokio::test]
async fn a_base_that_is_no_whole_number_of_sectors_is_refused() {
    let lab = Lab::<Cow>::new(BASE_BYTES + 100);
    let dir = lab.dir("a");
    let error = lab.disks.create(&dir, &lab.base(), 8).await.unwrap_err();
    assert!(matches!(error, DiskError::OddBase { bytes: 3_145_828, .. }), "{error}");
    assert_eq!(names(&dir), Vec::<String>::new());
}

#[tokio::test]
async fn a_merge_leaves_out_zeros_where_zeros_show_and_nothing_else() {
    let lab = Lab::<Cow>::new(BASE_BYTES + 512);
    let one = lab.disks.create(&lab.dir("a"), &lab.base(), 8).await.unwrap();
    // In the base, half in the base, behind it; and one that only the lowest layer has.
    let (inside, edge, behind, low) = (10, 768, 800, 900);
    Cow::write(&one, low * CHUNK, CHUNK, 5);
    Cow::write(&one, 1000 * CHUNK, CHUNK, 0);
    let two = lab.disks.push(&one, None).await.unwrap();
    for chunk in [behind, low, edge, inside] {
        Cow::write(&two, chunk * CHUNK, CHUNK, 0);
    }
    let three = lab.disks.push(&two, None).await.unwrap();
    Cow::write(&three, 20 * CHUNK, CHUNK, 6);
    let before = Cow::content(&three);
    let all = lab.disks.flatten(&three, 0).await.unwrap();
    assert_eq!(chunks(all.top()), [10, 20, 768]);
    let half = lab.disks.flatten(&three, 1).await.unwrap();
    assert_eq!(chunks(half.top()), [10, 20, 768, 900]);
    assert!(Cow::content(&all) == before && Cow::content(&half) == before);
}

#[tokio::test]
async fn a_merge_of_exactly_full_areas_ends_where_the_kernel_looks_for_the_end() {
    let lab = Lab::<Cow>::new(BASE_BYTES);
    for count in [255, 256, 257, 512, 2048] {
        let one = lab.disks.create(&lab.dir(&count.to_string()), &lab.base(), 8).await.unwrap();
        // From the end to the front, as no reader may count on an order.
        let mut kernel = StandInKernel::load(one.top());
        (2048 - count..2048).rev().for_each(|chunk| kernel.write(chunk, &[(chunk % 251) as u8 + 1; CHUNK]));
        let two = lab.disks.push(&one, None).await.unwrap();
        let flat = lab.disks.flatten(&two, 0).await.unwrap();
        Cow::assert_sound(&flat);
        assert!(chunks(flat.top()).into_iter().eq(2048 - count..2048), "{count}");
        assert!(Cow::content(&flat) == Cow::content(&two), "{count}");
        assert!(Cow::content(&flat)[..CHUNK] == noise(CHUNK) || count == 2048);
    }
}
