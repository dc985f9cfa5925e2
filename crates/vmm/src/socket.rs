//! Unix sockets in directories whose paths may be longer than the 107 bytes that a socket address holds: the directory
//! is opened, and the socket named through `/proc/self/fd`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

/// `path` by way of its opened directory; valid as long as the file lives.
fn short(path: &Path) -> io::Result<(File, PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(parent)?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((dir, short))
}

pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_dir, short) = short(path)?;
    UnixStream::connect(short).await
}

/// Listens at `path`, in place of a socket that a dead process left there.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let (_dir, short) = short(path)?;
    match std::fs::remove_file(&short) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_far_below_the_root_is_reached() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(200)).join("e".repeat(200));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("qmp.sock");
        let _first = listen(&path).unwrap();
        let _second = listen(&path).unwrap();
        connect(&path).await.unwrap();
    }
}
