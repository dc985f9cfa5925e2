//! What hosts say of capsules, and what the control plane makes of it.

use serde_json::json;
use wrenn_protocol::agent::CapsulePhase;

use crate::pausing::uuid;
use crate::support::agent::FakeAgent;
use crate::support::{PATIENCE, Server, refused};

const RUNNING: CapsulePhase = CapsulePhase::CAPSULE_PHASE_RUNNING;
const PAUSING: CapsulePhase = CapsulePhase::CAPSULE_PHASE_PAUSING;
const PAUSED: CapsulePhase = CapsulePhase::CAPSULE_PHASE_PAUSED;

fn time_out(agent: &FakeAgent, id: &str) {
    agent.change(id, PAUSING, "ttl_expired");
    agent.change(id, PAUSED, "ttl_expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_pauses_a_capsule_by_itself_is_followed_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    agent.change(&id, PAUSING, "ttl_expired");
    server.wait_status(&id, "pausing").await;
    agent.change(&id, PAUSED, "ttl_expired");
    server.wait_status(&id, "paused").await;
    assert_eq!(server.act(&id, "resume").await.0, 200);
    agent.change(&id, PAUSING, "ttl_expired");
    agent.change(&id, RUNNING, "pause_failed: no space");
    time_out(&agent, &id);
    server.wait_status(&id, "paused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_whose_time_out_ends_it_is_stopped_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    agent.change(&id, PAUSING, "ttl_expired");
    server.wait_status(&id, "pausing").await;
    agent.lose(&id, "ttl_expired: no space");
    server.wait_status(&id, "stopped").await;
    let lost = server.capsule().await;
    agent.change(&lost, PAUSING, "ttl_expired");
    server.wait_status(&lost, "pausing").await;
    agent.lose(&lost, "vm_died: killed");
    server.wait_status(&lost, "error").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_reports_undo_nothing_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let (id, other) = (server.capsule().await, server.capsule().await);
    assert_eq!(server.act(&id, "pause").await.0, 200);
    assert_eq!(server.act(&id, "resume").await.0, 200);
    agent.repeat(&id, PAUSED, 2);
    agent.repeat(&id, PAUSING, 3);
    // Reports are taken in order: after this one, those before it have been.
    time_out(&agent, &other);
    server.wait_status(&other, "paused").await;
    assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.1["status"], "running");
    agent.repeat(&other, RUNNING, 2);
    time_out(&agent, &id);
    server.wait_status(&id, "paused").await;
    assert_eq!(server.get(&format!("/v1/capsules/{other}")).await.1["status"], "paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_control_plane_left_under_way_becomes_what_the_host_says_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let cases = [
        ("pausing", RUNNING, "6 min", "running"),
        ("pausing", PAUSED, "1 s", "paused"),
        ("resuming", PAUSED, "6 min", "paused"),
        ("resuming", RUNNING, "1 s", "running"),
        ("snapshotting", RUNNING, "16 min", "running"),
        ("snapshotting", PAUSED, "16 min", "paused"),
        ("missing", PAUSED, "1 s", "paused"),
        ("missing", RUNNING, "1 s", "running"),
        // Nobody can know yet that these are left alone.
        ("snapshotting", RUNNING, "10 min", "snapshotting"),
        ("pausing", RUNNING, "4 min", "pausing"),
    ];
    let mut cured = Vec::new();
    for (left, phase, age, becomes) in cases {
        let id = server.capsule().await;
        agent.set_silently(&id, phase);
        cured.push((id, left, age, becomes));
    }
    let world = agent.world.clone();
    drop(agent);
    for (id, left, age, _) in &cured {
        let set = format!("status = '{left}', updated_at = now() - interval '{age}'");
        server.sql(format!("update capsules set {set} where id = '{}'", uuid(id))).await;
    }
    // A host that comes back says what it has, all at once.
    let _back = server.add_agent_with(world).await;
    for (id, _, _, becomes) in cured {
        server.wait_status(&id, becomes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_that_drains_takes_nothing_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    agent.set_silently(&id, PAUSING);
    let exec = server.post(&format!("/v1/capsules/{id}/exec"), &json!({"cmd": "echo"})).await;
    assert!(refused(exec, 409, "invalid_state").contains("pausing"));
    let list = server.post(&format!("/v1/capsules/{id}/files/read"), &json!({"path": "/x"})).await;
    refused(list, 409, "invalid_state");
}
