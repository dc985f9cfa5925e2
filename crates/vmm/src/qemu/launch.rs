//! From a specification to a process that answers on its control socket.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::{self, View};
use super::machine::QemuMachine;
use super::{DRIVER, Qemu};
use crate::cgroup::{self, Limits};
use crate::confine::{Access, Confinement, Identity};
use crate::launch::{self, MAX_TASKS, MIB, START_TIMEOUT, Starting, Traces, give, make};
use crate::remains::Remains;
use crate::{Accelerator, FileKey, LaunchSpec, Start, VmmError, socket};

/// QEMU's own memory beside the guest's and the translation buffer.
const OVERHEAD_MB: u64 = 256;

/// Prepares the files and starts the process. Blocks for some milliseconds.
pub(super) fn begin(qemu: &Qemu, spec: &LaunchSpec) -> Result<Starting, VmmError> {
    launch::check(spec)?;
    let files = Files::prepare(spec)?;
    let file = spec.start.memory();
    let memory = std::fs::metadata(file).map_err(|source| VmmError::io("look at", file, source))?;
    let cgroup = spec.cgroup_parent.as_deref().map(|parent| cgroup::create(parent, &spec.id, limits(spec)));
    let traces = Traces { cgroup: cgroup.transpose()?, socket: Some(files.socket.clone()) };
    let child = start(qemu, spec, &files, traces.cgroup.as_deref())?;
    let process = launch::hold(child.id(), &qemu.binary)?;
    let record = traces.recorded(DRIVER, spec, &process, FileKey::of(&memory))?;
    Ok(Starting::new(Remains::new(process, record), files.common.stderr_path))
}

/// Waits until QEMU answers.
pub(super) async fn finish(mut starting: Starting) -> Result<QemuMachine, VmmError> {
    let Some(remains) = &starting.remains else { return Err(starting.failure("no process".to_owned())) };
    let answer = tokio::time::timeout(START_TIMEOUT, super::machine::control(&remains.record.socket)).await;
    let qmp = match answer {
        Ok(Ok(qmp)) => qmp,
        Ok(Err(error)) => {
            tracing::debug!(%error, "QEMU's control socket failed at its start");
            return Err(starting.give_up(None).await);
        }
        Err(_) => return Err(starting.give_up(Some(START_TIMEOUT)).await),
    };
    match starting.remains.take() {
        Some(remains) => Ok(QemuMachine::new(remains, qmp)),
        None => Err(starting.failure("no process".to_owned())),
    }
}

/// The files of a machine that the launcher makes or hands over.
#[derive(Debug)]
struct Files {
    common: launch::Files,
    socket: PathBuf,
    listener: UnixListener,
}

impl Files {
    fn prepare(spec: &LaunchSpec) -> Result<Self, VmmError> {
        let common = launch::Files::prepare(spec)?;
        if let Start::Boot { memory, .. } = &spec.start {
            let bytes = u64::from(spec.memory_mb) * MIB;
            make(OpenOptions::new().write(true).truncate(true), memory)?
                .set_len(bytes)
                .map_err(|source| VmmError::io("size", memory, source))?;
            give(memory, spec.uid, spec.gid)?;
        }
        let socket = common.run.join("qmp.sock");
        let listener =
            socket::listen(&socket).map_err(|source| VmmError::io("listen at", &socket, source))?;
        Ok(Self { common, socket, listener })
    }
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
    let mut command = Command::new(&qemu.binary);
    command.args(command::arguments(qemu, spec, &view));
    let output = (files.common.stderr()?, files.common.stderr()?);
    launch::spawn(command, confinement, output, &files.common.stderr_path)
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
    let mut place = |path: &Path, name: &str, access: Access| confinement.show_file(path, name, access);
    let (boot, memory) = match &spec.start {
        Start::Boot { kernel, initrd, cmdline, memory } => {
            let kernel = place(kernel, "kernel", Access::Read)?;
            let initrd = place(initrd, "initrd", Access::Read)?;
            (Some((kernel, initrd, cmdline.clone())), place(memory, "memory", Access::Write)?)
        }
        Start::Restore { base } => (None, place(base, "memory", Access::Read)?),
    };
    Ok(View {
        boot,
        memory,
        console: place(&files.common.console, "vm", Access::Write)?,
        tap: spec.tap.as_raw_fd(),
        control: files.listener.as_raw_fd(),
    })
}
