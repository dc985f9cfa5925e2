//! Who owns what, and what is left behind.

use std::collections::BTreeSet;
use std::time::Duration;

use wrenn_net::{NetError, Network, Slot};

use crate::guest::{Guest, appears_as, tell_peers};
use crate::machine::{STATE_DIR, census, has_route, on_own_machine, shell};
use crate::{config, open};

fn tables() -> String {
    shell("nft list tables")
}

/// Adopts a slot as soon as the sockets of its former forwarder, which end in the background, are closed.
async fn adopt(network: &Network, index: wrenn_net::SlotIndex) -> Slot {
    loop {
        match network.adopt(index).await {
            Ok(slot) => return slot,
            Err(NetError::Refused { action: "bind", .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_released_slot_leaves_the_machine_as_it_was() {
    on_own_machine(|| async {
        let network = open("a").await;
        let before = census();
        let slots = [network.acquire().await.unwrap(), network.acquire().await.unwrap()];
        assert!(slots.iter().all(|slot| has_route(slot.guest_addr()) && slot.netns_path().exists()));
        for slot in slots {
            slot.release().await.unwrap();
        }
        assert_eq!(census(), before);
    });
}

#[test]
fn a_slot_is_released_without_error_when_its_parts_are_gone_already() {
    on_own_machine(|| async {
        let network = open("a").await;
        let before = census();
        let slot = network.acquire().await.unwrap();
        let index = slot.index();
        shell(&format!("ip link del wrenn-{index}; ip netns del wrenn-{index}; rm {STATE_DIR}/{index}"));
        slot.release().await.unwrap();
        assert_eq!(census(), before);
    });
}

#[test]
fn agents_with_different_owners_never_get_the_same_slot() {
    on_own_machine(|| async {
        let (a, b) = (open("a").await, open("b").await);
        let (first, second, third, fourth) = tokio::join!(a.acquire(), b.acquire(), a.acquire(), b.acquire());
        let slots = [first, second, third, fourth].map(|slot| slot.unwrap());
        assert_eq!(slots.iter().map(Slot::index).collect::<BTreeSet<_>>().len(), 4);
        for slot in slots {
            slot.release().await.unwrap();
        }
    });
}

#[test]
fn a_sweep_removes_only_what_is_ours_and_unwanted() {
    on_own_machine(|| async {
        let (a, b) = (open("a").await, open("b").await);
        let foreign = b.acquire().await.unwrap();
        let held = a.acquire().await.unwrap();
        let [wanted, unwanted] = [a.acquire().await.unwrap().index(), a.acquire().await.unwrap().index()];
        let report = a.sweep(&BTreeSet::from([wanted])).await.unwrap();
        assert_eq!(report.removed, [unwanted]);
        assert_eq!(report.foreign, [foreign.index()]);
        assert_eq!(report.kept.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([wanted, held.index()]));
        assert!(report.failed.is_empty());
        assert!(foreign.netns_path().exists() && held.netns_path().exists());
        assert!(!shell("ls /run/netns").contains(&format!("wrenn-{unwanted}\n")));
        held.release().await.unwrap();
        foreign.release().await.unwrap();
    });
}

#[test]
fn slots_whose_owners_data_directory_is_gone_are_swept_by_anybody() {
    on_own_machine(|| async {
        let b = open("b").await;
        let before = census();
        let orphan = open("a").await.acquire().await.unwrap().index();
        assert_eq!(b.sweep(&BTreeSet::new()).await.unwrap().foreign, [orphan]);
        shell("rmdir /run/data-a");
        assert_eq!(b.sweep(&BTreeSet::new()).await.unwrap().removed, [orphan]);
        assert_eq!(census(), before);
    });
}

#[test]
fn a_sweep_removes_slots_of_which_a_crash_left_only_parts() {
    on_own_machine(|| async {
        let a = open("a").await;
        let before = census();
        let slots =
            [a.acquire().await, a.acquire().await, a.acquire().await].map(|slot| slot.unwrap().index());
        shell(&format!(
            "ip link del wrenn-{}; ip netns del wrenn-{}; umount /run/netns/wrenn-{}",
            slots[0], slots[1], slots[2]
        ));
        assert_eq!(a.sweep(&BTreeSet::new()).await.unwrap().removed.len(), 3);
        assert_eq!(census(), before);
    });
}

#[test]
fn kernel_objects_without_a_claim_are_somebody_elses_and_stay() {
    on_own_machine(|| async {
        shell("ip netns add wrenn-1; ip link add wrenn-2 type veth peer name other");
        shell("ip route add blackhole 10.11.0.3/32");
        shell(&format!("mkdir -p {STATE_DIR}; echo nonsense > {STATE_DIR}/4"));
        let a = open("a").await;
        let before = census();
        let slot = a.acquire().await.unwrap();
        assert_eq!(slot.index().get(), 5);
        slot.release().await.unwrap();
        assert_eq!(a.sweep(&BTreeSet::new()).await.unwrap().removed, []);
        assert_eq!(census(), before);
    });
}

#[test]
fn a_restarted_agent_adopts_its_slot_with_a_running_guest() {
    on_own_machine(|| async {
        let network = open("a").await;
        let slot = network.acquire().await.unwrap();
        let (index, before) = (slot.index(), census());
        let guest = Guest::boot(&slot);
        tell_peers(guest.netns(), 8000);
        drop(slot);
        drop(network);
        let network = open("a").await;
        let slot = adopt(&network, index).await;
        assert!(appears_as((slot.guest_addr(), 8000).into()).is_ok());
        assert_eq!(network.sweep(&BTreeSet::new()).await.unwrap().kept, [index]);
        drop(guest);
        assert_eq!(census(), before);
        slot.release().await.unwrap();
    });
}

#[test]
fn only_whole_slots_of_the_same_owner_are_adopted() {
    on_own_machine(|| async {
        let (a, b) = (open("a").await, open("b").await);
        let foreign = b.acquire().await.unwrap();
        assert!(matches!(a.adopt(foreign.index()).await, Err(NetError::NotOurs { .. })));
        let unclaimed = wrenn_net::SlotIndex::MAX;
        assert!(matches!(a.adopt(unclaimed).await, Err(NetError::NotOurs { .. })));
        let broken = a.acquire().await.unwrap().index();
        shell(&format!("ip link del wrenn-{broken}"));
        assert!(matches!(a.adopt(broken).await, Err(NetError::Incomplete { .. })));
        foreign.release().await.unwrap();
    });
}

#[test]
fn the_hosts_table_goes_with_the_last_agent_unless_slots_remain() {
    on_own_machine(|| async {
        let (a, b) = (open("a").await, open("b").await);
        assert_eq!(tables().trim(), "table inet wrenn");
        a.close().await.unwrap();
        assert_eq!(tables().trim(), "table inet wrenn");
        let slot = b.acquire().await.unwrap();
        b.close().await.unwrap();
        assert_eq!(tables().trim(), "table inet wrenn");
        slot.release().await.unwrap();
        open("a").await.close().await.unwrap();
        assert_eq!(tables().trim(), "");
    });
}

#[test]
fn a_slot_that_nobody_waits_for_any_more_is_removed() {
    on_own_machine(|| async {
        let network = open("a").await;
        // The first namespace makes the directory of all of them a mount, for good.
        network.acquire().await.unwrap().release().await.unwrap();
        let before = census();
        drop(tokio::time::timeout(Duration::from_micros(1), network.acquire()).await);
        while census() != before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn a_tap_has_one_user_at_a_time() {
    on_own_machine(|| async {
        let network = Network::open(config("a")).await.unwrap();
        let slot = network.acquire().await.unwrap();
        let tap = slot.open_tap().unwrap();
        assert!(slot.open_tap().unwrap_err().to_string().contains("wrenn-tap"));
        drop(tap);
        slot.open_tap().unwrap();
        slot.release().await.unwrap();
    });
}

#[test]
fn a_host_table_that_somebody_flushed_is_put_back() {
    on_own_machine(|| async {
        let network = open("a").await;
        assert!(!network.restore_host_table().await.unwrap());
        shell("nft flush ruleset");
        assert!(network.restore_host_table().await.unwrap());
        shell("nft flush ruleset");
        network.acquire().await.unwrap().release().await.unwrap();
        assert_eq!(tables().trim(), "table inet wrenn");
    });
}

#[test]
fn the_host_table_is_kept_while_guests_run_whose_own_tables_a_flush_does_not_touch() {
    on_own_machine(|| async {
        let network = open("a").await;
        let slot = network.acquire().await.unwrap();
        let inside = format!("ip netns exec wrenn-{} nft list tables", slot.index());
        let before = shell(&inside);
        assert!(before.contains("table ip wrenn") && before.contains("table ip6 wrenn"), "{before}");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let keeping = network.keep_host_table(Duration::from_millis(20), async { drop(stopped.await) });
        let flushing = async {
            for _ in 0..2 {
                shell("nft flush ruleset");
                assert_eq!(shell(&inside), before);
                while tables().trim() != "table inet wrenn" {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            drop(stop);
        };
        let both = async { tokio::join!(keeping, flushing) };
        tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
        shell("nft flush ruleset");
        assert_eq!(tables(), "");
        slot.release().await.unwrap();
    });
}
