//! Numbers that several crates must agree on.

/// vCPUs of a capsule whose request names none.
pub const DEFAULT_VCPUS: u32 = 1;
/// Memory in MiB of a capsule whose request names none.
pub const DEFAULT_MEMORY_MB: u32 = 512;
/// Disk in MiB of a capsule whose request names none.
pub const DEFAULT_DISK_MB: u32 = 5120;
/// Least memory in MiB that the base image boots with.
pub const MIN_MEMORY_MB: u32 = 128;
/// Shortest inactivity time-out in seconds; shorter requests are raised to it.
pub const MIN_TIMEOUT_SEC: u32 = 60;
/// Most vCPUs of one capsule, unless the deployment says otherwise.
pub const MAX_VCPUS: u32 = 32;
/// Most memory of one capsule in MiB, unless the deployment says otherwise.
pub const MAX_MEMORY_MB: u32 = 64 * 1024;
/// Largest root disk in MiB, unless the deployment says otherwise.
pub const MAX_DISK_MB: u32 = 512 * 1024;

/// TCP port of the daemon inside every guest.
pub const GUEST_PORT: u16 = 49983;

/// Foreground exec: seconds when the request names none.
pub const DEFAULT_EXEC_TIMEOUT_SEC: u32 = 30;
/// Foreground exec: most output kept, both streams together, in bytes.
pub const MAX_EXEC_OUTPUT: usize = 64 * 1024 * 1024;
/// Buffered upload: largest request body in bytes.
pub const MAX_UPLOAD: u64 = 100 * 1024 * 1024;
/// Buffered download: largest file in bytes.
pub const MAX_DOWNLOAD: u64 = 256 * 1024 * 1024;
/// Largest message that a WebSocket client may send, in bytes.
pub const MAX_WS_MESSAGE: usize = 4 * 1024 * 1024;
