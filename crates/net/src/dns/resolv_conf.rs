//! The host's name servers, as `resolv.conf` lists them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::PORT;

/// The C library asks no more than these; neither do we.
const SERVERS_MAX: usize = 3;

/// What tells one version of the file from another: inode, size, seconds and nanoseconds of its change.
type Stamp = Option<(u64, u64, i64, i64)>;

/// The name servers of a file that is read again whenever it has changed.
#[derive(Debug)]
pub(super) struct ResolvConf {
    path: PathBuf,
    read: Mutex<(Stamp, Arc<[SocketAddr]>)>,
}

impl ResolvConf {
    pub(super) fn new(path: PathBuf) -> Self {
        let read = load(&path);
        Self { path, read: Mutex::new(read) }
    }

    /// The servers to ask, in order; never empty.
    pub(super) fn servers(&self) -> Arc<[SocketAddr]> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp(&self.path) != read.0 {
            *read = load(&self.path);
        }
        Arc::clone(&read.1)
    }
}

fn load(path: &Path) -> (Stamp, Arc<[SocketAddr]>) {
    // The stamp first: if the file changes in between, the next look reads it again.
    let stamp = stamp(path);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    (stamp, parse(&text).into())
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

/// The `nameserver` lines; a file without any means the local host, as it does for the C library.
fn parse(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        address.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT))
    };
    let mut servers: Vec<_> = text.lines().filter_map(server).take(SERVERS_MAX).collect();
    if servers.is_empty() {
        servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_lines_are_read_and_everything_else_is_passed_over() {
        let text = "# nameserver 9.9.9.9\nsearch example\n nameserver\t127.0.0.53 # stub\nnameserver what\n\
                    nameserver fd00::1\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver\n";
        let servers: Vec<_> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["127.0.0.53:53", "[fd00::1]:53", "10.0.0.1:53"]);
    }

    #[test]
    fn a_missing_file_means_the_local_host_and_a_new_one_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let conf = ResolvConf::new(path.clone());
        assert_eq!(conf.servers()[..], ["127.0.0.1:53".parse().unwrap()]);
        std::fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        assert_eq!(conf.servers()[..], ["10.0.0.1:53".parse().unwrap()]);
        std::fs::write(&path, "nameserver 10.0.0.22\n").unwrap();
        assert_eq!(conf.servers()[..], ["10.0.0.22:53".parse().unwrap()]);
    }
}
