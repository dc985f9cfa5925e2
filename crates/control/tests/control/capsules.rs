//! The life of capsules.

use std::time::Duration;

use serde_json::json;

use crate::support::agent::Boot;
use crate::support::{PATIENCE, Server};

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_is_created_shown_listed_pinged_and_destroyed_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let body =
        json!({"template": "minimal-ubuntu", "timeout_sec": 5, "metadata": {"env": "test"}, "vcpus": 0});
    let (status, made) = server.post("/v1/capsules", &body).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["status"], "running");
    assert_eq!(made["template"], "minimal-ubuntu");
    assert_eq!(
        (&made["vcpus"], &made["memory_mb"], &made["disk_size_mb"]),
        (&json!(1), &json!(512), &json!(5120))
    );
    assert_eq!(made["timeout_sec"], 60);
    assert_eq!(made["metadata"], json!({"env": "test", "kernel_version": "6.1", "vmm_version": "qemu"}));
    assert!(made["started_at"].as_str().unwrap().ends_with('Z'));
    assert!(made.get("disk_used_mb").is_none());
    let id = made["id"].as_str().unwrap();
    let (_, shown) = server.get(&format!("/v1/capsules/{id}")).await;
    assert_eq!(shown["disk_used_mb"], 77);
    let second = server.capsule().await;
    let (_, list) = server.get("/v1/capsules").await;
    let ids: Vec<_> = list.as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [second.as_str(), id]);
    assert_eq!(server.post(&format!("/v1/capsules/{id}/ping"), &json!({})).await.0, 204);
    assert_eq!(server.delete(&format!("/v1/capsules/{id}")).await, 204);
    assert!(!agent.has(id));
    assert_eq!(server.delete(&format!("/v1/capsules/{id}")).await, 204);
    assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.1["status"], "stopped");
    assert_eq!(server.post(&format!("/v1/capsules/{id}/ping"), &json!({})).await.0, 409);
    assert_eq!(server.get("/v1/capsules").await.1.as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_create_answers_202_and_goes_on_fake_agent() {
    let (server, agent) = Server::with_agent(Duration::from_millis(100)).await;
    agent.set_boot(Boot::Hangs);
    let (status, made) = server.post("/v1/capsules", &json!({})).await;
    assert_eq!((status.as_u16(), &made["status"]), (202, &json!("starting")));
    let id = made["id"].as_str().unwrap();
    let (status, body) = server.post(&format!("/v1/capsules/{id}/exec"), &json!({"cmd": "echo"})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (409, &json!("invalid_state")));
    agent.set_boot(Boot::Works);
    server.wait_status(id, "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_fails_answers_its_error_and_leaves_nothing_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    agent.set_boot(Boot::Fails);
    let (status, body) = server.post("/v1/capsules", &json!({})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (502, &json!("agent_error")));
    assert_eq!(server.get("/v1/capsules").await.1, json!([]));
    assert_eq!(agent.destroys().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_goes_on_when_its_client_hangs_up_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    agent.set_boot(Boot::Hangs);
    let impatient = server
        .request(reqwest::Method::POST, "/v1/capsules")
        .json(&json!({}))
        .timeout(Duration::from_millis(500))
        .send()
        .await;
    assert!(impatient.is_err());
    agent.set_boot(Boot::Works);
    let (_, list) = server.get("/v1/capsules").await;
    let id = list[0]["id"].as_str().unwrap();
    server.wait_status(id, "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroy_during_create_cancels_it_fake_agent() {
    let (server, agent) = Server::with_agent(Duration::from_millis(100)).await;
    agent.set_boot(Boot::Hangs);
    let (_, made) = server.post("/v1/capsules", &json!({})).await;
    let id = made["id"].as_str().unwrap();
    let status = server.delete(&format!("/v1/capsules/{id}")).await;
    assert!(status == 204 || status == 202, "{status}");
    server.wait_status(id, "stopped").await;
    assert!(!agent.has(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_destroys_at_once_both_succeed_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let path = format!("/v1/capsules/{}", server.capsule().await);
    let (one, two) = tokio::join!(server.delete(&path), server.delete(&path));
    for status in [one, two] {
        assert!(status == 204 || status == 202, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_dies_by_itself_is_stopped_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    agent.lose(&id, "the VM died");
    server.wait_status(&id, "stopped").await;
    let (status, body) = server.post(&format!("/v1/capsules/{id}/exec"), &json!({"cmd": "echo"})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (409, &json!("invalid_state")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_gone_makes_calls_fail_and_a_destroy_pending_fake_agent() {
    let (server, agent) = Server::with_agent(Duration::from_millis(300)).await;
    let id = server.capsule().await;
    drop(agent);
    let (status, body) = server.post(&format!("/v1/capsules/{id}/exec"), &json!({"cmd": "echo"})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (503, &json!("host_unavailable")), "{body}");
    let (status, shown) = server.get(&format!("/v1/capsules/{id}")).await;
    assert_eq!((status.as_u16(), &shown["status"]), (200, &json!("running")));
    assert!(shown.get("disk_used_mb").is_none());
    assert_eq!(server.delete(&format!("/v1/capsules/{id}")).await, 202);
    assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.1["status"], "stopping");
}
