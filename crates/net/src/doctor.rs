//! What this machine lacks for slots, each with the command that mends it.

mod forwarding;

use std::borrow::Cow;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use crate::address::{GUEST_NET, VETH_NET};
use crate::tap::TUN_DEVICE;

pub use forwarding::check_forwarding;

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; mend it with: {mend}")]
pub struct Deficiency {
    /// What does not work, and why.
    pub what: String,
    /// The command, or the change, that mends it.
    pub mend: Cow<'static, str>,
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
        }
        .into(),
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
        }
        .into(),
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
        mend: "apt-get install nftables".into(),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let permitted = !message.contains("Operation not permitted");
    Err(Deficiency {
        what: format!("`nft list tables` fails: {}", message.trim()),
        mend: if permitted { "modprobe nf_tables" } else { "run the agent as root" }.into(),
    })
}

/// Whether the networks of the slots, 10.11.0.0/16 and 10.12.0.0/16, are free on this machine.
///
/// # Errors
/// Where a route of somebody else leads into one of them; hosts behind it could not be told from guests.
pub fn check_networks() -> Result<(), Deficiency> {
    let table = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    match table.lines().find_map(conflict) {
        None => Ok(()),
        Some((link, network)) => Err(Deficiency {
            what: format!(
                "the network {network}/16 is needed for slots, but a route on {link} leads into it"
            ),
            mend: "renumber that network, or remove the route: ip route del".into(),
        }),
    }
}

/// The link and the slots' network of a line of `/proc/net/route` that stands in the way. A default route and
/// routes wider than ours do not: ours are more specific.
fn conflict(line: &str) -> Option<(&str, Ipv4Addr)> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let (link, to, mask) = (*fields.first()?, fields.get(1)?, fields.get(7)?);
    // Addresses are printed as the number that the bytes in network order are on this machine.
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let (to, mask) = (number(to)?, number(mask)?);
    let wider = |prefix: u8| mask.leading_ones() < u32::from(prefix);
    let inside = |(network, prefix): (Ipv4Addr, u8)| {
        !wider(prefix) && (to ^ network.to_bits()) >> (32 - u32::from(prefix)) == 0
    };
    let ours = link.starts_with("wrenn-");
    [GUEST_NET, VETH_NET].into_iter().find(|net| !ours && inside(*net)).map(|(network, _)| (link, network))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_that_runs_the_tests_lacks_nothing() {
        assert_eq!(check_tun(), Ok(()));
        assert_eq!(check_netns(), Ok(()));
        assert_eq!(check_nft(), Ok(()));
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn only_routes_of_others_into_the_slots_networks_stand_in_the_way() {
        let line = |link, to, mask| format!("{link}\t{to}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0");
        let found = |link, to, mask| conflict(&line(link, to, mask)).map(|(_, network)| network.to_string());
        assert_eq!(found("eth0", "00000B0A", "0000FFFF").as_deref(), Some("10.11.0.0"));
        assert_eq!(found("tun0", "00050C0A", "00FFFFFF").as_deref(), Some("10.12.0.0"));
        assert_eq!(found("wrenn-5", "05000B0A", "FFFFFFFF"), None);
        assert_eq!(found("eth0", "00000000", "00000000"), None);
        assert_eq!(found("eth0", "0000000A", "000000FF"), None);
        assert_eq!(found("eth0", "00000D0A", "0000FFFF"), None);
        assert_eq!(conflict("Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask"), None);
    }
}
