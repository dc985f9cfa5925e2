//! The calls on files themselves. All of them block, and are judged by the acting user's rights.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use wrenn_protocol::filesystem::EntryInfo;

use super::entry::describe;
use crate::accounts::{Names, User};
use crate::error::{Error, Kind, Result};
use crate::paths;

/// Most entries of one listing: what fits a message and the guest's memory.
const MAX_ENTRIES: usize = 100_000;

/// Describes one path.
pub(super) fn stat(path: &str) -> Result<EntryInfo> {
    describe(path, path, &Names::load())
}

/// Lists `depth` levels below `root`: parents before children, siblings by name, links not descended.
pub(super) fn list(root: &str, depth: u32) -> Result<Vec<EntryInfo>> {
    let metadata = fs::metadata(root).map_err(|e| Error::io(root, &e))?;
    if !metadata.is_dir() {
        return Err(Error::invalid(format!("{root}: not a directory")));
    }
    let mut walk = Walk { names: Names::load(), entries: Vec::new() };
    let children = sorted_names(Path::new(root)).map_err(|e| Error::io(root, &e))?;
    walk.descend(Path::new(root), root, children, depth.max(1))?;
    Ok(walk.entries)
}

struct Walk {
    names: Names,
    entries: Vec<EntryInfo>,
}

impl Walk {
    /// `shown` is what `directory` is called in the listing: messages carry text only, names may be any bytes.
    fn descend(&mut self, directory: &Path, shown: &str, children: Vec<OsString>, depth: u32) -> Result<()> {
        for name in children {
            let path = directory.join(&name);
            let shown = paths::join(shown, &name.to_string_lossy());
            // It may have vanished since the directory was read.
            let Ok(entry) = describe(&path, &shown, &self.names) else { continue };
            let into = depth > 1 && !entry.is_symlink && entry.permissions.starts_with('d');
            self.push(entry)?;
            if into {
                // A directory that may not be read is shown without its content.
                let children = sorted_names(&path).unwrap_or_default();
                self.descend(&path, &shown, children, depth - 1)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, entry: EntryInfo) -> Result<()> {
        if self.entries.len() == MAX_ENTRIES {
            let text = format!("more than {MAX_ENTRIES} entries; list a part of the tree or fewer levels");
            return Err(Error::new(Kind::TooMuch, text));
        }
        self.entries.push(entry);
        Ok(())
    }
}

fn sorted_names(directory: &Path) -> std::io::Result<Vec<OsString>> {
    let mut names: Vec<OsString> = fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .take(MAX_ENTRIES + 1)
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Creates a directory and its missing parents, all owned by `user`.
pub(super) fn make_dir(path: &str, user: &User) -> Result<EntryInfo> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            return Err(Error::new(Kind::Exists, format!("{path}: the directory exists")));
        }
        Ok(_) => return Err(Error::invalid(format!("{path}: exists and is not a directory"))),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(path, &error)),
    }
    make_parents(path, user)?;
    make_one(path, user)?;
    stat(path)
}

/// Creates what is missing above `path`, mode 0755, owned by `user`.
pub(crate) fn make_parents(path: &str, user: &User) -> Result<()> {
    let parent = paths::parent(path);
    match fs::metadata(parent) {
        Ok(metadata) => must_be_dir(parent, &metadata),
        Err(error) if error.kind() == ErrorKind::NotFound && parent != "/" => {
            make_parents(parent, user)?;
            make_one(parent, user)
        }
        Err(error) => Err(Error::io(parent, &error)),
    }
}

fn must_be_dir(path: &str, metadata: &Metadata) -> Result<()> {
    if metadata.is_dir() { Ok(()) } else { Err(Error::invalid(format!("{path}: not a directory"))) }
}

fn make_one(path: &str, user: &User) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) => chown(path, user),
        // Somebody else was faster, or a dangling link stands there.
        Err(Errno::EXIST) => must_be_dir(
            path,
            &fs::metadata(path).map_err(|_| Error::invalid(format!("{path}: not a directory")))?,
        ),
        Err(errno) => Err(Error::path(path, errno)),
    }
}

fn chown(path: &str, user: &User) -> Result<()> {
    if user.uid == 0 && user.gid == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::fs::chown(path, Some(uid), Some(gid)).map_err(|errno| Error::path(path, errno))
}

/// Renames, creating the destination's parents.
pub(super) fn rename(source: &str, destination: &str, user: &User) -> Result<EntryInfo> {
    fs::symlink_metadata(source).map_err(|e| Error::io(source, &e))?;
    make_parents(destination, user)?;
    fs::rename(source, destination).map_err(|e| Error::io(destination, &e))?;
    stat(destination)
}

/// Removes a file, a link or a whole tree. What is not there is removed already.
pub(super) fn remove(path: &str) -> Result<()> {
    // As with `rm`: what `..` means is rarely what was meant, and above a directory of the first level it is the root.
    if path == "/" || paths::name(path) == ".." {
        return Err(Error::invalid(format!("{path} cannot be removed; name a file or directory")));
    }
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(Error::io(path, &error)),
    };
    let removed = if metadata.is_dir() { fs::remove_dir_all(Path::new(path)) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, &error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_str().unwrap().to_owned();
        for path in ["b/c", "a"] {
            fs::create_dir_all(paths::join(&root, path)).unwrap();
        }
        for file in ["b/c/deep", "b/x", "z"] {
            fs::write(paths::join(&root, file), "").unwrap();
        }
        std::os::unix::fs::symlink("b", paths::join(&root, "link")).unwrap();
        (directory, root)
    }

    fn listed(root: &str, depth: u32) -> Vec<String> {
        let prefix = format!("{root}/");
        let entries = list(root, depth).unwrap();
        entries.iter().map(|e| e.path.strip_prefix(&prefix).unwrap().to_owned()).collect()
    }

    #[test]
    fn listings_go_parents_first_and_do_not_enter_links() {
        let (_keep, root) = tree();
        assert_eq!(listed(&root, 0), ["a", "b", "link", "z"]);
        assert_eq!(listed(&root, 2), ["a", "b", "b/c", "b/x", "link", "z"]);
        assert_eq!(listed(&root, 9), ["a", "b", "b/c", "b/c/deep", "b/x", "link", "z"]);
        assert_eq!(listed(&paths::join(&root, "link"), 1), ["c", "x"]);
    }

    #[test]
    fn a_listing_of_no_directory_says_why() {
        let (_keep, root) = tree();
        assert_eq!(list(&paths::join(&root, "z"), 1).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(list(&paths::join(&root, "no"), 1).unwrap_err().kind(), Kind::NotFound);
        std::os::unix::fs::symlink("loop", paths::join(&root, "loop")).unwrap();
        assert_eq!(list(&paths::join(&root, "loop"), 1).unwrap_err().kind(), Kind::Precondition);
    }

    #[test]
    fn directories_are_made_once_with_all_their_parents() {
        let (_keep, root) = tree();
        let user = User::root();
        let new = paths::join(&root, "n/e/w");
        assert_eq!(make_dir(&new, &user).unwrap().path, new);
        assert_eq!(make_dir(&new, &user).unwrap_err().kind(), Kind::Exists);
        assert_eq!(make_dir(&paths::join(&root, "z"), &user).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(make_dir(&paths::join(&root, "z/y"), &user).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn removal_takes_links_and_trees_and_never_the_root() {
        let (_keep, root) = tree();
        remove(&paths::join(&root, "link")).unwrap();
        assert!(Path::new(&root).join("b/x").exists());
        remove(&paths::join(&root, "b")).unwrap();
        remove(&paths::join(&root, "b")).unwrap();
        assert_eq!(listed(&root, 1), ["a", "z"]);
        for all in ["/", "/..", "/tmp/..", "/.././.."] {
            assert_eq!(remove(all).unwrap_err().kind(), Kind::Invalid, "{all}");
        }
    }

    #[test]
    fn a_name_that_is_no_text_is_listed_all_the_same() {
        use std::os::unix::ffi::OsStrExt as _;
        let (keep, root) = tree();
        let odd = keep.path().join(std::ffi::OsStr::from_bytes(b"odd\xff"));
        fs::create_dir(&odd).unwrap();
        fs::write(odd.join("inside"), "").unwrap();
        let listed = listed(&root, 2);
        assert!(listed.contains(&"odd\u{fffd}".to_owned()), "{listed:?}");
        assert!(listed.contains(&"odd\u{fffd}/inside".to_owned()), "{listed:?}");
    }

    #[test]
    fn a_move_makes_the_parents_of_its_destination() {
        let (_keep, root) = tree();
        let to = paths::join(&root, "p/q/z");
        assert_eq!(rename(&paths::join(&root, "z"), &to, &User::root()).unwrap().name, "z");
        let error = rename(&paths::join(&root, "z"), &to, &User::root()).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
    }
}
