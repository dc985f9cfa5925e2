//! Forking capsules.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::acts::Act;
use crate::support::{PATIENCE, Server, refused};

fn ids(body: &Value) -> Vec<String> {
    let capsules = body["capsules"].as_array().unwrap_or_else(|| panic!("no capsules in {body}"));
    capsules.iter().map(|capsule| capsule["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_run_and_are_what_their_source_is_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let body = json!({"template": "minimal-debian", "vcpus": 2, "timeout_sec": 90, "metadata": {"a": "b"}});
    let source = server.post("/v1/capsules", &body).await.1;
    let id = source["id"].as_str().unwrap();
    let (status, forked) = server.post(&format!("/v1/capsules/{id}/fork"), &json!({"count": 3})).await;
    assert_eq!((status.as_u16(), ids(&forked).len()), (201, 3), "{forked}");
    for copy in forked["capsules"].as_array().unwrap() {
        assert_ne!(copy["id"], source["id"]);
        for field in ["status", "template", "vcpus", "memory_mb", "disk_size_mb", "timeout_sec", "metadata"] {
            assert_eq!(copy[field], source[field], "{field}");
        }
        assert!(agent.has(copy["id"].as_str().unwrap()));
    }
    assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.1["status"], "running");
    let labelled = json!({"metadata": {"c": "d"}});
    let (_, one) = server.post(&format!("/v1/capsules/{id}/fork"), &labelled).await;
    assert_eq!(ids(&one).len(), 1);
    assert_eq!(
        (&one["capsules"][0]["metadata"]["c"], &one["capsules"][0]["metadata"]["a"]),
        (&json!("d"), &Value::Null)
    );
    assert_eq!(server.get("/v1/capsules").await.1.as_array().unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_fails_leaves_no_copy_and_the_source_runs_on_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    agent.set_act(Act::Refuses);
    let answer = server.post(&format!("/v1/capsules/{id}/fork"), &json!({"count": 5})).await;
    assert!(refused(answer, 409, "invalid_state").contains("disk"));
    let (_, list) = server.get("/v1/capsules").await;
    assert_eq!((list.as_array().unwrap().len(), &list[0]["status"]), (1, &json!("running")));
    assert_eq!(agent.destroys().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_refused_where_it_cannot_be_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    let path = format!("/v1/capsules/{id}/fork");
    for body in [
        json!({"count": 101}),
        json!({"count": -1}),
        json!({"count": "two"}),
        json!({"metadata": {"vmm_version": "x"}}),
        json!({"metadata": {"a b": "x"}}),
    ] {
        refused(server.post(&path, &body).await, 400, "invalid_request");
    }
    server.sql("update hosts set memory_mb = 3072").await;
    let message = refused(server.post(&path, &json!({"count": 3})).await, 503, "host_unavailable");
    assert!(message.contains("512 MiB of memory"), "{message}");
    assert_eq!(server.post(&path, &json!({"count": 2})).await.0, 201);
    server.sql("update hosts set status = 'draining', memory_mb = 64000").await;
    let message = refused(server.post(&path, &json!({})).await, 503, "host_unavailable");
    assert!(message.contains("draining"), "{message}");
    assert_eq!(agent.calls("fork"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_fork_answers_202_and_a_copy_destroyed_meanwhile_stays_so_fake_agent() {
    let (server, agent) = Server::with_agent(Duration::from_millis(100)).await;
    let id = server.capsule().await;
    agent.set_act(Act::Hangs);
    let (status, forked) = server.post(&format!("/v1/capsules/{id}/fork"), &json!({"count": 2})).await;
    assert_eq!((status.as_u16(), &forked["capsules"][0]["status"]), (202, &json!("starting")));
    let copies = ids(&forked);
    assert_eq!(server.delete(&format!("/v1/capsules/{}", copies[1])).await, 204);
    agent.set_act(Act::Works);
    server.wait_status(&copies[0], "running").await;
    assert_eq!(server.get(&format!("/v1/capsules/{}", copies[1])).await.1["status"], "stopped");
    let removed = async {
        while agent.has(&copies[1]) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, removed).await.unwrap();
}
