//! The record of a capsule: what an agent must know to take a running VM over from a dead one.
//!
//! `capsules/<id>/capsule.json` is written at every transition, beside its final name, synced and renamed, so that a
//! reader finds the old record or the new one. A directory without a readable record is the remains of a create
//! that never got far, and is removed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wrenn_core::{CapsuleId, Shape};
use wrenn_net::SlotIndex;
use wrenn_vmm::MachineRecord;

use crate::saved::Saved;

/// File name of the record in the capsule's directory.
pub const FILE: &str = "capsule.json";
/// Version of the format; a record of another version is not taken over.
pub const VERSION: u32 = 2;

/// What a capsule is doing on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Being booted.
    Starting,
    /// Serves traffic.
    Running,
    /// Its memory is being written to disk.
    Pausing,
    /// On disk, with its memory.
    Paused,
    /// Its memory is being brought back.
    Resuming,
    /// Being removed.
    Stopping,
    /// Gone.
    Stopped,
}

impl CapsuleSpec {
    /// Whether this is a machine that no capsule was asked for yet: nobody's template has an empty name.
    pub fn is_nobodys(&self) -> bool {
        self.template_name.is_empty()
    }
}

impl Phase {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// What the capsule was asked to be; never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapsuleSpec {
    /// The capsule's id.
    pub id: CapsuleId,
    /// Its template's directory below `templates/`.
    pub template_path: PathBuf,
    /// Its template's name, as the guest sees it.
    pub template_name: String,
    /// vCPUs, memory, disk.
    pub shape: Shape,
    /// Seconds without activity after which it is paused; 0 for never.
    pub timeout_sec: u32,
    /// Linux user of processes that name none; empty for the template's own.
    pub default_user: String,
    /// Variables of every process.
    pub default_env: BTreeMap<String, String>,
}

/// The record itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// What was asked for.
    pub spec: CapsuleSpec,
    /// What it is doing.
    pub phase: Phase,
    /// Counts transitions.
    pub generation: u64,
    /// The driver of its machine.
    #[serde(default = "first_driver")]
    pub driver: String,
    /// Its network slot, once it has one.
    pub slot: Option<SlotIndex>,
    /// Its VMM, once there is one.
    pub machine: Option<MachineRecord>,
    /// Token that the guest daemon demands.
    pub access_token: String,
    /// Kernel release and daemon version, once the guest has told.
    pub guest: Option<wrenn_protocol::guest::InitResponse>,
    /// Unix seconds of the last activity known when this was written.
    pub last_active: i64,
    /// What its processes get, once its template is known.
    pub defaults: Defaults,
    /// File name of the disk's top layer, once there is a disk. Where the VMM runs, it is the VMM that knows.
    pub disk: Option<String>,
    /// The last whole snapshot of it: what it is paused in, or what it was resumed from and saves against.
    pub saved: Option<Saved>,
}

/// The driver of records that were written when there was one.
fn first_driver() -> String {
    wrenn_vmm::qemu::DRIVER.to_owned()
}

/// What the processes of a capsule get where nobody says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defaults {
    /// Linux user.
    pub user: String,
    /// Variables.
    pub env: BTreeMap<String, String>,
}

impl Record {
    /// Reads the record in a capsule's directory.
    ///
    /// # Errors
    /// Where it is missing, damaged, or of another version.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let bytes = fs::read(dir.join(FILE))?;
        let record: Self = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
        if record.version == VERSION {
            Ok(record)
        } else {
            Err(io::Error::other(format!("record version {} is not {VERSION}", record.version)))
        }
    }

    /// Writes the record so that a crash leaves either the old or the new one.
    ///
    /// # Errors
    /// Where the directory cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        write_atomically(&dir.join(FILE), &bytes, 0o600)
    }
}

/// Replaces `path` by `bytes` with permissions `mode`: written beside, synced, renamed.
///
/// # Errors
/// Where the directory cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let write = || {
        let mut file: File =
            fs::OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&beside, path)
    };
    write().inspect_err(|_full| {
        // The room that it takes is what is missing most.
        let _absent = fs::remove_file(&beside);
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record of a capsule that is being booted.
    pub(crate) fn record(machine: Option<MachineRecord>) -> Record {
        Record {
            version: VERSION,
            spec: CapsuleSpec {
                id: CapsuleId::random(),
                template_path: "a/b".into(),
                template_name: "minimal".into(),
                shape: Shape { vcpus: 1, memory_mb: 512, disk_mb: 5120 },
                timeout_sec: 60,
                default_user: String::new(),
                default_env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            },
            phase: Phase::Starting,
            generation: 3,
            driver: first_driver(),
            slot: None,
            machine,
            access_token: "t".into(),
            guest: None,
            last_active: 7,
            defaults: Defaults::default(),
            disk: None,
            saved: None,
        }
    }

    #[test]
    fn a_record_reads_back_and_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut written = record(None);
        written.write(dir.path()).unwrap();
        written.phase = Phase::Running;
        written.write(dir.path()).unwrap();
        let read = Record::read(dir.path()).unwrap();
        assert_eq!((read.spec, read.phase, read.generation), (written.spec, Phase::Running, 3));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn damage_and_foreign_versions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Record::read(dir.path()).is_err());
        fs::write(dir.path().join(FILE), b"{\"version\":").unwrap();
        assert!(Record::read(dir.path()).is_err());
        let mut foreign = record(None);
        foreign.version = VERSION + 1;
        foreign.write(dir.path()).unwrap();
        assert!(Record::read(dir.path()).unwrap_err().to_string().contains("version"));
    }
}
