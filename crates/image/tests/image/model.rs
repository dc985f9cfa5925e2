//! Images against a plain vector of bytes.

use std::fs;
use std::path::Path;

use crate::common::{Change, Fixture, blocks_of, overrides, read_all, settle};
use proptest::prelude::*;
use wrenn_image::{BLOCK_BYTES, BaseWriter, Image, ImageError, LayerWriter, Piece};

/// Not a multiple of a chunk, so that the last chunk is a short one.
const BLOCKS: usize = 75;

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = (0..BLOCKS, 1..24usize, 0..4u8, any::<bool>());
    let change = change.prop_map(|(block, count, fill, explicit)| Change { block, count, fill, explicit });
    proptest::collection::vec(change, 0..8).prop_map(|changes| settle(changes, BLOCKS))
}

fn fixture() -> impl Strategy<Value = (Vec<Change>, Vec<Vec<Change>>)> {
    (changes(), proptest::collection::vec(changes(), 0..=8))
}

fn build(base: &[Change], layers: &[Vec<Change>]) -> (Fixture, Image) {
    let mut fixture = Fixture::new(BLOCKS, base);
    for layer in layers {
        fixture.layer(layer);
    }
    let image = fixture.image();
    (fixture, image)
}

fn expected_overrides(fixture: &Fixture) -> Vec<Option<Vec<u8>>> {
    let blocks = fixture.model.chunks(BLOCK_BYTES).zip(&fixture.overridden);
    blocks.map(|(bytes, overridden)| overridden.then(|| bytes.to_vec())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn an_image_reads_as_its_model((base, layers) in fixture(), block in 0..BLOCKS, count in 0..BLOCKS) {
        let (fixture, image) = build(&base, &layers);
        prop_assert!(read_all(&image).unwrap() == fixture.model);
        let count = count.min(BLOCKS - block);
        let mut part = vec![0xAA; count * BLOCK_BYTES];
        image.read(block as u64, &mut part).unwrap();
        prop_assert_eq!(&part[..], &fixture.model[block * BLOCK_BYTES..][..part.len()]);
        image.verify_base().unwrap();
    }

    #[test]
    fn overrides_are_the_blocks_of_the_layers((base, layers) in fixture()) {
        let (fixture, image) = build(&base, &layers);
        prop_assert_eq!(overrides(&image).unwrap(), expected_overrides(&fixture));
        prop_assert!(image.overrides().is_sorted_by(|a, b| a.end() <= b.block));
    }

    #[test]
    fn a_cursor_finds_any_block_in_any_order(
        (base, layers) in fixture(),
        order in proptest::collection::vec(0..BLOCKS, 0..40),
    ) {
        let (fixture, image) = build(&base, &layers);
        let expected = expected_overrides(&fixture);
        let mut cursor = image.cursor();
        for block in (0..BLOCKS).chain(order) {
            let found = cursor.at(block as u64).unwrap().map(|piece| match piece {
                Piece::Data(bytes) => bytes.to_vec(),
                Piece::Zero(count) => vec![0; usize::try_from(count).unwrap() * BLOCK_BYTES],
            });
            prop_assert_eq!(&found, &expected[block]);
        }
        prop_assert_eq!(cursor.at(BLOCKS as u64).unwrap(), None);
    }

    #[test]
    fn a_layer_of_changes_turns_the_image_into_what_was_compared((base, layers) in fixture(), now in changes()) {
        let (mut fixture, image) = build(&base, &layers[..layers.len().min(7)]);
        let mut expected = fixture.model.clone();
        let path = fixture.path("changes");
        let mut writer = LayerWriter::create(&path, expected.len() as u64).unwrap();
        let mut cursor = image.cursor();
        let mut differing = 0;
        for change in &now {
            let (at, bytes) = (change.block * BLOCK_BYTES, blocks_of(change));
            for (index, (new, old)) in bytes.chunks(BLOCK_BYTES).zip(expected[at..].chunks(BLOCK_BYTES)).enumerate() {
                differing += u64::from(new != old || !fixture.overridden[change.block + index]);
            }
            expected[at..at + bytes.len()].copy_from_slice(&bytes);
            writer.write_changed(&mut cursor, change.block as u64, &bytes).unwrap();
        }
        let written = writer.finish(false).unwrap();
        prop_assert_eq!(written.data_blocks + written.zero_blocks, differing);
        fixture.layers.push(path);
        prop_assert!(read_all(&fixture.image()).unwrap() == expected);
    }

    #[test]
    fn materialising_keeps_the_content((base, layers) in fixture()) {
        let (fixture, image) = build(&base, &layers);
        let written = image.materialise(&fixture.path("flat"), false).unwrap();
        let flat = Image::create(&fixture.path("flat-image"), &fixture.path("flat"), &[], false).unwrap();
        flat.verify_base().unwrap();
        prop_assert!(read_all(&flat).unwrap() == fixture.model);
        prop_assert_eq!(&fs::read(fixture.path("flat")).unwrap()[..fixture.model.len()], &fixture.model[..]);
        prop_assert_eq!(written.data_blocks + written.zero_blocks, BLOCKS as u64);
    }

    #[test]
    fn a_copy_has_the_sums_of_a_base_written_block_by_block((base, layers) in fixture()) {
        let (fixture, image) = build(&base, &layers);
        image.materialise(&fixture.path("flat"), false).unwrap();
        let mut writer = BaseWriter::create(&fixture.path("plain"), fixture.model.len() as u64).unwrap();
        writer.write(0, &fixture.model).unwrap();
        writer.finish(false).unwrap();
        let table = |name| fs::read(fixture.path(name)).unwrap().split_off(fixture.model.len());
        let (flat, plain) = (table("flat"), table("plain"));
        prop_assert_eq!(&flat[..flat.len() - 64], &plain[..plain.len() - 64]);
    }

    #[test]
    fn merging_keeps_content_and_overrides((base, layers) in fixture()) {
        let (fixture, image) = build(&base, &layers);
        image.merge(&fixture.path("merged"), false).unwrap();
        let layers: &[&Path] = &[&fixture.path("merged")];
        let merged = Image::create(&fixture.path("merged-image"), &fixture.path("base"), layers, false).unwrap();
        prop_assert!(read_all(&merged).unwrap() == fixture.model);
        prop_assert_eq!(overrides(&merged).unwrap(), expected_overrides(&fixture));
    }

    #[test]
    fn a_linked_image_outlives_the_original((base, layers) in fixture()) {
        let (fixture, image) = build(&base, &layers);
        let other = tempfile::tempdir().unwrap();
        image.link_into(other.path(), "copy", false).unwrap();
        for path in image.files() {
            fs::remove_file(path).unwrap();
        }
        prop_assert!(read_all(&image).unwrap() == fixture.model, "open files stay readable");
        let copy = Image::open(&other.path().join("copy")).unwrap();
        prop_assert!(read_all(&copy).unwrap() == fixture.model);
        prop_assert_eq!(copy.files().len(), crate::common::names(other.path()).len());
    }
}

#[test]
fn images_larger_than_every_buffer_read_as_their_model() {
    let change = |block, count, fill| Change { block, count, fill, explicit: true };
    let mut fixture = Fixture::new(2003, &[change(0, 700, 1), change(703, 300, 2), change(1900, 103, 3)]);
    fixture.layer(&[change(100, 1000, 4), change(1200, 300, 5), change(1999, 2, 6)]);
    let stripes: Vec<Change> =
        (0..200).map(|index| change(50 + 7 * index, 3, u8::from(index % 5 > 0) * 7)).collect();
    fixture.layer(&stripes);
    let image = fixture.image();
    let expected = expected_overrides(&fixture);
    assert!(read_all(&image).unwrap() == fixture.model);
    assert!(overrides(&image).unwrap() == expected);
    let mut cursor = image.cursor();
    for (block, expected) in expected.iter().enumerate() {
        match (cursor.at(block as u64).unwrap(), expected) {
            (None, None) => {}
            (Some(Piece::Data(bytes)), Some(expected)) => assert!(bytes == expected),
            (Some(Piece::Zero(1)), Some(expected)) => assert!(expected.iter().all(|byte| *byte == 0)),
            other => panic!("{other:?}"),
        }
    }
    image.materialise(&fixture.path("flat"), false).unwrap();
    image.merge(&fixture.path("merged"), false).unwrap();
    let flat = Image::create(&fixture.path("flat-image"), &fixture.path("flat"), &[], false).unwrap();
    flat.verify_base().unwrap();
    assert!(read_all(&flat).unwrap() == fixture.model);
    let layers: &[&Path] = &[&fixture.path("merged")];
    let merged = Image::create(&fixture.path("merged-image"), &fixture.path("base"), layers, false).unwrap();
    assert!(overrides(&merged).unwrap() == expected);
}

#[test]
fn what_does_not_fit_is_refused_without_a_trace() {
    let fixture = Fixture::new(4, &[]);
    let invalid = |result: Result<(), ImageError>| {
        assert!(matches!(result, Err(ImageError::Invalid { .. })), "{result:?}");
    };
    let mut writer = BaseWriter::create(&fixture.path("other"), 4 * 4096).unwrap();
    writer.write(1, &[1; 4096]).unwrap();
    invalid(writer.write(1, &[1; 4096]));
    invalid(writer.write(4, &[1; 4096]));
    invalid(writer.write(2, &[1; 4095]));
    invalid(writer.write(u64::MAX, &[1; 4096]));
    drop(writer);
    for size in [0, 4095, (1 << 40) + 4096] {
        invalid(BaseWriter::create(&fixture.path("other"), size).map(drop));
    }
    invalid(fixture.image().read(3, &mut [0; 8192]));
    assert_eq!(crate::common::names(fixture.dir.path()), ["base", "image"]);
}
