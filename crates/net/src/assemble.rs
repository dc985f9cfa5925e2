//! Building a slot part by part, and taking it down in the reverse order.
//!
//! ```text
//! claim ─▶ namespace ─▶ TAP ─▶ veth ─▶ addresses ─▶ routes ─▶ firewall ─▶ DNS
//! ```
//!
//! Three of these have a life of their own and must be undone: the claim file, the named namespace and the veth
//! pair. The others live inside one of the three and go with it. [`Part`] is the list of the three; a failed
//! build, a release and a sweep all come down to [`demolish`] over what may exist.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::address::{
    GUEST_ADDR, GUEST_MAC, GUEST_PREFIX_LEN, SlotIndex, TAP_ADDR, TAP_MAC, TAP_NAME, VETH_NAME,
    VETH_PREFIX_LEN,
};
use crate::claims::Taken;
use crate::dns::{self, Forwarder};
use crate::error::{NetError, Result};
use crate::firewall::Before;
use crate::namespace::Resident;
use crate::network::Shared;
use crate::{error, firewall, links, namespace, tap};

/// Where a build can fail; a test fails it after each in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Claim,
    Namespace,
    Tap,
    Veth,
    Addresses,
    Routes,
    Firewall,
    Dns,
}

/// What a slot leaves outside of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The claim file.
    Claim,
    /// The namespace's name, its TAP and its rules.
    Namespace,
    /// The veth pair with its addresses and routes.
    Veth,
}

impl Part {
    /// A whole slot, in the order in which it is built.
    pub(crate) const ALL: [Self; 3] = [Self::Claim, Self::Namespace, Self::Veth];
}

/// What a slot that was built holds in this process.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) forwarder: Forwarder,
    /// The TAP, open since it was made. Opening it again could find it busy: whatever child this process was starting
    /// when it was closed would have it for a moment longer.
    pub(crate) tap: OwnedFd,
}

/// Builds a slot; on failure nothing of it is left.
///
/// # Errors
/// [`NetError::Occupied`] where the slot's number or one of its names is in use by somebody else.
pub(crate) async fn build(shared: &Shared, index: SlotIndex) -> Result<Built> {
    let mut parts = Vec::new();
    let outcome = raise(shared, index, &mut parts).await;
    if outcome.is_err()
        && let Err(error) = demolish(shared, index, &parts).await
    {
        tracing::error!(slot = %index, %error, "cannot undo a failed slot; the next sweep will try again");
    }
    outcome
}

/// Removes these parts of a slot, last one first; what is gone already is no error. The claim stays where
/// something before it could not be removed, so that a sweep finds the rest.
pub(crate) async fn demolish(shared: &Shared, index: SlotIndex, parts: &[Part]) -> Result<()> {
    for part in parts.iter().rev() {
        match part {
            Part::Veth => links::remove(&shared.netlink, &index.name())
                .await
                .map_err(NetError::refused("remove", format!("link {}", index.name())))?,
            Part::Namespace => namespace::remove(&index.netns_path())
                .map_err(NetError::refused("remove", format!("namespace {}", index.name())))?,
            Part::Claim => shared
                .claims
                .give_up(index)
                .map_err(NetError::refused("remove", shared.claims.path(index).display().to_string()))?,
        }
    }
    Ok(())
}

/// Fails where anything that [`Part::ALL`] names exists without a claim: it is not ours to touch.
fn check_vacant(index: SlotIndex) -> Result<()> {
    let occupied = |object: String| Err(NetError::Occupied { index, object });
    if index.netns_path().symlink_metadata().is_ok() {
        return occupied(format!("namespace {}", index.name()));
    }
    match links::find(&index.name()) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => occupied(format!("link {}", index.name())),
        Err(error) => Err(NetError::refused("look up", format!("link {}", index.name()))(error)),
    }
}

async fn raise(shared: &Shared, index: SlotIndex, parts: &mut Vec<Part>) -> Result<Built> {
    claim(shared, index)?;
    parts.push(Part::Claim);
    shared.reached(Step::Claim)?;

    let object = format!("namespace {}", index.name());
    let resident = Resident::create(index.netns_path()).await.map_err(refused_or_occupied(index, &object))?;
    parts.push(Part::Namespace);
    resident.run(namespace::configure_sysctls).await.map_err(NetError::refused("configure", object))?;
    shared.reached(Step::Namespace)?;

    let object = format!("TAP {TAP_NAME} in namespace {}", index.name());
    let tap = resident.run(tap::create).await.map_err(error::tap_refused("create", object))?;
    shared.reached(Step::Tap)?;

    join_veth(shared, index, parts).await?;
    shared.reached(Step::Veth)?;

    configure_inside(shared, index, &resident).await?;
    install_firewall(shared, index, &resident, Before::Nothing).await?;
    shared.reached(Step::Firewall)?;

    let forwarder = dns::start(shared.resolver.clone(), index, &resident).await?;
    shared.reached(Step::Dns)?;
    Ok(Built { forwarder, tap })
}

fn claim(shared: &Shared, index: SlotIndex) -> Result<()> {
    let path = shared.claims.path(index).display().to_string();
    check_vacant(index)?;
    match shared.claims.take(index, &shared.claim) {
        Ok(Taken::Ours) => Ok(()),
        Ok(Taken::ByOther) => Err(NetError::Occupied { index, object: path }),
        Err(error) => Err(NetError::refused("create", path)(error)),
    }
}

/// Makes the pair and the route to the guest; only what was made here is entered in `parts`.
async fn join_veth(shared: &Shared, index: SlotIndex, parts: &mut Vec<Part>) -> Result<()> {
    let name = index.name();
    let path = index.netns_path();
    let netns = File::open(&path).map_err(NetError::refused("open", path.display().to_string()))?;
    let made = links::add_veth(&shared.netlink, &name, VETH_NAME, netns.as_fd()).await;
    made.map_err(refused_or_occupied(index, &format!("link {name}")))?;
    parts.push(Part::Veth);
    // The host would otherwise solicit routers on each of these links.
    namespace::disable_ipv6(&name).map_err(NetError::refused("disable IPv6 on", format!("link {name}")))
}

/// Addresses and routes on both sides.
async fn configure_inside(shared: &Shared, index: SlotIndex, resident: &Resident) -> Result<()> {
    let inside = |what: &str| format!("{what} in namespace {}", index.name());
    let host_link = links::index_of(&index.name())
        .map_err(NetError::refused("look up", format!("link {}", index.name())))?;
    let opened =
        resident.run(|| Ok((links::connect()?, links::index_of(TAP_NAME)?, links::index_of(VETH_NAME)?)));
    let (netlink, tap, veth) =
        opened.await.map_err(NetError::refused("open", inside("netlink and links")))?;

    let addresses = async {
        links::set_up(&netlink, links::LOOPBACK).await?;
        links::set_mac(&netlink, tap, TAP_MAC).await?;
        links::add_address(&netlink, tap, TAP_ADDR, GUEST_PREFIX_LEN).await?;
        links::set_up(&netlink, tap).await?;
        links::add_neighbour(&netlink, tap, GUEST_ADDR, GUEST_MAC).await?;
        links::add_address(&netlink, veth, index.veth_namespace_addr(), VETH_PREFIX_LEN).await?;
        links::set_up(&netlink, veth).await?;
        links::add_address(&shared.netlink, host_link, index.veth_host_addr(), VETH_PREFIX_LEN).await
    };
    addresses.await.map_err(NetError::refused("set", inside("addresses")))?;
    shared.reached(Step::Addresses)?;

    links::add_default_route(&netlink, index.veth_host_addr())
        .await
        .map_err(NetError::refused("add", inside("default route")))?;
    let guest = index.guest_addr();
    links::add_host_route(&shared.netlink, guest, index.veth_namespace_addr(), host_link)
        .await
        .map_err(refused_or_occupied(index, &format!("route {guest}/32")))?;
    shared.reached(Step::Routes)
}

/// Puts the rules in place, or replaces them by what is configured now.
pub(crate) async fn install_firewall(
    shared: &Shared,
    index: SlotIndex,
    resident: &Resident,
    before: Before,
) -> Result<()> {
    let private = shared.private;
    resident
        .run(move || firewall::apply(index, private, before))
        .await
        .map_err(|source| NetError::Firewall { index, source })
}

fn refused_or_occupied(index: SlotIndex, object: &str) -> impl FnOnce(io::Error) -> NetError {
    let object = object.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::AlreadyExists => NetError::Occupied { index, object },
        _ => NetError::refused("create", object)(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{STATE_DIR, census, has_route, on_own_machine};
    use crate::{Network, NetworkConfig};

    const STEPS: [Step; 8] = [
        Step::Claim,
        Step::Namespace,
        Step::Tap,
        Step::Veth,
        Step::Addresses,
        Step::Routes,
        Step::Firewall,
        Step::Dns,
    ];

    #[test]
    fn a_failure_after_any_step_leaves_nothing_behind() {
        on_own_machine(|| async {
            let network = Network::open(NetworkConfig::new("test", "/run")).await.unwrap();
            let before = census();
            for step in STEPS {
                network.fail_after(Some(step));
                let error = network.acquire().await.unwrap_err();
                assert!(matches!(&error, NetError::Injected(at) if *at == format!("{step:?}")), "{error}");
                assert_eq!(census(), before, "something is left of a failure after {step:?}");
            }
            network.fail_after(None);
            let slot = network.acquire().await.unwrap();
            assert!(has_route(slot.guest_addr()));
            assert!(std::fs::exists(format!("{STATE_DIR}/{}", slot.index())).unwrap());
            slot.release().await.unwrap();
            assert_eq!(census(), before);
        });
    }
}
