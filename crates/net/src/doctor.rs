//! What this machine lacks for slots, each with the command that mends it.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use crate::tap::TUN_DEVICE;

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; mend it with: {mend}")]
pub struct Deficiency {
    /// What does not work, and why.
    pub what: String,
    /// The command, or the change, that mends it.
    pub mend: &'static str,
}

/// Whether TAP devices can be made.
///
/// # Errors
/// Where `/dev/net/tun` is missing or may not be opened.
pub fn check_tun() -> Result<(), Deficiency> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(TUN_DEVICE);
    opened.map(drop).map_err(|error| Deficiency {
        what: format!("{TUN_DEVICE} cannot be opened: {error}"),
        mend: match error.kind() {
            io::ErrorKind::PermissionDenied => "run the agent as root",
            _ if Path::new(TUN_DEVICE).exists() => "modprobe tun",
            _ => "modprobe tun && mkdir -p /dev/net && mknod /dev/net/tun c 10 200",
        },
    })
}

/// Whether network namespaces can be made. Makes one in a thread of its own, which ends with it.
///
/// # Errors
/// Where the kernel refuses, for lack of privilege or support.
pub fn check_netns() -> Result<(), Deficiency> {
    let attempt = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join();
    let refusal = match attempt {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(errno)) => errno,
        Err(_) => nix::Error::UnknownErrno,
    };
    Err(Deficiency {
        what: format!("network namespaces cannot be made: {refusal}"),
        mend: match refusal {
            nix::Error::EPERM => "run the agent as root, or grant it CAP_SYS_ADMIN and CAP_NET_ADMIN",
            nix::Error::ENOSPC => "sysctl -w user.max_net_namespaces=65536",
            _ => "use a kernel with CONFIG_NET_NS",
        },
    })
}

/// Whether `nft` is installed and the kernel has nf_tables.
///
/// # Errors
/// Where the program cannot be started, or cannot list the rules.
pub fn check_nft() -> Result<(), Deficiency> {
    let output = Command::new("nft").args(["list", "tables"]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| Deficiency {
        what: format!("`nft` cannot be run: {error}"),
        mend: "apt-get install nftables",
    })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let permitted = !message.contains("Operation not permitted");
    Err(Deficiency {
        what: format!("`nft list tables` fails: {}", message.trim()),
        mend: if permitted { "modprobe nf_tables" } else { "run the agent as root" },
    })
}
