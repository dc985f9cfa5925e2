//! The machine's name, and the two files that lead from names to addresses.

use std::io;
use std::path::Path;

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
    let _ = set_hostname(DEFAULT_HOSTNAME);
}

/// Names the machine, in the kernel and in `/etc/hosts`. Outside a capsule only the machine's init may do this, so
/// the files stay as they are.
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    let fit = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.');
    if name.is_empty() || name.len() > MAX_HOSTNAME || !name.bytes().all(fit) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a host name has 1 to {MAX_HOSTNAME} letters, digits, dots and hyphens"),
        ));
    }
    rustix::system::sethostname(name.as_bytes())?;
    if std::process::id() == 1 && !crate::config::Config::only_serves() {
        replace("/etc/hostname", &format!("{name}\n"))?;
        replace("/etc/hosts", &hosts(name))?;
    }
    Ok(())
}

fn hosts(name: &str) -> String {
    format!("127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n::1\tlocalhost ip6-localhost ip6-loopback\n")
}

/// Writes a file whatever stands in its place: often a link into a directory that only a running system would have.
fn replace(path: &str, content: &str) -> io::Result<()> {
    if Path::new(path).is_symlink() {
        std::fs::remove_file(path)?;
    }
    std::fs::write(path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_never_reach_the_kernel() {
        for bad in ["", "a b", "a\nb", &"x".repeat(65), "naïve"] {
            assert_eq!(set_hostname(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
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
