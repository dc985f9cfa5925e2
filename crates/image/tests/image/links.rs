//! Images that share files by hard links.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread;

use wrenn_image::{Image, ImageError};

use crate::common::{Change, Fixture, names, overrides, read_all};

fn fixture() -> (Fixture, Image) {
    let change = |block, count, fill| Change { block, count, fill, explicit: false };
    let mut fixture = Fixture::new(600, &[change(0, 300, 1), change(400, 10, 2)]);
    fixture.layer(&[change(100, 280, 3)]);
    fixture.layer(&[change(50, 100, 4), change(300, 20, 0)]);
    let image = fixture.image();
    (fixture, image)
}

#[test]
fn a_link_shares_the_files_and_has_a_header_of_its_own() {
    let (fixture, image) = fixture();
    let other = tempfile::tempdir().unwrap();
    let linked = image.link_into(other.path(), "memory-3", true).unwrap();
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    for (mine, theirs) in linked.files().iter().zip(image.files()).skip(1) {
        assert_eq!(inode(mine), inode(&theirs));
    }
    assert_ne!(inode(linked.header_path()), inode(image.header_path()));
    linked.sync().unwrap();
    assert!(names(other.path()).iter().all(|name| name == "memory-3" || name.starts_with("memory-3.")));
    assert_eq!(fs::metadata(linked.header_path()).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(read_all(&linked).unwrap() == fixture.model);
}

#[test]
fn linking_again_under_the_same_name_changes_nothing_and_another_name_shares_nothing_but_content() {
    let (fixture, image) = fixture();
    let other = tempfile::tempdir().unwrap();
    let first = image.link_into(other.path(), "a", false).unwrap();
    let before = names(other.path());
    let again = image.link_into(other.path(), "a", false).unwrap();
    assert_eq!((names(other.path()), again.files()), (before, first.files()));
    let second = image.link_into(other.path(), "b", false).unwrap();
    for path in first.files() {
        fs::remove_file(path).unwrap();
    }
    assert!(read_all(&Image::open(second.header_path()).unwrap()).unwrap() == fixture.model);
}

#[test]
fn a_link_that_fails_leaves_nothing_of_its_own_and_all_that_was_there() {
    let (fixture, image) = fixture();
    let other = tempfile::tempdir().unwrap();
    let kept = image.link_into(other.path(), "a", false).unwrap();
    let before = names(other.path());
    fs::remove_file(fixture.path("layer-1")).unwrap();
    for name in ["a", "b"] {
        let error = image.link_into(other.path(), name, false).unwrap_err();
        assert!(
            matches!(&error, ImageError::Missing { path } if *path == fixture.path("layer-1")),
            "{error}"
        );
        assert_eq!(names(other.path()), before);
    }
    assert!(read_all(&kept).unwrap() == fixture.model);
    for name in ["", "..", "a/b", &"x".repeat(250)] {
        assert!(
            matches!(image.link_into(other.path(), name, false), Err(ImageError::Invalid { .. })),
            "{name:?}"
        );
    }
    assert_eq!(names(other.path()), before);
}

#[test]
fn across_file_systems_the_files_are_copied_with_their_holes() {
    let (fixture, image) = fixture();
    let device = |path| fs::metadata(path).unwrap().dev();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else { return };
    if device(other.path()) == device(fixture.dir.path()) {
        return;
    }
    let copied = image.link_into(other.path(), "copy", true).unwrap();
    assert!(read_all(&copied).unwrap() == fixture.model);
    copied.verify_base().unwrap();
    assert!(copied.allocated_bytes().unwrap() <= image.allocated_bytes().unwrap() + 5 * 4096);
}

#[test]
fn many_readers_at_once_see_the_same() {
    let (fixture, image) = fixture();
    let second = Image::open(image.header_path()).unwrap();
    thread::scope(|scope| {
        for image in [&image, &image, &second, &second] {
            let fixture = &fixture;
            scope.spawn(move || {
                for _ in 0..5 {
                    assert!(read_all(image).unwrap() == fixture.model);
                    assert_eq!(overrides(image).unwrap().iter().flatten().count(), 330);
                    image.verify_base().unwrap();
                }
            });
        }
    });
}
