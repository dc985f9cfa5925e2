//! What can go wrong, said with the cure.

use std::io;
use std::path::{Path, PathBuf};

use crate::address::SlotIndex;
use crate::tap::TUN_DEVICE;

/// The result of everything here.
pub type Result<T, E = NetError> = std::result::Result<T, E>;

/// Why the network could not be set up, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel or the file system refused an operation on a named object.
    #[error("cannot {action} {object}{}", cure(source))]
    Refused {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        object: String,
        /// The refusal.
        source: io::Error,
    },
    /// The machine cannot make TAP devices.
    #[error("cannot open /dev/net/tun, which makes the TAP of a virtual machine; load it: modprobe tun")]
    TunMissing {
        /// Why it did not open.
        source: io::Error,
    },
    /// The `nft` program is not installed.
    #[error("cannot run `nft`, which writes the host's firewall table; install it: apt-get install nftables")]
    NftMissing {
        /// Why it did not start.
        source: io::Error,
    },
    /// `nft` did not accept the host's table.
    #[error(
        "nft refused the host's firewall table: {message}; the kernel needs nf_tables with inet, NAT and \
         conntrack support: modprobe nf_tables nft_chain_nat nft_ct nft_masq"
    )]
    NftRefused {
        /// What `nft` printed.
        message: String,
    },
    /// The kernel refused a namespace's firewall rules.
    #[error(
        "the kernel refused the firewall rules of slot {index}; it needs nf_tables with NAT and conntrack \
         support: modprobe nf_tables nft_chain_nat nft_ct nft_masq"
    )]
    Firewall {
        /// The slot.
        index: SlotIndex,
        /// The refusal.
        source: io::Error,
    },
    /// All 32767 slots of this machine are claimed.
    #[error("all 32767 network slots of this machine are taken; destroy some capsules, or use another host")]
    Exhausted,
    /// A kernel object or a claim with a slot's name exists already and is not ours.
    #[error("slot {index} is occupied: {object} exists and belongs to somebody else")]
    Occupied {
        /// The slot.
        index: SlotIndex,
        /// What stands in the way.
        object: String,
    },
    /// The slot has no claim, or that of another installation.
    #[error("slot {index} is not claimed by this installation; {} tells whose it is", claim.display())]
    NotOurs {
        /// The slot.
        index: SlotIndex,
        /// The claim file that was consulted.
        claim: PathBuf,
    },
    /// A slot that should be complete lacks a part.
    #[error("slot {index} has lost its {part}; sweep it and take a new one")]
    Incomplete {
        /// The slot.
        index: SlotIndex,
        /// What is missing.
        part: &'static str,
    },
    /// A background task ended early, because the runtime is shutting down.
    #[error("the network task was stopped before it finished; a sweep removes what it left")]
    Interrupted,
    /// Made to happen by a test.
    #[cfg(test)]
    #[error("failure injected after {0}")]
    Injected(String),
}

impl NetError {
    /// For `map_err`: an operation on an object that was refused.
    pub(crate) fn refused(action: &'static str, object: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let object = object.into();
        move |source| Self::Refused { action, object, source }
    }
}

/// The refusal of an operation on a TAP, which may be for lack of the driver.
pub(crate) fn tap_refused(action: &'static str, object: String) -> impl FnOnce(io::Error) -> NetError {
    move |source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO) if !Path::new(TUN_DEVICE).exists() => {
            NetError::TunMissing { source }
        }
        _ => NetError::refused(action, object)(source),
    }
}

/// What an operator can do about a refusal, where the kind of refusal tells.
fn cure(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "; run the agent as root, or grant it CAP_NET_ADMIN and CAP_SYS_ADMIN"
        }
        Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open files (ulimit -n, fs.file-max)",
        Some(libc::ENOSPC) => {
            "; raise user.max_net_namespaces and user.max_mnt_namespaces, or free space in /run"
        }
        Some(libc::EOPNOTSUPP | libc::ENODEV) => "; the kernel lacks support: modprobe veth tun",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_lack_of_privilege_names_the_capability_and_not_its_source() {
        let source = io::Error::from_raw_os_error(libc::EPERM);
        let text = NetError::refused("create", "namespace wrenn-7")(source).to_string();
        assert_eq!(
            text,
            "cannot create namespace wrenn-7; run the agent as root, or grant it CAP_NET_ADMIN and CAP_SYS_ADMIN"
        );
    }
}
