//! The machine's name, and the two files that lead from names to addresses.

use std::io;
use std::path::Path;

use crate::config::Config;

/// The file that gives names to addresses.
const HOSTS: &str = "/etc/hosts";

/// The host's end of the capsule's link, which forwards name queries.
const NAME_SERVER: &str = "169.254.0.22";

/// Name of a machine that was not given one yet.
const DEFAULT_HOSTNAME: &str = "capsule";

/// Longest name the kernel takes, bytes.
const MAX_HOSTNAME: usize = 64;

/// Writes `/etc/resolv.conf` and `/etc/hosts` and sets a first name. Images may make `/etc` read-only or absent; then
/// names do not resolve, and everything else works.
pub(super) fn write_files() {
    let _ = std::fs::create_dir_all("/etc");
    let _ = replace("/etc/resolv.conf", &format!("nameserver {NAME_SERVER}\n"));
    let _ = replace(HOSTS, &hosts(DEFAULT_HOSTNAME));
    if let Ok(Some(renamed)) = rename(DEFAULT_HOSTNAME) {
        renamed.write_files();
    }
}

/// A machine that has a new name in the kernel, and not yet in its files.
#[derive(Debug)]
#[must_use = "the files have the old name"]
pub(crate) struct Renamed {
    old: String,
    new: String,
}

impl Renamed {
    /// Writes the name into the files of `/etc`; where these cannot be written, as in [`write_files`]. Outside a capsule
    /// only the machine's init may write them, so they stay as they are.
    pub(crate) fn write_files(&self) {
        if Config::is_init() {
            let Self { old, new } = self;
            let _ = replace("/etc/hostname", &format!("{new}\n"));
            let present = is_plain(Path::new(HOSTS)).then(|| std::fs::read_to_string(HOSTS).ok()).flatten();
            let _ = replace(HOSTS, &renamed(present, old, new));
        }
    }
}

/// Names the machine in the kernel. A machine that has that name already is left alone: one that is restored as itself
/// neither waits for its disk nor dirties it.
pub(crate) fn rename(name: &str) -> io::Result<Option<Renamed>> {
    let fit = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.');
    if name.is_empty() || name.len() > MAX_HOSTNAME || !name.bytes().all(fit) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a host name has 1 to {MAX_HOSTNAME} letters, digits, dots and hyphens"),
        ));
    }
    let uname = rustix::system::uname();
    let old = uname.nodename().to_string_lossy();
    if old == name {
        return Ok(None);
    }
    rustix::system::sethostname(name.as_bytes())?;
    Ok(Some(Renamed { old: old.into_owned(), new: name.to_owned() }))
}

fn hosts(name: &str) -> String {
    let own = own_line(name);
    format!("127.0.0.1\tlocalhost\n{own}::1\tlocalhost ip6-localhost ip6-loopback\n")
}

fn own_line(name: &str) -> String {
    format!("127.0.1.1\t{name}\n")
}

/// The hosts file under another name. What was written there besides since stays, also in a clone.
fn renamed(hosts_file: Option<String>, old: &str, new: &str) -> String {
    hosts_file.map_or_else(|| hosts(new), |text| text.replacen(&own_line(old), &own_line(new), 1))
}

/// Whether opening it does not wait for anybody, as a pipe's end does.
fn is_plain(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_file())
}

/// Writes a file whatever stands in its place: often a link into a directory that only a running system would have.
/// One that has the content already is not touched.
fn replace(path: &str, content: &str) -> io::Result<()> {
    if !is_plain(Path::new(path)) {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    } else if std::fs::read(path).is_ok_and(|present| present == content.as_bytes()) {
        return Ok(());
    }
    std::fs::write(path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_never_reach_the_kernel() {
        for bad in ["", "a b", "a\nb", &"x".repeat(65), "naïve"] {
            assert_eq!(rename(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_renamed_machine_keeps_what_was_added_to_its_hosts() {
        let before = format!("{}10.0.0.1\tdb\n", hosts("one"));
        assert_eq!(renamed(Some(before), "one", "two"), format!("{}10.0.0.1\tdb\n", hosts("two")));
        assert_eq!(renamed(Some("own\n".into()), "one", "two"), "own\n");
        assert_eq!(renamed(None, "one", "two"), hosts("two"));
    }

    #[test]
    fn a_file_that_is_right_already_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let changed = || path.metadata().unwrap().modified().unwrap();
        replace(path.to_str().unwrap(), "same").unwrap();
        let before = changed();
        std::thread::sleep(std::time::Duration::from_millis(20));
        replace(path.to_str().unwrap(), "same").unwrap();
        assert_eq!(changed(), before);
        replace(path.to_str().unwrap(), "other").unwrap();
        assert_ne!(changed(), before);
    }

    #[test]
    fn a_pipe_is_replaced_and_nobody_waits_for_its_other_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let status = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(status.success() && !is_plain(&path));
        replace(path.to_str().unwrap(), "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        std::fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        replace(link.to_str().unwrap(), "new").unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "new");
    }
}
