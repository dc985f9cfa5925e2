//! Templates made from capsules.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use wrenn_control::admin;

use crate::pausing::uuid;
use crate::support::acts::Act;
use crate::support::{PATIENCE, Server, answer, refused};

async fn make(server: &Server, id: &str, name: &str) -> Value {
    let (status, made) = server.post("/v1/snapshots", &json!({"sandbox_id": id, "name": name})).await;
    assert_eq!(status, 201, "{made}");
    made
}

async fn listed(server: &Server) -> Vec<String> {
    let (_, list) = server.get("/v1/snapshots?type=snapshot").await;
    list.as_array().unwrap().iter().map(|template| template["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_is_made_used_and_deleted_and_outlives_its_source_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    let made = make(&server, &id, "mine").await;
    assert_eq!((&made["name"], &made["type"]), (&json!("mine"), &json!("snapshot")));
    assert_eq!((&made["id"], &made["status"]), (&json!(id), &json!("running")));
    let (_, list) = server.get("/v1/snapshots").await;
    assert_eq!((&list[0]["name"], &list[1]["name"]), (&json!("mine"), &json!("minimal")));
    assert_eq!(
        (&list[0]["type"], &list[0]["vcpus"], &list[0]["memory_mb"], &list[0]["size_bytes"]),
        (&json!("snapshot"), &json!(2), &json!(768), &json!(123_456))
    );
    assert_eq!((&list[0]["platform"], &list[1]["platform"]), (&json!(false), &json!(true)));
    assert_eq!((&list[1]["protected"], &list[1]["type"]), (&json!(true), &json!("base")));
    assert!(list[1].get("vcpus").is_none());
    assert_eq!(server.get("/v1/snapshots?type=base").await.1.as_array().unwrap().len(), 1);
    assert_eq!(server.get("/v1/snapshots?type=other").await.1, json!([]));
    assert_eq!(server.delete(&format!("/v1/capsules/{id}")).await, 204);

    let body = json!({"template": "mine", "vcpus": 99, "memory_mb": 1, "disk_size_mb": 7000});
    let (status, capsule) = server.post("/v1/capsules", &body).await;
    assert_eq!(status, 201, "{capsule}");
    assert_eq!(
        (&capsule["vcpus"], &capsule["memory_mb"], &capsule["disk_size_mb"], &capsule["template"]),
        (&json!(2), &json!(768), &json!(7000), &json!("mine"))
    );
    let path = agent.world.creates.lock().unwrap().last().unwrap().template_path.clone();
    assert!(agent.world.templates.lock().unwrap().contains(&path), "{path}");
    let small = json!({"template": "mine", "disk_size_mb": 5999});
    assert!(
        refused(server.post("/v1/capsules", &small).await, 400, "invalid_request").contains("disk_size_mb")
    );

    assert_eq!(server.delete("/v1/snapshots/mine").await, 204);
    assert!(agent.world.templates.lock().unwrap().is_empty());
    let gone = server.request(Method::DELETE, "/v1/snapshots/mine");
    refused(answer(gone).await, 404, "not_found");
    refused(server.post("/v1/capsules", &json!({"template": "mine"})).await, 404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_capsule_stays_paused_and_a_name_is_made_up_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    assert_eq!(server.act(&id, "pause").await.0, 200);
    let (status, made) = server.post("/v1/snapshots", &json!({"sandbox_id": id})).await;
    assert_eq!((status.as_u16(), &made["status"]), (201, &json!("paused")));
    let name = made["name"].as_str().unwrap();
    let digits = name.strip_prefix("template-").unwrap();
    assert!(digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
    assert_eq!(listed(&server).await, [name]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_reserved_and_taken_names_are_refused_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    let post = async |body| server.post("/v1/snapshots", &body).await;
    refused(post(json!({"name": "x"})).await, 400, "invalid_request");
    refused(post(json!({"sandbox_id": "cl-x"})).await, 400, "invalid_request");
    refused(post(json!({"sandbox_id": id, "name": "../x"})).await, 400, "invalid_request");
    let nobody = wrenn_core::CapsuleId::random().to_string();
    refused(post(json!({"sandbox_id": nobody})).await, 404, "not_found");
    for reserved in ["minimal", "minimal-ubuntu", "minimal-debian"] {
        for path in ["/v1/snapshots", "/v1/snapshots?overwrite=true"] {
            let body = json!({"sandbox_id": id, "name": reserved});
            refused(server.post(path, &body).await, 409, "conflict");
        }
        let delete = server.request(Method::DELETE, &format!("/v1/snapshots/{reserved}"));
        refused(answer(delete).await, 403, "forbidden");
    }
    let bad = server.request(Method::DELETE, "/v1/snapshots/-x");
    refused(answer(bad).await, 400, "invalid_request");
    make(&server, &id, "mine").await;
    refused(post(json!({"sandbox_id": id, "name": "mine"})).await, 409, "conflict");
    assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.1["status"], "running");
    assert_eq!(agent.calls("snapshot"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overwritten_template_stays_until_the_new_one_is_ready_fake_agent() {
    let (server, agent) = Server::with_agent(Duration::from_secs(5)).await;
    let (one, two) = (server.capsule().await, server.capsule().await);
    make(&server, &one, "mine").await;
    let old = agent.world.templates.lock().unwrap().first().unwrap().clone();
    let body = |id: &str| json!({"sandbox_id": id, "name": "mine"});
    agent.set_act(Act::Refuses);
    let failed = server.post("/v1/snapshots?overwrite=true", &body(&one)).await;
    refused(failed, 409, "invalid_state");
    assert_eq!(listed(&server).await, ["mine"]);
    assert_eq!(server.get(&format!("/v1/capsules/{one}")).await.1["status"], "running");

    agent.set_act(Act::Hangs);
    let overwrite = server.post("/v1/snapshots?overwrite=true", &body(&one)).await;
    let (status, asked) = overwrite;
    assert_eq!((status.as_u16(), &asked["status"]), (202, &json!("snapshotting")));
    // The name is taken twice over, and the old template is still good.
    let rival = server.post("/v1/snapshots?overwrite=true", &body(&two)).await;
    refused(rival, 409, "conflict");
    assert_eq!(server.get(&format!("/v1/capsules/{two}")).await.1["status"], "running");
    assert_eq!(server.post("/v1/capsules", &json!({"template": "mine"})).await.0, 201);
    assert_eq!(agent.world.creates.lock().unwrap().last().unwrap().template_path, old);
    agent.set_act(Act::Works);
    server.wait_status(&one, "running").await;
    assert_eq!(listed(&server).await, ["mine"]);
    assert_eq!(server.post("/v1/capsules", &json!({"template": "mine"})).await.0, 201);
    assert_ne!(agent.world.creates.lock().unwrap().last().unwrap().template_path, old);
    let removed = async {
        while agent.world.templates.lock().unwrap().contains(&old) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, removed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_snapshot_leaves_the_capsule_as_it_was_and_the_name_free_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    for was in ["running", "paused"] {
        let id = server.capsule().await;
        if was == "paused" {
            assert_eq!(server.act(&id, "pause").await.0, 200);
        }
        agent.set_act(Act::Refuses);
        let failed = server.post("/v1/snapshots", &json!({"sandbox_id": id, "name": was})).await;
        assert!(refused(failed, 409, "invalid_state").contains("disk"));
        assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.1["status"], was);
        assert_eq!(listed(&server).await.len(), usize::from(was == "paused"));
        agent.set_act(Act::Works);
        make(&server, &id, was).await;
    }
    let id = server.capsule().await;
    agent.set_act(Act::Loses);
    refused(server.post("/v1/snapshots", &json!({"sandbox_id": id})).await, 502, "agent_error");
    assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.1["status"], "error");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroy_wins_over_a_snapshot_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    agent.set_act(Act::Hangs);
    let destroy = async {
        agent.called("snapshot").await;
        server.delete(&format!("/v1/capsules/{id}")).await
    };
    let body = json!({"sandbox_id": id, "name": "mine"});
    let (made, destroyed) = tokio::join!(server.post("/v1/snapshots", &body), destroy);
    assert_eq!(destroyed, 204);
    refused(made, 409, "invalid_state");
    assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.1["status"], "stopped");
    assert_eq!(listed(&server).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_whose_host_is_away_is_kept_and_not_used_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    make(&server, &id, "mine").await;
    server.sql("update hosts set memory_mb = 2048").await;
    let full = server.post("/v1/capsules", &json!({"template": "mine"})).await;
    let message = refused(full, 503, "host_unavailable");
    assert!(message.contains("template mine") && message.contains("256 MiB of memory"), "{message}");
    let delete = async || answer(server.request(Method::DELETE, "/v1/snapshots/mine")).await;
    agent.set_act(Act::Refuses);
    assert!(refused(delete().await, 409, "conflict").contains("read-only"));
    let world = agent.world.clone();
    agent.leave().await;
    refused(delete().await, 409, "conflict");
    server.sql("update hosts set status = 'unreachable'").await;
    assert!(refused(delete().await, 409, "conflict").contains("unreachable"));
    let away = server.post("/v1/capsules", &json!({"template": "mine"})).await;
    assert!(refused(away, 503, "host_unavailable").contains("offline"));
    assert_eq!(listed(&server).await, ["mine"]);
    let agent = server.add_agent_with(world).await;
    agent.set_act(Act::Works);
    assert_eq!(server.delete("/v1/snapshots/mine").await, 204);
    assert_eq!(listed(&server).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_could_not_be_removed_are_removed_when_the_host_is_able_again_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    make(&server, &id, "mine").await;
    let old = agent.world.templates.lock().unwrap().first().unwrap().clone();
    // As if a crash had come between the row and the files.
    server
        .sql(
            "insert into template_deletions (host_id, team_id, template_id) \
             select host_id, team_id, id from templates where name = 'mine'; delete from templates where name = 'mine'",
        )
        .await;
    let world = agent.world.clone();
    drop(agent);
    let agent = server.add_agent_with(world).await;
    let removed = async {
        while agent.world.templates.lock().unwrap().contains(&old) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, removed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_whose_host_goes_away_while_it_is_deleted_never_comes_back_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    make(&server, &id, "mine").await;
    agent.set_act(Act::Hangs);
    let world = agent.world.clone();
    let leave = async {
        agent.called("delete").await;
        agent.leave().await;
    };
    let (status, ()) = tokio::join!(server.delete("/v1/snapshots/mine"), leave);
    assert_eq!(status, 204);
    assert_eq!(listed(&server).await, [""; 0]);
    assert_eq!(world.templates.lock().unwrap().len(), 1, "its files are still there");
    let agent = server.add_agent_with(world).await;
    agent.set_act(Act::Works);
    let removed = async {
        while !agent.world.templates.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, removed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_a_crash_left_unfinished_blocks_its_name_for_a_while_only_fake_agent() {
    let (server, agent) = Server::with_agent(Duration::from_millis(100)).await;
    let (one, two) = (server.capsule().await, server.capsule().await);
    agent.set_act(Act::Hangs);
    let body = |id: &str| json!({"sandbox_id": id, "name": "mine"});
    assert_eq!(server.post("/v1/snapshots", &body(&one)).await.0, 202);
    assert_eq!(listed(&server).await, [""; 0]);
    refused(server.post("/v1/capsules", &json!({"template": "mine"})).await, 404, "not_found");
    refused(server.post("/v1/snapshots", &body(&two)).await, 409, "conflict");
    server
        .sql(format!(
            "update templates set state_since = now() - interval '16 min' where name = 'mine'; \
             update capsules set updated_at = now() - interval '16 min' where id = '{}'",
            uuid(&one)
        ))
        .await;
    assert_eq!(server.post("/v1/snapshots", &body(&two)).await.0, 202);
    agent.set_act(Act::Works);
    server.wait_status(&two, "running").await;
    server.wait_status(&one, "running").await;
    assert_eq!(listed(&server).await, ["mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_neither_sees_nor_deletes_anothers_template_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    make(&server, &id, "mine").await;
    let foreign = admin::create_team_with_key(&server.store, "others").await.unwrap().key;
    let ask =
        |method, path: &str| server.http.request(method, server.url(path)).header("x-api-key", &foreign);
    assert_eq!(answer(ask(Method::GET, "/v1/snapshots?type=snapshot")).await.1, json!([]));
    refused(answer(ask(Method::DELETE, "/v1/snapshots/mine")).await, 404, "not_found");
    let create = ask(Method::POST, "/v1/capsules").json(&json!({"template": "mine"}));
    refused(answer(create).await, 404, "not_found");
    let copy = ask(Method::POST, "/v1/snapshots").json(&json!({"sandbox_id": id}));
    refused(answer(copy).await, 404, "not_found");
}
