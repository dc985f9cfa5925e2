//! What starting a VMM takes, whichever it is: checks, files, the process, and the removal of what a failed start left.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use crate::confine::Confinement;
use crate::process::{self, Process};
use crate::qemu::INITRD_ALIGNMENT;
use crate::remains::Remains;
use crate::{FileKey, LaunchSpec, MachineRecord, Start, VmmError};

/// The guest's serial console, in the machine's directory. A VMM appends, so it may be cut at any time.
pub const CONSOLE: &str = "console.log";
/// What belongs to the running VMM alone, in the machine's directory.
pub(crate) const RUN: &str = "run";
/// Where a VMM's standard error goes, in that directory.
pub(crate) const STDERR: &str = "vmm.stderr";

/// A VMM answers within a tenth of a second on an idle host.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A thread for each CPU, and those for disk requests.
pub(crate) const MAX_TASKS: u32 = 256;
/// How much of a VMM's standard error goes into an error.
const TAIL_BYTES: u64 = 2048;

pub(crate) const MIB: u64 = 1 << 20;

/// Held for reading while a child is between its fork and its exec, for it holds every descriptor of this process then.
static FORKS: RwLock<()> = RwLock::new(());

/// Starts a confined child. Its standard output and error are given; an error carries what it wrote to `said`.
pub(crate) fn spawn(
    mut command: Command,
    confinement: Confinement,
    output: (File, File),
    said: &Path,
) -> Result<Child, VmmError> {
    let binary = PathBuf::from(command.get_program());
    command.env_clear().current_dir("/");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.stdin(Stdio::null()).stdout(output.0).stderr(output.1);
    // SAFETY: between fork and exec the closure makes system calls and nothing else, see `Confinement::enter`.
    unsafe { command.pre_exec(move || confinement.enter()) };
    let _forking = forking();
    command.spawn().map_err(|source| match source.kind() {
        ErrorKind::NotFound if tail(said).is_empty() => {
            VmmError::BinaryMissing { binary, cure: "put it back where it was at the start".to_owned() }
        }
        _ => VmmError::Launch { exit: source.to_string(), said: tail(said) },
    })
}

/// To be held by whoever starts a child in another way than by [`spawn`].
pub(crate) fn forking() -> RwLockReadGuard<'static, ()> {
    FORKS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Returns when no child holds a descriptor any more that was closed before this was called. Blocks.
pub(crate) fn outlast_forks() {
    drop(FORKS.write().unwrap_or_else(PoisonError::into_inner));
}

/// Takes hold of a child that was just started; one that cannot be held is not left running.
pub(crate) fn hold(pid: u32, binary: &Path) -> Result<Process, VmmError> {
    Process::open(pid).map_err(|source| {
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            // Nobody has waited for the child, so the id is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        }
        VmmError::io("take hold of", binary, source)
    })
}

/// Whether a specification can be used at all.
pub(crate) fn check(spec: &LaunchSpec) -> Result<(), VmmError> {
    if spec.uid == 0 || spec.gid == 0 {
        return Err(VmmError::Privileged { uid: spec.uid, gid: spec.gid });
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if spec.id.is_empty() || !spec.id.chars().all(plain) {
        return Err(VmmError::BadId { id: spec.id.clone() });
    }
    let mut files = vec![("the machine's directory", &spec.dir)];
    match &spec.start {
        Start::Boot { kernel, initrd, .. } => {
            files.extend([("the kernel", kernel), ("the initial file system", initrd)]);
        }
        Start::Restore { base } => files.push(("the snapshot's memory", base)),
    }
    for (what, path) in files {
        let problem = match std::fs::metadata(path) {
            Err(error) => Some(error.to_string()),
            Ok(_) if !path.is_absolute() => Some("it must be an absolute path".to_owned()),
            Ok(meta) if what == "the initial file system" && !meta.len().is_multiple_of(INITRD_ALIGNMENT) => {
                Some(format!("its length must be a multiple of {INITRD_ALIGNMENT} bytes: pad it with zeros"))
            }
            Ok(_) => None,
        };
        if let Some(reason) = problem {
            return Err(VmmError::BadPath { what, path: path.clone(), reason });
        }
    }
    Ok(())
}

/// The files of a machine that every driver makes in the same way.
#[derive(Debug)]
pub(crate) struct Files {
    /// [`RUN`], which nobody but root enters.
    pub(crate) run: PathBuf,
    pub(crate) console: PathBuf,
    pub(crate) stderr: File,
    pub(crate) stderr_path: PathBuf,
}

impl Files {
    pub(crate) fn prepare(spec: &LaunchSpec) -> Result<Self, VmmError> {
        let run = spec.dir.join(RUN);
        make_directory(&run, 0o700)?;
        // The VMM may walk the machine's directory and read what is given to it, but make nothing there.
        give(&spec.dir, 0, spec.gid)?;
        set_mode(&spec.dir, 0o750)?;
        let console = spec.dir.join(CONSOLE);
        make(OpenOptions::new().append(true), &console)?;
        give(&console, spec.uid, spec.gid)?;
        let stderr_path = run.join(STDERR);
        let stderr = make(OpenOptions::new().write(true).truncate(true), &stderr_path)?;
        Ok(Self { run, console, stderr, stderr_path })
    }

    pub(crate) fn stderr(&self) -> Result<File, VmmError> {
        self.stderr.try_clone().map_err(|source| VmmError::io("open", &self.stderr_path, source))
    }
}

/// A started process that is not a machine yet. Dropped, it takes the process and its traces with it.
#[derive(Debug)]
pub(crate) struct Starting {
    pub(crate) remains: Option<Remains>,
    pub(crate) stderr: PathBuf,
}

impl Starting {
    pub(crate) fn new(remains: Remains, stderr: PathBuf) -> Self {
        Self { remains: Some(remains), stderr }
    }

    /// Ends what was started, and says why.
    pub(crate) async fn give_up(&mut self, after: Option<Duration>) -> VmmError {
        let Some(remains) = self.remains.take() else { return self.failure("no process".to_owned()) };
        let exit = match after {
            // A closed socket means that the VMM is ending; what it exits with is worth the wait.
            None => tokio::time::timeout(START_TIMEOUT, remains.process.exited())
                .await
                .map(|exit| exit.to_string()),
            Some(_) => Ok(String::new()),
        };
        if let Err(error) = remains.destroy().await {
            return error;
        }
        match (after, exit) {
            (Some(after), _) => VmmError::Unresponsive { after, said: tail(&self.stderr) },
            (None, exit) => self.failure(exit.unwrap_or_else(|_| "without an end".to_owned())),
        }
    }

    pub(crate) fn failure(&self, exit: String) -> VmmError {
        VmmError::Launch { exit, said: tail(&self.stderr) }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(remains) = self.remains.take() {
            remains.abandon();
        }
    }
}

/// What a failed start would leave behind, until a record names it.
#[derive(Debug)]
pub(crate) struct Traces {
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) socket: Option<PathBuf>,
}

impl Traces {
    /// The record of a machine that has a process now and answers for all of this from here on.
    pub(crate) fn recorded(
        mut self,
        driver: &str,
        spec: &LaunchSpec,
        process: &Process,
        memory: FileKey,
    ) -> Result<MachineRecord, VmmError> {
        let boot_id = process::boot_id()?;
        Ok(MachineRecord {
            driver: driver.to_owned(),
            id: spec.id.clone(),
            pid: process.pid(),
            start_time: process.start_time(),
            boot_id,
            socket: self.socket.take().unwrap_or_default(),
            cgroup: self.cgroup.take(),
            memory,
        })
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        for (path, is_dir) in [(&self.cgroup, true), (&self.socket, false)] {
            let Some(path) = path else { continue };
            let removed = if is_dir { std::fs::remove_dir(path) } else { std::fs::remove_file(path) };
            match removed {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!(?path, %error, "a failed start left something behind");
                }
                _ => {}
            }
        }
    }
}

pub(crate) fn make(options: &mut OpenOptions, path: &Path) -> Result<File, VmmError> {
    options.create(true).mode(0o600).open(path).map_err(|source| VmmError::io("make", path, source))
}

/// Removes a file; one that is gone already is fine.
pub(crate) fn remove(path: &Path) -> Result<(), VmmError> {
    absent_is_fine(std::fs::remove_file(path)).map_err(|source| VmmError::io("remove", path, source))
}

/// Removes a directory with all that is in it, following no link; one that is gone already is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<(), VmmError> {
    absent_is_fine(std::fs::remove_dir_all(path)).map_err(|source| VmmError::io("remove", path, source))
}

fn absent_is_fine(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), VmmError> {
    std::fs::create_dir_all(path).map_err(|source| VmmError::io("make", path, source))?;
    set_mode(path, mode)
}

pub(crate) fn give(path: &Path, uid: u32, gid: u32) -> Result<(), VmmError> {
    chown(path, Some(uid), Some(gid)).map_err(|source| VmmError::io("change the owner of", path, source))
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), VmmError> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|source| VmmError::io("change the mode of", path, source))
}

/// The end of a text file, on one line.
pub(crate) fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().replace('\n', "; ")
}
