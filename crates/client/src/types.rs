//! The objects of the API.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use wrenn_core::{CapsuleId, CapsuleStatus, timestamp};

/// A capsule as the server describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capsule {
    /// Its id.
    pub id: CapsuleId,
    /// Where it is in its life.
    pub status: CapsuleStatus,
    /// The template it was made from, as it was asked for.
    pub template: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Seconds of inactivity after which it is paused; 0 for never.
    pub timeout_sec: u32,
    /// Capacity of its disk in MiB; 0 until known.
    pub disk_size_mb: u32,
    /// Disk space in use in MiB; only in the answer about a single capsule, and only where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_used_mb: Option<u32>,
    /// When it was asked for.
    #[serde(deserialize_with = "time::serde::rfc3339::deserialize", serialize_with = "timestamp::serialize")]
    pub created_at: OffsetDateTime,
    /// When its state last changed.
    #[serde(deserialize_with = "time::serde::rfc3339::deserialize", serialize_with = "timestamp::serialize")]
    pub last_updated: OffsetDateTime,
    /// When it first ran.
    #[serde(
        default,
        deserialize_with = "time::serde::rfc3339::option::deserialize",
        serialize_with = "timestamp::serialize_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub started_at: Option<OffsetDateTime>,
    /// When it last did something for a caller.
    #[serde(
        default,
        deserialize_with = "time::serde::rfc3339::option::deserialize",
        serialize_with = "timestamp::serialize_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_active_at: Option<OffsetDateTime>,
    /// Labels of the caller and, once it runs, version labels of the platform.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// What a server says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The server's version.
    pub version: String,
}

/// What a new capsule should be. What is not set takes the server's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CreateCapsule {
    /// Template name; the server's default is `minimal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Virtual CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Disk in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size_mb: Option<u32>,
    /// Seconds of inactivity after which it is paused; 0 for never, at least 60 otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_sec: Option<u32>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl CreateCapsule {
    /// A capsule of this template with default sizes.
    pub fn new(template: impl Into<String>) -> Self {
        Self { template: Some(template.into()), ..Self::default() }
    }

    /// Sets the virtual CPUs.
    #[must_use]
    pub fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = Some(count);
        self
    }

    /// Sets the memory in MiB.
    #[must_use]
    pub fn memory_mb(mut self, mb: u32) -> Self {
        self.memory_mb = Some(mb);
        self
    }

    /// Sets the disk size in MiB.
    #[must_use]
    pub fn disk_size_mb(mut self, mb: u32) -> Self {
        self.disk_size_mb = Some(mb);
        self
    }

    /// Sets the inactivity time-out in seconds.
    #[must_use]
    pub fn timeout_sec(mut self, seconds: u32) -> Self {
        self.timeout_sec = Some(seconds);
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }
}

/// How to fork a capsule. What is not set takes the server's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ForkCapsule {
    /// Number of copies, from 1 to 100; the server's default is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Labels of every copy; where empty, those of the source.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl ForkCapsule {
    /// This many copies with the labels of the source.
    pub fn copies(count: u32) -> Self {
        Self { count: Some(count), ..Self::default() }
    }

    /// Adds a label; with one, the copies have none of the source's.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }
}

/// A program to run in a capsule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Command {
    /// The executable, by path or found on `PATH`.
    pub cmd: String,
    /// Its arguments, passed verbatim.
    pub args: Vec<String>,
    /// Variables over the base environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    /// Working directory; the user's home where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Seconds after which it is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_sec: Option<u32>,
}

impl Command {
    /// An executable without arguments.
    pub fn new(cmd: impl Into<String>) -> Self {
        Self { cmd: cmd.into(), args: Vec::new(), envs: BTreeMap::new(), cwd: None, timeout_sec: None }
    }

    /// A line for `/bin/sh -c`.
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new("/bin/sh").arg("-c").arg(line)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.envs.insert(key.into(), value.into());
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<String>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// Sets the seconds after which the process is killed. In the foreground the server's default is 30;
    /// streams have none.
    #[must_use]
    pub fn timeout_sec(mut self, seconds: u32) -> Self {
        self.timeout_sec = Some(seconds);
        self
    }
}

/// What a foreground command left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// Exact bytes of standard output.
    pub stdout: Bytes,
    /// Exact bytes of standard error.
    pub stderr: Bytes,
    /// Exit code; 127 where the executable is missing, -1 after death by a signal.
    pub exit_code: i32,
    /// How long it ran.
    pub duration: Duration,
}

impl ExecResult {
    /// Standard output as text; bytes that are not UTF-8 become U+FFFD.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text; bytes that are not UTF-8 become U+FFFD.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A background process that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedProcess {
    /// Its process id in the capsule.
    pub pid: u32,
    /// Its name, given or made up.
    pub tag: String,
}

/// A living process that was started through the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its process id in the capsule.
    pub pid: u32,
    /// Its name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The executable.
    pub cmd: String,
    /// Its arguments.
    #[serde(default, deserialize_with = "null_as_default")]
    pub args: Vec<String>,
}

/// Kind of a directory entry. A link counts as what it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A file, or something special such as a pipe; [`FileEntry::is_special`] tells.
    File,
    /// A directory.
    Directory,
    /// A link that leads nowhere.
    Symlink,
}

/// A file or directory in a capsule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Last component of the path. The guest chooses it: check it before using it as a local name.
    pub name: String,
    /// The listed directory joined with the relative path.
    pub path: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: FileKind,
    /// Size in bytes; of the link itself for a link.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// The same as ten characters, for example `-rw-r--r--`.
    pub permissions: String,
    /// Owner's name, or id as text.
    pub owner: String,
    /// Group's name, or id as text.
    pub group: String,
    /// Last change in seconds since 1970.
    pub modified_at: i64,
    /// Where a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
}

impl FileEntry {
    /// Whether it is a pipe, socket or device, which cannot be read as a file.
    pub fn is_special(&self) -> bool {
        matches!(self.permissions.chars().next(), Some('b' | 'c' | 'p' | 'S'))
    }
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// The API may write an absent collection as `null`.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capsule_reads_and_writes_the_same_json() {
        let json = serde_json::json!({
            "id": "cl-6dfzh5ik5vyvhrb0t267ptnew", "status": "running", "template": "minimal", "vcpus": 1,
            "memory_mb": 512, "timeout_sec": 0, "disk_size_mb": 5120,
            "created_at": "2026-01-02T03:04:05Z", "last_updated": "2026-01-02T03:04:06Z",
            "started_at": "2026-01-02T03:04:06Z", "metadata": {"env": "prod"},
        });
        let capsule: Capsule = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(capsule.status, CapsuleStatus::Running);
        assert_eq!(serde_json::to_value(&capsule).unwrap(), json);
    }

    #[test]
    fn optional_fields_may_be_null_and_unknown_fields_are_ignored() {
        let json = serde_json::json!({
            "id": "cl-6dfzh5ik5vyvhrb0t267ptnew", "status": "starting", "template": "minimal", "vcpus": 1,
            "memory_mb": 512, "timeout_sec": 0, "disk_size_mb": 0, "disk_used_mb": null, "metadata": null,
            "created_at": "2026-01-02T05:04:05+02:00", "last_updated": "2026-01-02T03:04:06Z",
            "started_at": null, "last_active_at": null, "fresh": true,
        });
        let capsule: Capsule = serde_json::from_value(json).unwrap();
        assert_eq!((capsule.started_at, capsule.metadata.len()), (None, 0));
    }

    #[test]
    fn a_request_carries_only_what_was_set() {
        assert_eq!(serde_json::to_value(CreateCapsule::default()).unwrap(), serde_json::json!({}));
        let request = CreateCapsule::new("a").vcpus(2).label("k", "v");
        assert_eq!(
            serde_json::to_value(request).unwrap(),
            serde_json::json!({"template": "a", "vcpus": 2, "metadata": {"k": "v"}})
        );
    }
}
