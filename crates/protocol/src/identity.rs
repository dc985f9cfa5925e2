//! The names in certificates by which control plane and hosts know each other.

use wrenn_core::HostId;

/// In the certificate of every control plane.
pub const CONTROL_PLANE: &str = "control-plane.wrenn.internal";

/// In the certificate of that host.
pub fn host_name(host: HostId) -> String {
    format!("{host}.hosts.wrenn.internal")
}
