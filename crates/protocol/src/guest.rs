//! The plain HTTP bodies of the guest daemon (`/init`, `/metrics`, `/files` and its errors). Names on the wire are
//! those of the E2B guest daemon.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Environment variable that tells a process which capsule it runs in.
pub const ENV_CAPSULE_ID: &str = "WRENN_SANDBOX_ID";
/// Environment variable that names the capsule's template.
pub const ENV_TEMPLATE_ID: &str = "WRENN_TEMPLATE_ID";

/// Response header of a refused `Process.Start` whose cause a caller treats apart from other bad requests; its value
/// is a [`SpawnError`] by name. The Connect code is `invalid_argument` all the same.
pub const SPAWN_ERROR_HEADER: &str = "wrenn-spawn-error";

/// Why a process could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpawnError {
    /// There is no such executable (a shell reports 127).
    NotFound,
    /// The file is there but cannot be executed (a shell reports 126).
    NotExecutable,
    /// The working directory is missing or is no directory.
    BadCwd,
}

impl SpawnError {
    /// The value of [`SPAWN_ERROR_HEADER`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::NotExecutable => "not-executable",
            Self::BadCwd => "bad-cwd",
        }
    }

    /// Reads the value of [`SPAWN_ERROR_HEADER`] back.
    pub fn parse(value: &str) -> Option<Self> {
        [Self::NotFound, Self::NotExecutable, Self::BadCwd].into_iter().find(|e| e.as_str() == value)
    }
}

/// Path of the call that the host makes before it takes a snapshot, without a body. File systems are written back, then
/// it is answered with 204; connections that wait for a request are closed, and others when their call is over.
pub const PREPARE_PATH: &str = "/prepare";

/// Body of `POST /init`, which the host sends after every boot and every restore. An absent field leaves what was
/// set before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitRequest {
    /// Variables of every process started from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// From now on every call but `/health` needs this in `X-Access-Token`; once set, `/init` does too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// The time now, RFC 3339 with nanoseconds; the guest's clock is stepped to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Linux user of processes and file calls that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Directory that relative paths start from, in place of the user's home.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// Host name of the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Fresh randomness, base64, at least 32 bytes: credited to the kernel's pool, which is then reseeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<String>,
    /// The machine was restored from a snapshot: whoever the daemon was connected to then is gone, so every connection
    /// but the one of this request is broken. Processes behind them go on as when a client hangs up.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub restored: bool,
    /// Which restore this is about. All attempts of one restore carry one number, of which only the first is obeyed: one that
    /// was given up may arrive when others have connected since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_number: Option<u64>,
    /// Bytes that the root disk has, or is about to have: the file system is grown to it in the background. The device
    /// may take up to five seconds to show that size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
}

/// Body of the answer to `POST /init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitResponse {
    /// Version of the daemon.
    pub version: String,
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Whether the daemon listens for [datagrams](crate::datagram); daemons that do not say so do not.
    #[serde(default)]
    pub datagrams: bool,
}

/// Body of `GET /metrics`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestMetrics {
    /// Unix seconds.
    pub ts: i64,
    /// CPUs online.
    pub cpu_count: u32,
    /// Share of all CPUs in use since the call before, 0 to 100.
    pub cpu_used_pct: f64,
    /// Bytes of memory in all.
    pub mem_total: u64,
    /// Bytes of memory in use (total less available).
    pub mem_used: u64,
    /// Bytes of page cache.
    pub mem_cache: u64,
    /// Bytes of the root file system in use.
    pub disk_used: u64,
    /// Bytes of the root file system in all.
    pub disk_total: u64,
}

/// Body of every refused plain HTTP call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestError {
    /// The HTTP status once more.
    pub code: u16,
    /// What is wrong, for people.
    pub message: String,
}

/// An entry of the array that answers `POST /files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadedFile {
    /// Last component of the path.
    pub name: String,
    /// Absolute path.
    pub path: String,
    /// Always `file`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Attributes given with the upload.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}
