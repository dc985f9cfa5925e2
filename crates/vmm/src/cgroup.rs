//! cgroups of version 2, on hosts that have them at `/sys/fs/cgroup` (unified) or `/sys/fs/cgroup/unified` (hybrid).
//!
//! A machine's cgroup is a net under the pidfd: `cgroup.kill` ends whatever the VMM may have started, and
//! [`sweep`] finds VMMs whose agent died before it could write a record. Limits are set where the hierarchy has the
//! controllers; a hybrid host usually binds them to version 1 and has none here.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::VmmError;

/// The kernel frees a cgroup moments after its last process; a longer wait means that a process remains.
const REMOVE_ATTEMPTS: u32 = 500;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// The root of the version 2 hierarchy, if the host has mounted one.
pub fn root() -> Option<PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    roots.map(PathBuf::from).into_iter().find(|root| root.join("cgroup.controllers").exists())
}

/// Limits of one machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: u64,
    pub(crate) tasks: u32,
}

/// Makes the cgroup `parent/id`, with what limits the host allows.
pub(crate) fn create(parent: &Path, id: &str, limits: Limits) -> Result<PathBuf, VmmError> {
    let path = parent.join(id);
    std::fs::create_dir_all(&path).map_err(|source| VmmError::io("make the cgroup", &path, source))?;
    for controller in ["+memory", "+pids"] {
        set(&parent.join("cgroup.subtree_control"), controller);
    }
    set(&path.join("memory.max"), &limits.memory_bytes.to_string());
    set(&path.join("pids.max"), &limits.tasks.to_string());
    Ok(path)
}

fn set(path: &Path, value: &str) {
    if let Err(error) = std::fs::write(path, value) {
        tracing::debug!(?path, value, %error, "the host's cgroups have no such control");
    }
}

/// Ends every process in the cgroup and removes it; one that is gone already is fine.
pub(crate) async fn remove(path: &Path) -> Result<(), VmmError> {
    for _ in 0..REMOVE_ATTEMPTS {
        kill_all(path);
        match std::fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                tokio::time::sleep(REMOVE_PAUSE).await;
            }
            Err(source) => return Err(VmmError::io("remove the cgroup", path, source)),
        }
    }
    Err(VmmError::io("remove the cgroup", path, io::Error::from(io::ErrorKind::ResourceBusy)))
}

fn kill_all(path: &Path) {
    // `cgroup.kill` came with Linux 5.14; before, the members are killed one by one, and the caller's loop meets those
    // that were born meanwhile.
    if std::fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let members = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Ends and removes every machine's cgroup below `parent` whose id `is_known` denies. For the start of an agent, when
/// all its records have been read. Says which ids were removed.
///
/// # Errors
/// [`VmmError::Io`] where a cgroup cannot be removed.
pub async fn sweep(parent: &Path, is_known: impl Fn(&str) -> bool) -> Result<Vec<String>, VmmError> {
    let entries = match std::fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| VmmError::io("list the cgroup", parent, source))?,
    };
    let mut removed = Vec::new();
    for entry in entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir()) {
        let id = entry.file_name().to_string_lossy().into_owned();
        if !is_known(&id) {
            remove(&entry.path()).await?;
            removed.push(id);
        }
    }
    Ok(removed)
}
