use std::path::PathBuf;

use wrenn_client::FileEntry;

use super::download::{Step, local_target, step};
use super::place::{self, Place};

fn remote(capsule: &str, path: &str) -> Place {
    Place::Remote { capsule: capsule.into(), path: path.into() }
}

#[test]
fn a_colon_before_any_slash_means_a_capsule() {
    let parse = |text: &str| place::parse(text).unwrap();
    assert_eq!(parse("cl-abc:/etc/x"), remote("cl-abc", "/etc/x"));
    assert_eq!(parse("abc:x:y"), remote("abc", "x:y"));
    assert_eq!(parse("abc:"), remote("abc", "."));
    assert_eq!(parse("./a:b"), Place::Local(PathBuf::from("./a:b")));
    assert_eq!(parse("/a:b"), Place::Local(PathBuf::from("/a:b")));
    assert_eq!(parse("plain"), Place::Local(PathBuf::from("plain")));
    assert_eq!(parse("-"), Place::Stdio);
    assert!(place::parse("").is_err());
    assert!(place::parse(":x").is_err());
}

#[test]
fn a_source_in_a_capsule_has_a_name_unless_its_contents_are_meant() {
    for (path, name) in [("/a/b", Some("b")), ("/a/b/", Some("b")), ("b", Some("b")), ("/a/.", None)] {
        assert_eq!(place::own_name(path), name, "{path}");
    }
    for path in [".", "..", "/", "~", "", "a/.."] {
        assert_eq!(place::own_name(path), None, "{path}");
    }
}

#[test]
fn paths_in_a_capsule_are_joined_with_one_slash() {
    assert_eq!(place::join("/", "a"), "/a");
    assert_eq!(place::join("/x", "a"), "/x/a");
    assert_eq!(place::join("~/", "a"), "~/a");
}

fn entry(name: &str, kind: &str, permissions: &str, link: Option<&str>) -> FileEntry {
    serde_json::from_value(serde_json::json!({
        "name": name, "path": "/x", "type": kind, "size": 1, "mode": 0, "permissions": permissions,
        "owner": "root", "group": "root", "modified_at": 0, "symlink_target": link,
    }))
    .unwrap()
}

#[test]
fn a_capsule_cannot_name_its_way_out_of_the_destination() {
    for name in ["..", ".", "", "../../etc/cron.d/x", "/etc/passwd", "a/b", "a\0b"] {
        assert!(matches!(step(&entry(name, "file", "-rw-r--r--", None)), Step::Skip(_)), "{name:?}");
        assert!(matches!(step(&entry(name, "directory", "drwxr-xr-x", None)), Step::Skip(_)), "{name:?}");
    }
}

#[test]
fn links_to_files_are_copied_and_what_is_no_content_is_skipped() {
    assert_eq!(step(&entry("a", "file", "-rw-r--r--", None)), Step::Copy);
    assert_eq!(step(&entry("a", "file", "Lrw-r--r--", Some("/f"))), Step::Copy);
    assert_eq!(step(&entry("a", "directory", "drwxr-xr-x", None)), Step::Descend);
    assert!(matches!(step(&entry("a", "directory", "Lrwxr-xr-x", Some("/"))), Step::Skip(_)));
    assert!(matches!(step(&entry("a", "symlink", "L---------", Some("/x"))), Step::Skip(_)));
    assert!(matches!(step(&entry("a", "file", "prw-r--r--", None)), Step::Skip(_)));
}

#[test]
fn a_directory_is_never_replaced_with_a_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("taken")).unwrap();
    assert_eq!(local_target(dir.path(), Some("f")).unwrap(), dir.path().join("f"));
    assert!(local_target(dir.path(), Some("taken")).unwrap_err().to_string().contains("not replaced"));
    assert!(local_target(dir.path(), None).is_err());
    let missing = dir.path().join("missing/");
    assert!(local_target(&missing, Some("f")).unwrap_err().to_string().contains("there is no directory"));
    assert_eq!(local_target(&dir.path().join("new"), Some("f")).unwrap(), dir.path().join("new"));
}
