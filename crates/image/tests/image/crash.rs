//! A process that ends between two steps of writing.

use std::fs;
use std::mem::forget;
use std::path::Path;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use wrenn_image::{BLOCK_BYTES, BaseWriter, Image, ImageError, LayerWriter, MAX_LAYERS, Written};

use crate::common::{Change, Fixture, names, read_all};

fn change(block: usize, fill: u8) -> Change {
    Change { block, count: 2, fill, explicit: false }
}

fn fixture() -> Fixture {
    let mut fixture = Fixture::new(32, &[change(0, 1), change(20, 2)]);
    fixture.layer(&[change(1, 3)]);
    fixture.image();
    fixture
}

fn still_usable(fixture: &Fixture) {
    let image = Image::open(&fixture.path("image")).unwrap();
    assert!(read_all(&image).unwrap() == fixture.model);
    image.verify_base().unwrap();
}

#[test]
fn a_layer_that_was_never_finished_is_in_nobodys_way() {
    let fixture = fixture();
    let size = fixture.model.len() as u64;
    // A process that is killed runs no destructor.
    let mut writer = LayerWriter::create(&fixture.path("layer-1"), size).unwrap();
    writer.write(4, &[9; BLOCK_BYTES]).unwrap();
    forget(writer);
    assert_eq!(names(fixture.dir.path()), ["base", "image", "layer-0", "layer-1.partial"]);
    still_usable(&fixture);

    let mut writer = LayerWriter::create(&fixture.path("layer-1"), size).unwrap();
    writer.write(5, &[8; BLOCK_BYTES]).unwrap();
    writer.finish(true).unwrap();
    assert_eq!(names(fixture.dir.path()), ["base", "image", "layer-0", "layer-1"]);
    still_usable(&fixture);
}

#[test]
fn a_writer_that_is_dropped_removes_its_file_and_keeps_the_one_it_would_replace() {
    let fixture = fixture();
    let size = fixture.model.len() as u64;
    let mut base = BaseWriter::create(&fixture.path("base"), size).unwrap();
    base.write(0, &[9; BLOCK_BYTES]).unwrap();
    let mut layer = LayerWriter::create(&fixture.path("layer-0"), size).unwrap();
    layer.write(0, &[9; BLOCK_BYTES]).unwrap();
    drop((base, layer));
    assert_eq!(names(fixture.dir.path()), ["base", "image", "layer-0"]);
    still_usable(&fixture);
}

#[test]
fn between_merge_and_header_both_the_old_and_the_merged_files_are_whole() {
    let fixture = fixture();
    let image = Image::open(&fixture.path("image")).unwrap();
    image.merge(&fixture.path("merged"), true).unwrap();
    still_usable(&fixture);
    // The header was being written when the machine stopped: half of it is there, under its passing name.
    let header = fs::read(fixture.path("image")).unwrap();
    fs::write(fixture.path("image.partial"), &header[..header.len() / 2]).unwrap();
    still_usable(&fixture);

    let layers: &[&Path] = &[&fixture.path("merged")];
    let merged = Image::create(&fixture.path("image"), &fixture.path("base"), layers, true).unwrap();
    assert_eq!(names(fixture.dir.path()), ["base", "image", "layer-0", "merged"]);
    assert_eq!(merged.layer_paths(), [fixture.path("merged")]);
    still_usable(&fixture);
    assert!(read_all(&image).unwrap() == fixture.model, "who has the old one open reads on");
}

#[test]
fn a_full_disk_is_named_and_nothing_is_left_on_it() {
    let dir = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        // The file system exists for this thread alone, and ends with it.
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
            fill_up(dir.path());
        });
    });
}

fn fill_up(dir: &Path) {
    let (path, size, piece) = (dir.join("file"), 64 << 20, vec![7; 256 * BLOCK_BYTES]);
    let full = |result: Result<(), ImageError>| {
        assert!(matches!(&result, Err(ImageError::Full { path: named }) if *named == path), "{result:?}");
    };
    let filler = dir.join("filler");
    let fill = || fs::write(&filler, vec![1; 800 << 10]).unwrap();
    // Room that appears after a failure does not bring back what the writer could not write.
    let refused =
        |result: Result<Written, ImageError>| assert!(matches!(result, Err(ImageError::Invalid { .. })));
    fill();
    let mut base = BaseWriter::create(&path, size).unwrap();
    full((0..4).try_for_each(|index| base.write(index * 256, &piece)));
    fs::remove_file(&filler).unwrap();
    refused(base.finish(false));
    fill();
    let mut layer = LayerWriter::create(&path, size).unwrap();
    full((0..4).try_for_each(|index| layer.write(index * 256, &piece)));
    fs::remove_file(&filler).unwrap();
    refused(layer.finish(false));
    assert_eq!(names(dir), [""; 0]);
}

#[test]
fn an_image_is_refused_before_anything_is_written() {
    let mut fixture = fixture();
    for _ in 1..=MAX_LAYERS {
        fixture.layer(&[change(2, 5)]);
    }
    let layers: Vec<&Path> = fixture.layers.iter().map(AsRef::as_ref).collect();
    let before = names(fixture.dir.path());
    let create =
        |base: &str, layers: &[&Path]| Image::create(&fixture.path("new"), &fixture.path(base), layers, true);
    assert!(matches!(create("base", &layers), Err(ImageError::TooManyLayers { layers: 9, .. })));
    assert!(matches!(create("none", &[]), Err(ImageError::Missing { .. })));
    assert!(matches!(create("layer-0", &[]), Err(ImageError::Damaged { .. })), "a layer is no base");

    let other = Fixture::new(8, &[]);
    assert!(
        matches!(create("base", &[&other.path("base")]), Err(ImageError::Damaged { .. })),
        "a base is no layer"
    );
    let strange = other.path("layer");
    LayerWriter::create(&strange, 8 * 4096).unwrap().finish(false).unwrap();
    assert!(matches!(create("base", &[&strange]), Err(ImageError::Invalid { .. })), "sizes differ");
    let elsewhere = other.path("elsewhere");
    LayerWriter::create(&elsewhere, fixture.model.len() as u64).unwrap().finish(false).unwrap();
    assert!(matches!(create("base", &[&elsewhere]), Err(ImageError::Invalid { .. })), "in another directory");
    assert_eq!(names(fixture.dir.path()), before);
    drop(create("base", &layers[..MAX_LAYERS]).unwrap());
}
