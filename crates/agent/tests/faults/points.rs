//! Agents that are killed at each step: what they leave runs, is paused, or is gone with all that it held.

use wrenn_agent::capsule::Capsule;
use wrenn_agent::fault::POINTS;
use wrenn_agent::manager::Manager;
use wrenn_agent::record::{CapsuleSpec, Phase, Record};
use wrenn_core::CapsuleId;

use crate::agent::live;
use crate::audit::{audit, check_guest, destroy_all, next_agent};
use crate::common::{Host, retire, shell, spec};
use crate::seed::{KEPT, Seed, shape};

/// The template that scripts make.
const MADE: &str = "00000000-0000-0000-0000-000000000002/made";

/// Lets an agent die at `point` of `script`, and plays the next one.
async fn die(host: &Host, script: &str, point: &str) -> Manager {
    let life = live(host, script, point, None).await;
    assert!(life.killed, "{point} was not reached by `{script}`: {}", life.said);
    next_agent(host).await
}

/// The points of one kind, so that none that is added is forgotten.
fn points(kind: &str) -> Vec<&'static str> {
    let prefix = format!("{kind}.");
    POINTS.iter().copied().filter(|point| point.starts_with(&prefix)).collect()
}

/// The capsule is as it was, wherever it was caught, and can be saved and brought back again.
async fn check_source(capsule: &Capsule) {
    if capsule.state().phase == Phase::Paused {
        capsule.resume().await.unwrap();
    }
    check_guest(capsule).await;
    capsule.pause().await.unwrap();
    capsule.resume().await.unwrap();
    check_guest(capsule).await;
}

/// The template is whole.
async fn check_template(manager: &Manager, path: &str) {
    let made = CapsuleSpec { template_path: path.into(), shape: shape(), ..spec(0) };
    let capsule = manager.create(made);
    capsule.booted().await.unwrap();
    check_guest(&capsule).await;
    capsule.destroy().await;
}

/// After a death: the capsule is in `phase` and nobody else is there; all that was whole works; all of it can go.
async fn check_and_destroy(host: Host, manager: Manager, seed: &Seed, phase: Phase, point: &str) {
    let source = manager.get(seed.id()).unwrap_or_else(|| panic!("{point}: the capsule is lost"));
    assert_eq!(source.state().phase, phase, "{point}");
    assert_eq!(manager.all().len(), 1, "{point}");
    check_source(&source).await;
    check_template(&manager, KEPT).await;
    if host.dir.path().join("templates").join(MADE).exists() {
        check_template(&manager, MADE).await;
    }
    audit(&host, &manager).await;
    destroy_all(host, &manager).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_a_pause_leaves_the_capsule_running_or_paused() {
    let seed = Seed::make(2, 0).await;
    for point in points("pause") {
        let host = seed.sow();
        let id = seed.id();
        let manager = die(&host, &format!("resume {id}; pause {id}"), point).await;
        let committed = ["pause.committed", "pause.released"].contains(&point);
        let phase = if committed { Phase::Paused } else { Phase::Running };
        check_and_destroy(host, manager, &seed, phase, point).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_a_resume_leaves_the_capsule_paused_or_running() {
    let seed = Seed::make(2, 0).await;
    for point in points("resume").into_iter().chain(points("start")) {
        let host = seed.sow();
        let manager = die(&host, &format!("resume {}", seed.id()), point).await;
        let phase = if point == "resume.committed" { Phase::Running } else { Phase::Paused };
        check_and_destroy(host, manager, &seed, phase, point).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_a_snapshot_leaves_the_capsule_running_and_a_whole_template_or_none() {
    let seed = Seed::make(2, 0).await;
    for point in points("snapshot") {
        let host = seed.sow();
        let id = seed.id();
        let manager = die(&host, &format!("resume {id}; template {id} {MADE}"), point).await;
        let made = host.dir.path().join("templates").join(MADE);
        assert_eq!(made.exists(), point == "snapshot.published", "{point}");
        check_and_destroy(host, manager, &seed, Phase::Running, point).await;
    }
    for point in ["snapshot.flat", "snapshot.described", "snapshot.published"] {
        let host = seed.sow();
        let manager = die(&host, &format!("template {} {MADE}", seed.id()), point).await;
        check_and_destroy(host, manager, &seed, Phase::Paused, point).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_a_fork_leaves_the_source_running_and_no_half_made_copy() {
    let seed = Seed::make(2, 0).await;
    let restoring = ["start.acquired", "start.launched", "resume.started", "resume.ready"];
    for point in points("fork").into_iter().chain(restoring) {
        let host = seed.sow();
        // Resumed by another agent, which does not die at the same points.
        let life = live(&host, &format!("resume {}", seed.id()), "", None).await;
        assert!(life.finished, "{}", life.said);
        let manager = die(&host, &format!("fork {}", seed.id()), point).await;
        check_and_destroy(host, manager, &seed, Phase::Running, point).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_it_merges_and_flattens_leaves_the_capsule_paused() {
    // As many layers as there may be, of memory and of disk; then memory of which more is new than old.
    let (deep, large) = (Seed::make(11, 0).await, Seed::make(2, 64).await);
    let committed = [(&large, "tidy.rebased"), (&large, "tidy.committed")];
    let points =
        points("tidy").into_iter().filter(|point| *point != "tidy.rebased").map(|point| (&deep, point));
    for (seed, point) in points.chain(committed) {
        let host = seed.sow();
        let manager = die(&host, "rest", point).await;
        check_and_destroy(host, manager, seed, Phase::Paused, point).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_it_hands_over_a_machine_of_the_pool_leaves_the_capsule_paused_or_none() {
    let host = Host::new();
    let id = CapsuleId::random();
    for point in points("spare") {
        let manager = die(&host, &format!("ready; create {id}"), point).await;
        assert!(manager.all().is_empty(), "{point}");
        retire(manager).await;
    }
    for point in points("blank") {
        let script = format!("ready; create {id}; pause {id}; resume {id}");
        let manager = die(&host, &script, point).await;
        let capsule = manager.get(id).unwrap_or_else(|| panic!("{point}: the capsule is lost"));
        assert_eq!(capsule.state().phase, Phase::Paused, "{point}");
        capsule.resume().await.unwrap();
        assert_eq!(shell(&capsule, "hostname").await, id.to_string());
        capsule.destroy().await;
        audit(&host, &manager).await;
        retire(manager).await;
    }
    let last = next_agent(&host).await;
    destroy_all(host, &last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_capsule_whose_record_names_the_slot_of_another_takes_nothing_from_it() {
    let seed = Seed::make(1, 0).await;
    let host = seed.sow();
    let first = next_agent(&host).await;
    let source = first.get(seed.id()).unwrap();
    source.resume().await.unwrap();
    let copy = first.fork(&source, &[CapsuleId::random()]).await.unwrap().remove(0);
    source.pause().await.unwrap();
    retire(first).await;
    let record = |capsule: &Capsule| host.config().capsules_dir().join(capsule.id().to_string());
    let mut stale = Record::read(&record(&source)).unwrap();
    stale.slot = Record::read(&record(&copy)).unwrap().slot;
    stale.write(&record(&source)).unwrap();
    drop(source);
    let second = next_agent(&host).await;
    let (source, copy) = (second.get(seed.id()).unwrap(), second.get(copy.id()).unwrap());
    assert_eq!((source.state().phase, copy.state().phase), (Phase::Paused, Phase::Running));
    check_guest(&copy).await;
    check_source(&source).await;
    destroy_all(host, &second).await;
}
