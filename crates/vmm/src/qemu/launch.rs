//! From a specification to a process that answers on its control socket.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::command::{self, View};
use super::machine::{QemuMachine, Remains};
use super::{CONSOLE, DRIVER, INITRD_ALIGNMENT, Qemu};
use crate::cgroup::{self, Limits};
use crate::confine::{Confinement, Identity};
use crate::process::{self, Process};
use crate::{Accelerator, FileKey, LaunchSpec, MachineRecord, Start, VmmError, socket};

/// QEMU answers within a tenth of a second on an idle host.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// QEMU's own memory beside the guest's and the translation buffer.
const OVERHEAD_MB: u64 = 256;
/// A thread for each CPU, and those for disk requests.
const MAX_TASKS: u32 = 256;
/// How much of QEMU's standard error goes into an error.
const TAIL_BYTES: u64 = 2048;

/// Where QEMU's standard error goes, beside its socket.
pub(super) const STDERR: &str = "vmm.stderr";

const MIB: u64 = 1 << 20;

/// A started process that is not a machine yet. Dropped, it takes the process and its traces with it.
#[derive(Debug)]
pub(super) struct Starting {
    remains: Option<Remains>,
    stderr: PathBuf,
}

impl Starting {
    /// Prepares the files and starts the process. Blocks for some milliseconds.
    pub(super) fn begin(qemu: &Qemu, spec: LaunchSpec) -> Result<Self, VmmError> {
        check(&spec)?;
        let files = Files::prepare(&spec)?;
        let file = spec.start.memory();
        let memory = std::fs::metadata(file).map_err(|source| VmmError::io("look at", file, source))?;
        let cgroup =
            spec.cgroup_parent.as_deref().map(|parent| cgroup::create(parent, &spec.id, limits(&spec)));
        let mut traces = Traces { cgroup: cgroup.transpose()?, socket: Some(files.socket.clone()) };
        let child = start(qemu, &spec, &files, traces.cgroup.as_deref())?;
        let process = open(child.id(), &qemu.binary)?;
        let record = MachineRecord {
            driver: DRIVER.to_owned(),
            id: spec.id,
            pid: process.pid(),
            start_time: process.start_time(),
            boot_id: process::boot_id()?,
            socket: files.socket,
            cgroup: traces.cgroup.take(),
            memory: FileKey::of(&memory),
        };
        traces.socket = None;
        Ok(Self { remains: Some(Remains::new(process, record)), stderr: files.stderr_path })
    }

    /// Waits until QEMU answers.
    pub(super) async fn finish(mut self) -> Result<QemuMachine, VmmError> {
        let Some(remains) = &self.remains else { return Err(self.failure("no process".to_owned())) };
        let answer =
            tokio::time::timeout(START_TIMEOUT, super::machine::control(&remains.record.socket)).await;
        let qmp = match answer {
            Ok(Ok(qmp)) => qmp,
            Ok(Err(error)) => {
                tracing::debug!(%error, "QEMU's control socket failed at its start");
                return Err(self.give_up(None).await);
            }
            Err(_) => return Err(self.give_up(Some(START_TIMEOUT)).await),
        };
        match self.remains.take() {
            Some(remains) => Ok(QemuMachine::new(remains, qmp)),
            None => Err(self.failure("no process".to_owned())),
        }
    }

    /// Ends what was started, and says why.
    async fn give_up(&mut self, after: Option<Duration>) -> VmmError {
        let Some(remains) = self.remains.take() else { return self.failure("no process".to_owned()) };
        let exit = match after {
            // A closed socket means that QEMU is ending; what it exits with is worth the wait.
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

    fn failure(&self, exit: String) -> VmmError {
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
struct Traces {
    cgroup: Option<PathBuf>,
    socket: Option<PathBuf>,
}

impl Drop for Traces {
    fn drop(&mut self) {
        for (path, is_dir) in [(&self.cgroup, true), (&self.socket, false)] {
            let Some(path) = path else { continue };
            let removed = if is_dir { std::fs::remove_dir(path) } else { std::fs::remove_file(path) };
            if let Err(error) = removed {
                tracing::warn!(?path, %error, "a failed start left something behind");
            }
        }
    }
}

/// The files of a machine that the launcher makes or hands over.
#[derive(Debug)]
struct Files {
    socket: PathBuf,
    listener: UnixListener,
    stderr: File,
    stderr_path: PathBuf,
}

impl Files {
    fn prepare(spec: &LaunchSpec) -> Result<Self, VmmError> {
        let run = spec.dir.join("run");
        std::fs::create_dir_all(&run).map_err(|source| VmmError::io("make", &run, source))?;
        set_mode(&run, 0o700)?;
        // QEMU may walk the capsule's directory and read what is given to it, but make nothing there.
        give(&spec.dir, 0, spec.gid)?;
        set_mode(&spec.dir, 0o750)?;
        let console = spec.dir.join(CONSOLE);
        make(OpenOptions::new().append(true), &console)?;
        give(&console, spec.uid, spec.gid)?;
        if let Start::Boot { memory, .. } = &spec.start {
            let bytes = u64::from(spec.memory_mb) * MIB;
            make(OpenOptions::new().write(true).truncate(true), memory)?
                .set_len(bytes)
                .map_err(|source| VmmError::io("size", memory, source))?;
            give(memory, spec.uid, spec.gid)?;
        }
        let stderr_path = run.join(STDERR);
        let stderr = make(OpenOptions::new().write(true).truncate(true), &stderr_path)?;
        let socket = run.join("qmp.sock");
        let listener =
            socket::listen(&socket).map_err(|source| VmmError::io("listen at", &socket, source))?;
        Ok(Self { socket, listener, stderr, stderr_path })
    }
}

fn check(spec: &LaunchSpec) -> Result<(), VmmError> {
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

fn limits(spec: &LaunchSpec) -> Limits {
    let own = OVERHEAD_MB + u64::from(spec.tb_size_mb);
    Limits { memory_bytes: (u64::from(spec.memory_mb) + own) * MIB, tasks: MAX_TASKS }
}

fn start(
    qemu: &Qemu,
    spec: &LaunchSpec,
    files: &Files,
    cgroup: Option<&Path>,
) -> Result<std::process::Child, VmmError> {
    let mut confinement = Confinement::new(identity(spec), &spec.netns, cgroup)?;
    let view = show(&mut confinement, spec, files)?;
    confinement.inherit(&spec.tap);
    confinement.inherit(&files.listener);
    let stderr =
        || files.stderr.try_clone().map_err(|source| VmmError::io("open", &files.stderr_path, source));
    let mut command = Command::new(&qemu.binary);
    command.args(command::arguments(qemu, spec, &view)).env_clear().current_dir("/");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.stdin(Stdio::null()).stdout(stderr()?).stderr(stderr()?);
    // SAFETY: between fork and exec the closure makes system calls and nothing else, see `Confinement::enter`.
    unsafe { command.pre_exec(move || confinement.enter()) };
    command.spawn().map_err(|source| match source.kind() {
        ErrorKind::NotFound if tail(&files.stderr_path).is_empty() => {
            VmmError::BinaryMissing { binary: qemu.binary.clone() }
        }
        _ => VmmError::Launch { exit: source.to_string(), said: tail(&files.stderr_path) },
    })
}

fn identity(spec: &LaunchSpec) -> Identity {
    let extra_group = match spec.accel {
        Accelerator::Kvm => std::fs::metadata("/dev/kvm").ok().map(|meta| meta.gid()).filter(|gid| *gid != 0),
        Accelerator::Tcg => None,
    };
    Identity { uid: spec.uid, gid: spec.gid, extra_group }
}

/// Lays out what QEMU sees: each file's directory under a name that says what the file is for.
fn show(confinement: &mut Confinement, spec: &LaunchSpec, files: &Files) -> Result<View, VmmError> {
    let mut place = |path: &Path, name: &str, writable: bool| {
        let bad = || VmmError::BadPath {
            what: "a file",
            path: path.to_path_buf(),
            reason: "it has no name".into(),
        };
        let (dir, file) = (path.parent().ok_or_else(bad)?, path.file_name().ok_or_else(bad)?);
        Ok::<_, VmmError>(confinement.show(dir, name, writable)?.join(file))
    };
    let (boot, memory) = match &spec.start {
        Start::Boot { kernel, initrd, cmdline, memory } => {
            let files = (place(kernel, "kernel", false)?, place(initrd, "initrd", false)?, cmdline.clone());
            (Some(files), memory)
        }
        Start::Restore { base } => (None, base),
    };
    Ok(View {
        boot,
        memory: place(memory, "memory", matches!(spec.start, Start::Boot { .. }))?,
        console: place(&spec.dir.join(CONSOLE), "vm", true)?,
        tap: spec.tap.as_raw_fd(),
        control: files.listener.as_raw_fd(),
    })
}

/// Takes hold of a child that was just started; one that cannot be held is not left running.
fn open(pid: u32, binary: &Path) -> Result<Process, VmmError> {
    Process::open(pid).map_err(|source| {
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            // Nobody has waited for the child, so the id is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        }
        VmmError::io("take hold of", binary, source)
    })
}

fn make(options: &mut OpenOptions, path: &Path) -> Result<File, VmmError> {
    options.create(true).mode(0o600).open(path).map_err(|source| VmmError::io("make", path, source))
}

fn give(path: &Path, uid: u32, gid: u32) -> Result<(), VmmError> {
    chown(path, Some(uid), Some(gid)).map_err(|source| VmmError::io("change the owner of", path, source))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), VmmError> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|source| VmmError::io("change the mode of", path, source))
}

/// The end of a text file, on one line.
pub(super) fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().replace('\n', "; ")
}
