//! Pausing and resuming.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use wrenn_core::{CapsuleId, CapsuleStatus};

use crate::support::acts::Act;
use crate::support::{PATIENCE, Server, answer, refused};

const SHORT: Duration = Duration::from_millis(100);

/// The id in the form of the database.
pub fn uuid(id: &str) -> String {
    id.parse::<CapsuleId>().unwrap().uuid().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_is_paused_and_resumed_and_repetitions_change_nothing_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    for _ in 0..2 {
        let (status, paused) = server.act(&id, "pause").await;
        assert_eq!((status.as_u16(), &paused["status"]), (200, &json!("paused")), "{paused}");
    }
    let (_, shown) = server.get(&format!("/v1/capsules/{id}")).await;
    assert_eq!((&shown["status"], &shown["disk_used_mb"]), (&json!("paused"), &json!(77)));
    assert_eq!(server.get("/v1/capsules").await.1[0]["status"], "paused");
    for _ in 0..2 {
        let (status, running) = server.act(&id, "resume").await;
        assert_eq!((status.as_u16(), &running["status"]), (200, &json!("running")), "{running}");
        assert_eq!(running["started_at"], shown["started_at"]);
    }
    assert_eq!((agent.calls("pause"), agent.calls("resume")), (1, 1));
    let (status, _) = server.post(&format!("/v1/capsules/{id}/exec"), &json!({"cmd": "echo"})).await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_answers_by_the_state_of_the_capsule_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    // Its reports would change what is set here.
    drop(agent);
    let refusing: Vec<CapsuleStatus> = CapsuleStatus::ALL
        .into_iter()
        .filter(|status| !matches!(status, CapsuleStatus::Running | CapsuleStatus::Paused))
        .collect();
    let post = async |call: &str, body| server.post(&format!("/v1/capsules/{id}/{call}"), &body).await;
    for status in refusing.into_iter().chain([CapsuleStatus::Paused]) {
        server.sql(format!("update capsules set status = '{status}' where id = '{}'", uuid(&id))).await;
        let (code, shown) = server.get(&format!("/v1/capsules/{id}")).await;
        assert_eq!((code.as_u16(), &shown["status"]), (200, &json!(status)));
        let listed = server.get("/v1/capsules").await.1.as_array().unwrap().len();
        assert_eq!(listed, usize::from(!status.is_terminal()), "{status}");
        let mut answers = vec![
            post("ping", json!({})).await,
            post("exec", json!({"cmd": "echo"})).await,
            post("files/read", json!({"path": "/x"})).await,
            post("fork", json!({})).await,
        ];
        if status == CapsuleStatus::Paused {
            assert_eq!(post("pause", json!({})).await.0, 200);
        } else {
            answers.push(post("pause", json!({})).await);
            answers.push(post("resume", json!({})).await);
            answers.push(server.post("/v1/snapshots", &json!({"sandbox_id": id})).await);
        }
        for answer in answers {
            let message = refused(answer, 409, "invalid_state");
            assert!(message.contains(status.as_str()), "{message} does not name {status}");
        }
    }
    server.sql(format!("update capsules set status = 'running' where id = '{}'", uuid(&id))).await;
    assert_eq!(post("resume", json!({})).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_calls_at_once_one_wins_and_the_other_starts_no_work_fake_agent() {
    let (server, agent) = Server::with_agent(SHORT).await;
    let id = server.capsule().await;
    for (call, settled) in [("pause", "paused"), ("resume", "running")] {
        agent.set_act(Act::Hangs);
        let (one, two) = tokio::join!(server.act(&id, call), server.act(&id, call));
        let mut statuses = [one.0.as_u16(), two.0.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [202, 409], "{one:?} {two:?}");
        let snapshot = server.post("/v1/snapshots", &json!({"sandbox_id": id})).await;
        refused(snapshot, 409, "invalid_state");
        agent.set_act(Act::Works);
        server.wait_status(&id, settled).await;
        assert_eq!(agent.calls(call), 1);
    }
    assert_eq!(agent.calls("snapshot"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_pause_answers_202_and_goes_on_when_its_client_hangs_up_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    agent.set_act(Act::Hangs);
    let pause = server.request(Method::POST, &format!("/v1/capsules/{id}/pause"));
    assert!(pause.timeout(Duration::from_millis(500)).send().await.is_err());
    agent.called("pause").await;
    let exec = server.post(&format!("/v1/capsules/{id}/exec"), &json!({"cmd": "echo"})).await;
    assert!(refused(exec, 409, "invalid_state").contains("pausing"));
    agent.set_act(Act::Works);
    server.wait_status(&id, "paused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_fails_says_why_and_leaves_the_capsule_running_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    agent.set_act(Act::Refuses);
    let message = refused(server.act(&id, "pause").await, 502, "agent_error");
    assert_eq!(message, "the host's disk is full");
    server.wait_status(&id, "running").await;
    agent.set_act(Act::Works);
    assert_eq!(server.act(&id, "pause").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_loses_the_vm_is_an_error_for_good_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    agent.set_act(Act::Loses);
    refused(server.act(&id, "pause").await, 502, "agent_error");
    assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.1["status"], "error");
    assert_eq!(server.delete(&format!("/v1/capsules/{id}")).await, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_that_fails_leaves_the_capsule_paused_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    assert_eq!(server.act(&id, "pause").await.0, 200);
    agent.set_act(Act::Refuses);
    assert!(refused(server.act(&id, "resume").await, 502, "agent_error").contains("disk"));
    assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.1["status"], "paused");
    agent.set_act(Act::Works);
    assert_eq!(server.act(&id, "resume").await.1["status"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_be_reached_is_503_and_nothing_changes_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let (runs, sleeps) = (server.capsule().await, server.capsule().await);
    assert_eq!(server.act(&sleeps, "pause").await.0, 200);
    drop(agent);
    refused(server.act(&runs, "pause").await, 503, "host_unavailable");
    assert_eq!(server.get(&format!("/v1/capsules/{runs}")).await.1["status"], "running");
    refused(server.act(&sleeps, "resume").await, 503, "host_unavailable");
    server.sql("update hosts set status = 'unreachable'").await;
    let message = refused(server.act(&sleeps, "resume").await, 503, "host_unavailable");
    assert!(message.contains("unreachable"), "{message}");
    assert_eq!(server.get(&format!("/v1/capsules/{sleeps}")).await.1["status"], "paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_without_room_is_503_and_says_what_is_short_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let (one, two) = (server.capsule().await, server.capsule().await);
    assert_eq!(server.act(&one, "pause").await.0, 200);
    // Half of it is kept back: room for one and a half capsules.
    server.sql("update hosts set memory_mb = 1536").await;
    let message = refused(server.act(&one, "resume").await, 503, "host_unavailable");
    assert!(message.contains("256 MiB of memory"), "{message}");
    assert_eq!(server.get(&format!("/v1/capsules/{one}")).await.1["status"], "paused");
    assert_eq!(server.delete(&format!("/v1/capsules/{two}")).await, 204);
    assert_eq!(server.act(&one, "resume").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroy_wins_over_a_pause_and_a_resume_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    for call in ["pause", "resume"] {
        let id = server.capsule().await;
        if call == "resume" {
            assert_eq!(server.act(&id, "pause").await.0, 200);
        }
        agent.set_act(Act::Hangs);
        let destroy = async {
            server.wait_status(&id, if call == "pause" { "pausing" } else { "resuming" }).await;
            agent.called(call).await;
            server.delete(&format!("/v1/capsules/{id}")).await
        };
        let (turned, destroyed) = tokio::join!(server.act(&id, call), destroy);
        assert_eq!(destroyed, 204);
        assert!(refused(turned, 409, "invalid_state").contains("destroyed"));
        assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.1["status"], "stopped");
        assert!(!agent.has(&id));
        agent.set_act(Act::Works);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_survives_a_lost_database_fake_agent() {
    let mut server = Server::start_alone(SHORT).await;
    let agent = server.add_agent().await;
    let id = server.capsule().await;
    agent.set_act(Act::Hangs);
    assert_eq!(server.act(&id, "pause").await.0, 202);
    agent.called("pause").await;
    server.database.as_mut().unwrap().stop();
    agent.set_act(Act::Works);
    let pause = server.request(Method::POST, &format!("/v1/capsules/{id}/pause"));
    refused(answer(pause).await, 503, "host_unavailable");
    server.database.as_mut().unwrap().resume().await;
    server.wait_status(&id, "paused").await;
}
