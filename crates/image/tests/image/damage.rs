//! Whatever happens to the bytes of a file: what is read is what was written, or an error that names the file.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use proptest::prelude::*;
use wrenn_image::{BLOCK_BYTES, Extent, Fault, FileEntry, Header, Image, ImageError, Source};

use crate::common::{Change, Fixture, overrides, read_all};

const BLOCKS: usize = 40;

fn change(block: usize, count: usize, fill: u8) -> Change {
    Change { block, count, fill, explicit: false }
}

/// A base with data, holes within a chunk and whole chunks of holes; two layers that overlap.
fn fixture() -> (Fixture, Image) {
    let mut fixture = Fixture::new(BLOCKS, &[change(0, 3, 1), change(5, 1, 2), change(34, 6, 3)]);
    fixture.layer(&[change(2, 2, 4), change(8, 2, 0), change(35, 1, 5)]);
    fixture.layer(&[change(3, 1, 6), change(9, 1, 7), change(38, 2, 0)]);
    let image = fixture.image();
    (fixture, image)
}

/// Does all that a user of the image does.
fn use_all(fixture: &Fixture) -> Result<(), ImageError> {
    let image = Image::open(&fixture.path("image"))?;
    let served = read_all(&image)?;
    assert!(served == fixture.model, "what is served is what was written");
    for (block, found) in overrides(&image)?.iter().enumerate() {
        assert_eq!(found.is_some(), fixture.overridden[block]);
        let model = &fixture.model[block * BLOCK_BYTES..][..BLOCK_BYTES];
        assert!(found.as_ref().is_none_or(|bytes| bytes == model), "what is served is what was written");
    }
    image.verify_base()
}

fn named(error: &ImageError) -> &Path {
    match error {
        ImageError::Damaged { path, .. }
        | ImageError::Version { path, .. }
        | ImageError::Missing { path } => path,
        other => panic!("{other:?}"),
    }
}

fn flip(path: &Path, at: u64, mask: u8) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ mask], at).unwrap();
}

/// Flips the bytes at `places` one by one, and restores them.
fn flip_each(fixture: &Fixture, path: &Path, places: impl Iterator<Item = u64>) {
    for at in places {
        let mask = 1 << (at % 8);
        flip(path, at, mask);
        let error = use_all(fixture).expect_err("a flipped byte is found");
        assert_eq!(named(&error), path, "byte {at}: {error}");
        flip(path, at, mask);
    }
    use_all(fixture).unwrap();
}

#[test]
fn every_flipped_byte_of_a_header_is_found() {
    let (fixture, image) = fixture();
    let length = fs::metadata(image.header_path()).unwrap().len();
    flip_each(&fixture, image.header_path(), 0..length);
}

#[test]
fn flipped_bytes_of_a_base_are_found_in_data_holes_and_sums() {
    let (fixture, image) = fixture();
    let length = fs::metadata(image.base_path()).unwrap().len();
    let data = (BLOCKS * BLOCK_BYTES) as u64;
    flip_each(&fixture, &image.base_path(), (0..data).step_by(1021).chain(data..length));
}

#[test]
fn flipped_bytes_of_layers_are_found_unless_a_newer_layer_hides_them() {
    let (fixture, image) = fixture();
    let layers = image.layer_paths();
    let bytes = |path: &PathBuf| fs::metadata(path).unwrap().len();
    let newer = (0..2 * 4096).step_by(511).chain(2 * 4096..bytes(&layers[1]));
    flip_each(&fixture, &layers[1], newer);
    // The second block of the older layer is block 3, which the newer one has too.
    let older =
        (0..4096).step_by(511).chain((2 * 4096..3 * 4096).step_by(511)).chain(3 * 4096..bytes(&layers[0]));
    flip_each(&fixture, &layers[0], older);
    flip(&layers[0], 4096 + 17, 1);
    use_all(&fixture).unwrap();
}

#[test]
fn every_truncation_is_found() {
    let (fixture, image) = fixture();
    for path in image.files() {
        let whole = fs::read(&path).unwrap();
        let tail = whole.len().saturating_sub(300);
        for length in (0..tail).step_by(4093).chain(tail..whole.len()) {
            OpenOptions::new().write(true).open(&path).unwrap().set_len(length as u64).unwrap();
            let error = use_all(&fixture).expect_err("a truncation is found");
            assert_eq!(named(&error), path, "{length} bytes: {error}");
            fs::write(&path, &whole).unwrap();
        }
        fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
        assert_eq!(named(&use_all(&fixture).expect_err("a byte too many is found")), path);
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn a_file_cut_off_or_changed_while_the_image_is_open_is_found() {
    let (fixture, image) = fixture();
    let layer = image.layer_paths().remove(1);
    flip(&layer, 5, 1);
    assert_eq!(named(&read_all(&image).unwrap_err()), layer);
    assert_eq!(named(&overrides(&image).unwrap_err()), layer);
    assert_eq!(named(&image.merge(&fixture.path("merged"), false).unwrap_err()), layer);
    assert_eq!(named(&image.materialise(&fixture.path("flat"), false).unwrap_err()), layer);
    let mut cursor = image.cursor();
    assert_eq!(named(&cursor.at(3).unwrap_err()), layer);
    assert_eq!(named(&cursor.at(3).unwrap_err()), layer, "nothing is left to show the second time");
    OpenOptions::new().write(true).open(&layer).unwrap().set_len(10).unwrap();
    assert_eq!(named(&read_all(&image).unwrap_err()), layer);
    assert_eq!(named(&overrides(&image).unwrap_err()), layer);
    let names = crate::common::names(fixture.dir.path());
    assert_eq!(names, ["base", "image", "layer-0", "layer-1"], "what failed left nothing");
}

#[test]
fn missing_files_and_other_files_of_the_same_name_are_named() {
    let (fixture, image) = fixture();
    for path in image.files() {
        let aside = fixture.path("aside");
        fs::rename(&path, &aside).unwrap();
        let error = use_all(&fixture).unwrap_err();
        assert!(matches!(&error, ImageError::Missing { path: named } if *named == path), "{error}");
        fs::rename(&aside, &path).unwrap();
    }
    // The same content under another identity: it may fit by chance, and is not what was meant.
    let (other, _) = self::fixture();
    for name in ["base", "layer-0"] {
        let mine = fs::read(fixture.path(name)).unwrap();
        fs::copy(other.path(name), fixture.path(name)).unwrap();
        let error = use_all(&fixture).unwrap_err();
        assert_eq!(named(&error), fixture.path(name));
        assert!(error.to_string().contains("another file"), "{error}");
        fs::write(fixture.path(name), mine).unwrap();
    }
    fs::remove_file(fixture.path("base")).unwrap();
    fs::create_dir(fixture.path("base")).unwrap();
    assert_eq!(named(&use_all(&fixture).unwrap_err()), fixture.path("base"));
}

#[test]
fn an_unknown_version_is_named_as_such() {
    let (fixture, image) = fixture();
    for (path, from_end) in image.files().into_iter().zip([None, Some(64), Some(64), Some(64)]) {
        let length = fs::metadata(&path).unwrap().len();
        let at = from_end.map_or(8, |back| length - back + 8);
        flip(&path, at, 2);
        let error = use_all(&fixture).unwrap_err();
        assert!(matches!(&error, ImageError::Version { path: named, found: 3 } if *named == path), "{error}");
        flip(&path, at, 2);
    }
}

#[test]
fn a_base_modified_after_it_was_found_intact_is_read_again() {
    let (fixture, image) = fixture();
    // Clocks of file systems tick in milliseconds, so that a base of just now might keep its time of modification.
    let base = OpenOptions::new().write(true).open(image.base_path()).unwrap();
    base.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    image.verify_base().unwrap();
    image.verify_base().unwrap();
    flip(&image.base_path(), 4096, 1);
    assert_eq!(named(&image.verify_base().unwrap_err()), fixture.path("base"));
    assert_eq!(
        named(&image.verify_base().unwrap_err()),
        fixture.path("base"),
        "a failure is not remembered as success"
    );
}

#[test]
fn layers_are_checked_as_a_whole_also_where_newer_ones_hide_them() {
    let (_fixture, image) = fixture();
    for (layer, data_blocks) in image.layer_paths().iter().zip([3, 1]) {
        for at in (0..data_blocks * 4096).step_by(1021) {
            flip(layer, at, 1);
            let error = image.verify_layers().expect_err("a flipped byte is found");
            assert_eq!(named(&error), layer, "byte {at}: {error}");
            flip(layer, at, 1);
        }
    }
    image.verify_layers().unwrap();
}

#[test]
fn a_layer_modified_after_it_was_found_intact_is_read_again() {
    let (fixture, image) = fixture();
    for path in image.layer_paths() {
        // As with bases: a change within one tick of the clock would not show.
        let layer = OpenOptions::new().write(true).open(path).unwrap();
        layer.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    image.verify_layers().unwrap();
    Image::open(image.header_path()).unwrap().verify_layers().unwrap();
    let newer = fixture.path("layer-1");
    flip(&newer, 17, 1);
    assert_eq!(named(&image.verify_layers().unwrap_err()), newer);
    assert_eq!(named(&image.verify_layers().unwrap_err()), newer, "a failure is not remembered as success");
}

#[test]
fn a_layer_found_intact_is_not_read_again() {
    let (fixture, image) = fixture();
    image.verify_layers().unwrap();
    let older = fixture.path("layer-0");
    let modified = fs::metadata(&older).unwrap().modified().unwrap();
    // Damage that keeps the time of modification shows that the file was not looked into.
    flip(&older, 17, 1);
    OpenOptions::new().write(true).open(&older).unwrap().set_modified(modified).unwrap();
    image.verify_layers().unwrap();
}

/// Alters the table of a layer, which begins after `data_blocks`, and makes its sums right again.
fn alter_table(path: &Path, data_blocks: usize, alter: impl FnOnce(&mut Vec<u8>)) {
    let whole = fs::read(path).unwrap();
    let (data, rest) = whole.split_at(data_blocks * BLOCK_BYTES);
    let (table, footer) = rest.split_at(rest.len() - 64);
    let mut table = table.to_vec();
    alter(&mut table);
    let footer = sealed(&[&footer[..56], &crc32c::crc32c(&table).to_le_bytes()[..]].concat());
    fs::write(path, [data, &table, &footer].concat()).unwrap();
}

#[test]
fn layers_that_contradict_themselves_are_refused_even_with_right_checksums() {
    let refused = |why: &str, alter: fn(&mut Vec<u8>)| {
        let (fixture, _) = fixture();
        let layer = fixture.path("layer-0");
        alter_table(&layer, 3, alter);
        let error = Image::create(&fixture.path("new"), &fixture.path("base"), &[&layer], false).unwrap_err();
        assert_eq!(named(&error), layer);
        assert!(error.to_string().contains(why), "{error}");
    };
    // Its ranges are 2 blocks at 2, 2 zeros at 8, 1 block at 35.
    refused("speaks of 4 blocks", |table| table[8] = 3);
    refused("out of order", |table| table[16] = 3);
    refused("out of order", |table| table[12] = 2);
    refused("out of bounds", |table| table[32] = 40);
    refused("what its footer implies", |table| table.push(0));
}

#[test]
fn a_layer_rewritten_under_its_old_identity_is_not_the_one_that_was_meant() {
    let (fixture, image) = fixture();
    let layer = image.layer_paths().remove(0);
    alter_table(&layer, 3, |table| table[32] = 36);
    let error = use_all(&fixture).unwrap_err();
    assert_eq!(named(&error), layer);
    assert!(error.to_string().contains("changed after"), "{error}");
}

#[test]
fn a_map_into_the_index_of_a_layer_is_refused() {
    // So many sums that a whole block would fit behind the data.
    let mut fixture = Fixture::new(1200, &[]);
    fixture.layer(&[change(0, 1100, 1)]);
    let path = fixture.image().header_path().to_owned();
    let mut header = Header::parse(&fs::read(&path).unwrap()).unwrap();
    header.extents[0].source = Source::Layer { layer: 0, offset: 4096 };
    fs::write(&path, header.encode().unwrap()).unwrap();
    let error = Image::open(&path).unwrap_err();
    assert_eq!(named(&error), path);
    assert!(error.to_string().contains("beyond the data"), "{error}");
}

/// Ends `body` with its checksum, as a header ends: what hostile hands would do.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = body.to_vec();
    bytes.extend(crc32c::crc32c(body).to_le_bytes());
    bytes
}

/// What may be said of any header that was accepted.
fn check_accepted(header: &Header) {
    let blocks = header.size_bytes / BLOCK_BYTES as u64;
    let mut free = 0;
    for extent in &header.extents {
        assert!(extent.count > 0 && extent.block >= free && extent.end() <= blocks);
        free = extent.end();
    }
    let files = std::iter::once(&header.base).chain(&header.layers);
    for file in files {
        assert!(!file.name.contains('/') && file.name != "..");
    }
    assert_eq!(Header::parse(&header.encode().unwrap()).unwrap(), *header);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_parsed_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut hostile = b"WRENNIMG\x01\0\0\0".to_vec();
        hostile.extend(&bytes);
        for bytes in [bytes, hostile.clone(), sealed(&hostile)] {
            if let Ok(header) = Header::parse(&bytes) {
                check_accepted(&header);
            }
        }
    }

    #[test]
    fn altered_headers_with_a_right_checksum_keep_the_bounds(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in 0..40usize,
    ) {
        let mut bytes = whole_header();
        bytes.truncate(bytes.len() - 4 - if cut < 30 { 0 } else { cut });
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(header) = Header::parse(&sealed(&bytes)) {
            check_accepted(&header);
        }
    }

    #[test]
    fn an_altered_header_is_refused(at in any::<prop::sample::Index>(), mask in 1..=255u8) {
        let mut bytes = whole_header();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        prop_assert!(Header::parse(&bytes).is_err());
    }
}

fn whole_header() -> Vec<u8> {
    let file = |name: &str, length| FileEntry { id: [7; 16], length, table_crc: 9, name: name.to_owned() };
    let layer = |layer, offset| Source::Layer { layer, offset };
    let extent = |block, count, source| Extent { block, count, source };
    let header = Header {
        size_bytes: 100 * 4096,
        base: file("base", 100 * 4096 + 72),
        layers: vec![file("one", 9 * 4096), file("two", 5 * 4096)],
        extents: vec![
            extent(3, 4, layer(0, 0)),
            extent(7, 1, Source::Zero),
            extent(8, 2, layer(1, 4096)),
            extent(90, 5, layer(0, 4 * 4096)),
        ],
    };
    header.encode().unwrap()
}

#[test]
fn hostile_headers_are_refused_for_what_is_wrong_with_them() {
    let refused = |at: usize, bytes: &[u8], why: &str| {
        let mut header = whole_header();
        header.truncate(header.len() - 4);
        header[at..at + bytes.len()].copy_from_slice(bytes);
        match Header::parse(&sealed(&header)) {
            Err(Fault::Damaged(what)) => assert!(what.contains(why), "{what}"),
            other => panic!("{other:?}"),
        }
    };
    let map = whole_header().len() - 4 - 4 * 24;
    refused(12, &0u32.to_le_bytes(), "names 0 files");
    refused(12, &10u32.to_le_bytes(), "names 10 files");
    refused(16, &5000u64.to_le_bytes(), "image of 5000 bytes");
    refused(16, &u64::MAX.to_le_bytes(), "an image of");
    refused(24, &u64::MAX.to_le_bytes(), "for a map of");
    refused(24, &5u64.to_le_bytes(), "for a map of 5 ranges");
    refused(60, &u16::MAX.to_le_bytes(), "middle of a field");
    refused(64, b"../x", "plain file name");
    refused(64, &[0xFF; 4], "UTF-8");
    refused(map, &u64::MAX.to_le_bytes(), "out of bounds");
    refused(map + 24, &5u64.to_le_bytes(), "out of order");
    refused(map + 8, &0u32.to_le_bytes(), "out of order");
    refused(map + 12, &3u32.to_le_bytes(), "where no blocks are");
    refused(map + 16, &1u64.to_le_bytes(), "where no blocks are");
    refused(map + 16, &(u64::MAX - 4095).to_le_bytes(), "where no blocks are");
    refused(map + 24 + 16, &4096u64.to_le_bytes(), "zeros has an offset");
}
