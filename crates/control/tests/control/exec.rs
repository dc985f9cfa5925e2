//! Commands over plain HTTP.

use serde_json::json;

use crate::support::{PATIENCE, Server};

#[tokio::test(flavor = "multi_thread")]
async fn foreground_commands_answer_as_documented_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    let path = format!("/v1/capsules/{id}/exec");
    let (status, body) = server.post(&path, &json!({"cmd": "echo", "args": ["a", "b"]})).await;
    assert_eq!(status, 200);
    assert_eq!(
        (&body["stdout"], &body["stderr"], &body["exit_code"]),
        (&json!("a b"), &json!(""), &json!(0))
    );
    assert_eq!(
        (&body["sandbox_id"], &body["cmd"], &body["encoding"]),
        (&json!(id), &json!("echo"), &json!("utf-8"))
    );
    assert!(body["duration_ms"].is_u64());
    let (_, body) = server.post(&path, &json!({"cmd": "binary"})).await;
    assert_eq!((&body["stdout"], &body["stderr"]), (&json!("/w=="), &json!("ZQ==")));
    assert_eq!(body["encoding"], "base64");
    let (status, body) = server.post(&path, &json!({"cmd": "fail"})).await;
    assert_eq!((status.as_u16(), &body["exit_code"]), (200, &json!(3)));
    let (status, body) = server.post(&path, &json!({"cmd": "missing"})).await;
    assert_eq!((status.as_u16(), &body["exit_code"]), (200, &json!(127)));
    assert_eq!(body["stderr"], "sh: missing: not found\n");
    let (status, body) = server.post(&path, &json!({"cmd": "echo", "cwd": "/missing"})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (400, &json!("invalid_request")));
    for bad in [json!({}), json!({"cmd": null}), json!({"cmd": 1}), json!({"cmd": "x", "args": "y"})] {
        assert_eq!(server.post(&path, &bad).await.0, 400, "{bad}");
    }
    let (status, body) = server.post(&path, &json!({"cmd": "wait", "timeout_sec": 1})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (504, &json!("timeout")));
    assert_eq!(agent.world.guest.running(), 0);
    let (status, body) = server.post(&path, &json!({"cmd": "flood"})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (502, &json!("agent_error")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_client_hangs_up_is_killed_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let path = format!("/v1/capsules/{}/exec", server.capsule().await);
    let call = server.request(reqwest::Method::POST, &path).json(&json!({"cmd": "wait", "timeout_sec": 600}));
    let call = tokio::spawn(call.send());
    let wait = async |running: usize| {
        while agent.world.guest.running() != running {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait(1)).await.unwrap();
    call.abort();
    tokio::time::timeout(PATIENCE, wait(0)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn background_commands_are_listed_and_killed_by_pid_and_tag_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let base = format!("/v1/capsules/{}", server.capsule().await);
    let start = json!({"cmd": "wait", "background": true});
    let (status, one) = server.post(&format!("{base}/exec"), &start).await;
    assert_eq!(status, 202);
    assert!(one["tag"].as_str().unwrap().starts_with("proc-"));
    let start = json!({"cmd": "wait", "background": true, "tag": "mine"});
    let (_, two) = server.post(&format!("{base}/exec"), &start).await;
    assert_eq!(two["tag"], "mine");
    let (_, list) = server.get(&format!("{base}/processes")).await;
    assert_eq!(list["processes"].as_array().unwrap().len(), 2);
    assert_eq!(server.delete(&format!("{base}/processes/{}", one["pid"])).await, 204);
    assert_eq!(server.delete(&format!("{base}/processes/{}", one["pid"])).await, 404);
    assert_eq!(server.delete(&format!("{base}/processes/mine?signal=SIGTERM")).await, 204);
    assert_eq!(server.get(&format!("{base}/processes")).await.1, json!({"processes": []}));
}
