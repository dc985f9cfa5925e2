//! From a specification to a Firecracker that answers on its socket.
//!
//! | in the machine's `run` | the VMM sees it at | for |
//! |---|---|---|
//! | `vm/` | `/run/wrenn/vmm/vm` | its socket, the pager's, and what snapshots are written to; its user's own |
//! | `dev/` | `/run/wrenn/vmm/dev` | the nodes of its devices; the disk is always `dev/disk`, so that a snapshot finds it |

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::api::{Api, ApiError};
use super::types::{
    BootSource, INTERFACE, InstanceInfo, MachineConfiguration, MmdsConfig, NetworkInterface, RateLimiter,
};
use super::{DRIVER, Firecracker, nodes};
use crate::cgroup::{self, Limits};
use crate::confine::{Access, Confinement, Identity};
use crate::launch::{
    self, Files, MAX_TASKS, MIB, START_TIMEOUT, Starting, Traces, give, make_directory, remove, remove_tree,
};
use crate::remains::Remains;
use crate::{FileKey, LaunchSpec, Start, VmmError};

/// The VMM's own directory in the machine's `run`.
pub(super) const OWN: &str = "vm";
/// Its socket, from `run` on.
pub(super) const SOCKET: &str = "vm/api.sock";
/// In the machine's `run`: how the next agent finds the pager, and what the pager says.
pub(super) const PAGER_RECORD: &str = "pager.json";
pub(super) const PAGER_STDERR: &str = "pager.stderr";
/// There too: a snapshot of this run may have ended without its pages being counted or written.
pub(super) const INCOMPLETE: &str = "incomplete";
/// Memory of Firecracker and of the pager beside the guest's.
const OVERHEAD_MB: u64 = 256;
/// Pause between two looks at a socket that is not there yet.
const LOOK: Duration = Duration::from_millis(2);

/// How often, and after which pauses, a TAP that is busy is tried again.
const BUSY_LOOKS: u32 = 100;
const BUSY_LOOK: Duration = Duration::from_millis(10);

/// What its machine model needs on the kernel's command line. The later of two words for the same thing counts.
const CMDLINE: &str = "reboot=k pci=off i8042.noaux i8042.nomux i8042.dumbkbd";

/// A process that has been started, and what to tell it.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) starting: Starting,
    pub(super) api: Api,
    pub(super) view: View,
}

/// How the VMM sees the files of its specification.
#[derive(Debug)]
pub(super) struct View {
    /// [`OWN`].
    pub(super) own: PathBuf,
    /// Kernel, initial file system, command line.
    boot: Option<(PathBuf, PathBuf, String)>,
    /// It is started for a snapshot.
    pub(super) restores: bool,
    tap: String,
}

/// Prepares the files and starts the process. Blocks for some milliseconds.
pub(super) fn begin(driver: &Firecracker, spec: LaunchSpec) -> Result<(Begun, LaunchFacts), VmmError> {
    launch::check(&spec)?;
    let facts = LaunchFacts::of(&spec);
    let files = Files::prepare(&spec)?;
    let own = files.run.join(OWN);
    // What an earlier run has left there is not this one's.
    remove_tree(&own)?;
    for name in [PAGER_RECORD, PAGER_STDERR, INCOMPLETE] {
        remove(&files.run.join(name))?;
    }
    make_directory(&own, 0o700)?;
    give(&own, spec.uid, spec.gid)?;
    // The log goes where the errors go, and is opened by the VMM's own user.
    give(&files.stderr_path, spec.uid, spec.gid)?;
    let memory = match &spec.start {
        Start::Boot { .. } => &files.run,
        Start::Restore { base } => base,
    };
    let memory = std::fs::metadata(memory).map_err(|source| VmmError::io("look at", memory, source))?;
    let api = Api::open(&files.run, SOCKET)?;
    let cgroup = spec.cgroup_parent.as_deref().map(|parent| cgroup::create(parent, &spec.id, limits(&spec)));
    let traces = Traces { cgroup: cgroup.transpose()?, socket: Some(files.run.join(SOCKET)) };
    let identity = Identity { uid: spec.uid, gid: spec.gid, extra_group: None };
    let mut confinement = Confinement::new(identity, &spec.netns, traces.cgroup.as_deref())?;
    let mut view = show(&mut confinement, &spec, &files)?;
    let child = start(driver, &spec, &files, confinement, &view)?;
    let process = launch::hold(child.id(), &driver.binary)?;
    api.expect(process.pid());
    let record = traces.recorded(DRIVER, &spec, &process, FileKey::of(&memory))?;
    let starting = Starting::new(Remains::new(process, record), files.stderr_path);
    view.tap = nodes::give_tap(spec.tap, spec.uid)?;
    Ok((Begun { starting, api, view }, facts))
}

/// What of a specification is needed after the start.
#[derive(Debug, Clone, Copy)]
pub(super) struct LaunchFacts {
    pub(super) vcpus: u32,
    pub(super) memory_mb: u32,
    pub(super) mac: [u8; 6],
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) egress: Option<u64>,
}

impl LaunchFacts {
    fn of(spec: &LaunchSpec) -> Self {
        Self {
            vcpus: spec.vcpus,
            memory_mb: spec.memory_mb,
            mac: spec.mac,
            uid: spec.uid,
            gid: spec.gid,
            egress: spec.egress_bytes_per_second,
        }
    }
}

fn limits(spec: &LaunchSpec) -> Limits {
    Limits { memory_bytes: (u64::from(spec.memory_mb) + OVERHEAD_MB) * MIB, tasks: MAX_TASKS }
}

fn show(confinement: &mut Confinement, spec: &LaunchSpec, files: &Files) -> Result<View, VmmError> {
    let own = confinement.show(&files.run.join(OWN), OWN, Access::Write)?;
    nodes::make(confinement, &files.run, spec)?;
    let boot = match &spec.start {
        Start::Boot { kernel, initrd, cmdline, .. } => {
            let kernel = confinement.show_file(kernel, "kernel", Access::Read)?;
            let initrd = confinement.show_file(initrd, "initrd", Access::Read)?;
            Some((kernel, initrd, format!("{cmdline} {CMDLINE}")))
        }
        // It is given its memory by its pager, or in its own directory.
        Start::Restore { .. } => None,
    };
    let restores = boot.is_none();
    Ok(View { own, boot, restores, tap: String::new() })
}

fn start(
    driver: &Firecracker,
    spec: &LaunchSpec,
    files: &Files,
    confinement: Confinement,
    view: &View,
) -> Result<std::process::Child, VmmError> {
    let opened = |path: &Path| {
        let file = OpenOptions::new().append(true).open(path);
        file.map_err(|source| VmmError::io("open", path, source))
    };
    let socket = view.own.join(Path::new(SOCKET).file_name().unwrap_or_default());
    let mut command = Command::new(&driver.binary);
    // Its ids have no underscores.
    command.args(["--id", &spec.id.replace('_', "-")]).arg("--api-sock").arg(socket);
    command.args(["--log-path", "/proc/self/fd/2", "--level", "Warn"]);
    // The guest's serial port is its standard output.
    let output = (opened(&files.console)?, opened(&files.stderr_path)?);
    launch::spawn(command, confinement, output, &files.stderr_path)
}

/// Waits until Firecracker answers, and describes the machine to it.
pub(super) async fn finish(
    mut begun: Begun,
    facts: LaunchFacts,
) -> Result<(Remains, Api, View, String), VmmError> {
    let Some(remains) = &begun.starting.remains else {
        return Err(begun.starting.failure("no process".to_owned()));
    };
    let appears = async {
        while !begun.api.answers().await {
            tokio::time::sleep(LOOK).await;
        }
    };
    let failed = tokio::select! {
        () = appears => None,
        _ = remains.process.exited() => Some(None),
        () = tokio::time::sleep(START_TIMEOUT) => Some(Some(START_TIMEOUT)),
    };
    if let Some(after) = failed {
        return Err(begun.starting.give_up(after).await);
    }
    let version = match describe(&begun.api, &begun.view, facts).await {
        Ok(version) => version,
        Err(error) => {
            let said = begun.starting.give_up(Some(Duration::ZERO)).await;
            tracing::debug!(%said, "a machine was not accepted");
            return Err(error);
        }
    };
    match begun.starting.remains.take() {
        Some(remains) => Ok((remains, begun.api, begun.view, version)),
        None => Err(begun.starting.failure("no process".to_owned())),
    }
}

/// Says what there is to the VMM, and asks its version. A machine that is going to be restored brings all else with it.
async fn describe(api: &Api, view: &View, facts: LaunchFacts) -> Result<String, VmmError> {
    let InstanceInfo { vmm_version, .. } = api.get("/").await?;
    let Some((kernel, initrd, cmdline)) = &view.boot else { return Ok(vmm_version) };
    let machine = MachineConfiguration {
        vcpu_count: facts.vcpus,
        mem_size_mib: facts.memory_mb,
        smt: false,
        track_dirty_pages: true,
    };
    api.put("/machine-config", &machine).await?;
    let boot = BootSource {
        kernel_image_path: &kernel.to_string_lossy(),
        initrd_path: &initrd.to_string_lossy(),
        boot_args: cmdline,
    };
    api.put("/boot-source", &boot).await?;
    let mac = facts.mac.map(|byte| format!("{byte:02x}")).join(":");
    let interface = NetworkInterface {
        iface_id: INTERFACE,
        host_dev_name: &view.tap,
        guest_mac: &mac,
        tx_rate_limiter: facts.egress.map(|bytes| RateLimiter::of(Some(bytes))),
    };
    attach_network(api, &interface).await?;
    api.put("/mmds/config", &MmdsConfig { version: "V2", network_interfaces: &[INTERFACE] }).await?;
    api.put("/entropy", &serde_json::json!({})).await?;
    Ok(vmm_version)
}

/// Attaches the TAP. A child that somebody has just started may have a copy of its descriptor for a moment still.
async fn attach_network(api: &Api, interface: &NetworkInterface<'_>) -> Result<(), VmmError> {
    let mut patience = BUSY_LOOKS;
    loop {
        match api.put("/network-interfaces/eth0", interface).await {
            Err(ApiError::Refused { message, .. }) if message.contains("busy") && patience > 0 => {
                patience -= 1;
                tokio::time::sleep(BUSY_LOOK).await;
            }
            attached => return Ok(attached?),
        }
    }
}
