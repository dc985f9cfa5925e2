//! What administrators of the platform do, and what follows from it.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use wrenn_core::{TeamId, UserId};

use crate::support::people::{Person, deeds};
use crate::support::{PATIENCE, Server, answer, refused};

async fn put(server: &Server, by: &Person, path: String, body: Value) -> (reqwest::StatusCode, Value) {
    server.send_by(by, Method::PUT, &path, &body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn locking_an_account_ends_its_keys_and_the_capsules_of_its_teams_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let root = server.administrator().await;
    let ada = server.owner("Ada").await;
    let other = server.owner("Bob").await;
    let guest = server.person("Gus", ada.team, "member").await;
    let here = ada.of(other.team);
    server
        .sql(format!(
            "insert into team_members (team_id, user_id, role) values ('{}', '{}', 'member')",
            other.team.uuid(),
            ada.id.uuid()
        ))
        .await;
    let key = server.send_by(&here, Method::POST, "/v1/api-keys", &json!({})).await.1;
    let kept = server.send_by(&guest, Method::POST, "/v1/api-keys", &json!({})).await.1;
    let owned = server.send_by(&guest, Method::POST, "/v1/capsules", &json!({})).await.1;
    let foreign = server.send_by(&other, Method::POST, "/v1/capsules", &json!({})).await.1;
    let uses = async |key: &Value| {
        let request = server.http.get(server.url("/v1/capsules"));
        answer(request.header("x-api-key", key["key"].as_str().unwrap())).await.0.as_u16()
    };
    assert_eq!((uses(&key).await, uses(&kept).await), (200, 200));

    let active = format!("/v1/admin/users/{}/active", ada.id);
    refused(
        put(&server, &root, format!("/v1/admin/users/{}/active", root.id), json!({"active": false})).await,
        400,
        "invalid_request",
    );
    for _ in 0..2 {
        assert_eq!(put(&server, &root, active.clone(), json!({"active": false})).await.0, 204);
    }
    // Tokens are of a second, so that only later ones tell whether sign-ins have ended.
    let sessions_from = async |when: &str| {
        server.sql(format!("update users set sessions_from = {when} where id = '{}'", ada.id.uuid())).await;
    };
    sessions_from("now() + interval '1 minute'").await;
    assert_eq!((uses(&key).await, uses(&kept).await), (401, 200));
    refused(server.get_by(&ada, "/v1/me").await, 403, "account_deactivated");
    let state = async |by: &Person, capsule: &Value| {
        let path = format!("/v1/capsules/{}", capsule["id"].as_str().unwrap());
        server.get_by(by, &path).await.1["status"].as_str().unwrap().to_owned()
    };
    let stopped = async {
        while state(&guest, &owned).await != "stopped" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stopped).await.unwrap();
    assert_eq!(state(&other, &foreign).await, "running");
    let (_, log) = server.get_by(&guest, "/v1/audit-logs?resource_type=sandbox&action=destroy").await;
    assert_eq!(log["items"][0]["actor_name"], "Root");
    assert!(log["items"][0]["metadata"]["reason"].as_str().unwrap().contains("deactivated"), "{log}");

    assert_eq!(put(&server, &root, active, json!({"active": true})).await.0, 204);
    refused(server.get_by(&ada, "/v1/me").await, 401, "unauthorized");
    sessions_from("now() - interval '1 minute'").await;
    assert_eq!(server.get_by(&ada, "/v1/me").await.0, 200);
    assert_eq!(uses(&key).await, 401);
    let (_, log) = server.get_by(&root, "/v1/admin/audit-logs?resource_type=user").await;
    assert_eq!(deeds(&log), ["user.activate.success.user", "user.deactivate.warning.user"]);
    assert_eq!(log["items"][0]["metadata"], json!({"email": ada.email}));
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_make_others_and_never_unmake_the_last() {
    let server = Server::start(Duration::ZERO).await;
    let root = server.administrator().await;
    let ada = server.owner("Ada").await;
    let admin = |user: UserId| format!("/v1/admin/users/{user}/admin");
    refused(server.get_by(&ada, "/v1/admin/users").await, 403, "forbidden");
    refused(put(&server, &root, admin(root.id), json!({"admin": false})).await, 400, "invalid_request");
    assert_eq!(put(&server, &root, admin(ada.id), json!({"admin": true})).await.0, 204);
    assert_eq!(server.get_by(&ada, "/v1/admin/users").await.0, 200);
    assert_eq!(put(&server, &ada, admin(root.id), json!({"admin": false})).await.0, 204);
    refused(server.get_by(&root, "/v1/admin/users").await, 403, "forbidden");
    refused(put(&server, &ada, admin(UserId::random()), json!({"admin": true})).await, 404, "not_found");
    server.sql(format!("update users set status = 'disabled' where id = '{}'", root.id.uuid())).await;
    refused(put(&server, &ada, admin(root.id), json!({"admin": true})).await, 400, "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_administrators_cannot_unmake_each_other() {
    let server = Server::start(Duration::ZERO).await;
    for _ in 0..5 {
        server.sql("update users set is_admin = false").await;
        let (one, two) = (server.administrator().await, server.administrator().await);
        let unmake = async |by: &Person, whom: &Person| {
            put(&server, by, format!("/v1/admin/users/{}/admin", whom.id), json!({"admin": false})).await.0
        };
        tokio::join!(unmake(&one, &two), unmake(&two, &one));
        assert!(server.number("select count(*) from users where is_admin").await >= 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn teams_are_listed_with_figures_bring_their_own_hosts_and_go_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let root = server.administrator().await;
    let ada = server.owner("Ada").await;
    server.person("Bob", ada.team, "member").await;
    let body = json!({"vcpus": 2, "memory_mb": 256});
    assert_eq!(server.send_by(&ada, Method::POST, "/v1/capsules", &body).await.0, 201);
    let (_, page) = server.get_by(&root, "/v1/admin/teams?page=nonsense").await;
    assert_eq!((&page["page"], &page["per_page"], &page["total_pages"]), (&json!(1), &json!(100), &json!(1)));
    let teams = page["teams"].as_array().unwrap();
    assert_eq!(page["total"], teams.len());
    let team = teams.iter().find(|team| team["id"] == json!(ada.team)).unwrap();
    for (field, value) in [
        ("member_count", json!(2)),
        ("owner_email", json!(ada.email)),
        ("owner_name", json!("Ada")),
        ("active_sandbox_count", json!(1)),
        ("running_vcpus", json!(2)),
        ("running_memory_mb", json!(256)),
        ("channel_count", json!(0)),
        ("is_byoc", json!(false)),
        ("deleted_at", Value::Null),
    ] {
        assert_eq!(team[field], value, "{field}");
    }
    assert!(teams.iter().all(|team| team["slug"] != "platform"));

    let byoc = |team: TeamId| format!("/v1/admin/teams/{team}/byoc");
    for _ in 0..2 {
        assert_eq!(put(&server, &root, byoc(ada.team), json!({"enabled": true})).await.0, 204);
    }
    refused(put(&server, &root, byoc(ada.team), json!({"enabled": false})).await, 400, "invalid_request");
    refused(put(&server, &root, byoc(TeamId::random()), json!({"enabled": true})).await, 404, "not_found");
    refused(server.send_by(&ada, Method::POST, "/v1/capsules", &json!({})).await, 503, "host_unavailable");

    let delete = async |team: TeamId| {
        answer(server.by(&root, Method::DELETE, &format!("/v1/admin/teams/{team}"))).await
    };
    assert_eq!(delete(ada.team).await.0, 204);
    refused(delete(ada.team).await, 404, "not_found");
    refused(delete(TeamId::from_uuid(uuid::Uuid::nil())).await, 400, "invalid_request");
    let (_, log) = server.get_by(&root, "/v1/admin/audit-logs?resource_type=team").await;
    assert_eq!(deeds(&log), ["team.delete.warning.user", "team.set_byoc.info.user"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_paged_newest_first() {
    let server = Server::start(Duration::ZERO).await;
    let root = server.administrator().await;
    server
        .sql(
            "insert into users (id, email, name, status, created_at) \
         select gen_random_uuid(), 'u' || n || '@x.org', 'u' || n, 'active', now() + n * interval '1 second' \
         from generate_series(1, 249) n",
        )
        .await;
    let page = async |number: &str| server.get_by(&root, &format!("/v1/admin/users?page={number}")).await.1;
    let mut seen = Vec::new();
    for number in ["1", "2", "3"] {
        let page = page(number).await;
        assert_eq!((&page["total"], &page["total_pages"]), (&json!(250), &json!(3)));
        seen.extend(
            page["users"].as_array().unwrap().iter().map(|user| user["email"].as_str().unwrap().to_owned()),
        );
    }
    let mut expected: Vec<String> = (1..=249).rev().map(|n| format!("u{n}@x.org")).collect();
    expected.push(root.email.clone());
    assert_eq!(seen, expected);
    assert_eq!(page("4").await["users"], json!([]));
    assert_eq!(page("-1").await["page"], 1);
    let (_, first) = server.get_by(&root, "/v1/admin/users?page=3").await;
    let own = first["users"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&own["teams_owned"], &own["teams_joined"], &own["is_admin"]),
        (&json!(1), &json!(1), &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_has_capsules_and_templates_of_its_own_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let (root, ada) = (server.administrator().await, server.owner("Ada").await);
    let (status, made) = server.send_by(&root, Method::POST, "/v1/admin/capsules", &json!({})).await;
    assert_eq!(status, 201, "{made}");
    let path = format!("/v1/admin/capsules/{}", made["id"].as_str().unwrap());
    assert_eq!(server.get_by(&root, "/v1/admin/capsules").await.1.as_array().unwrap().len(), 1);
    assert_eq!(server.get_by(&root, "/v1/capsules").await.1, json!([]));
    refused(server.get_by(&root, &path.replace("/admin", "")).await, 404, "not_found");
    let exec = json!({"cmd": "echo", "args": ["hi"]});
    assert_eq!(server.send_by(&root, Method::POST, &format!("{path}/exec"), &exec).await.0, 200);

    let snapshot = async |name: &str| {
        server.send_by(&root, Method::POST, &format!("{path}/snapshot"), &json!({"name": name})).await
    };
    for _ in 0..2 {
        let (status, body) = snapshot("shared").await;
        assert_eq!(
            (status.as_u16(), &body["name"], &body["type"]),
            (201, &json!("shared"), &json!("snapshot"))
        );
    }
    for name in ["minimal", "minimal-debian"] {
        refused(snapshot(name).await, 403, "forbidden");
    }
    let (_, listed) = server.get_by(&ada, "/v1/snapshots?type=snapshot").await;
    assert_eq!((&listed[0]["name"], &listed[0]["platform"]), (&json!("shared"), &json!(true)));
    refused(answer(server.by(&ada, Method::DELETE, "/v1/snapshots/shared")).await, 403, "forbidden");
    let (_, all) = server.get_by(&root, "/v1/admin/templates").await;
    assert!(all.as_array().unwrap().iter().any(|one| one["name"] == "minimal" && one["protected"] == true));
    let delete = async |name: &str| {
        answer(server.by(&root, Method::DELETE, &format!("/v1/admin/templates/{name}"))).await
    };
    refused(delete("minimal").await, 403, "forbidden");
    assert_eq!(delete("shared").await.0, 204);
    refused(delete("shared").await, 404, "not_found");
    refused(delete("a%2fb").await, 400, "invalid_request");
    assert_eq!(answer(server.by(&root, Method::DELETE, &path)).await.0, 204);
    let (_, log) = server.get_by(&root, "/v1/admin/audit-logs").await;
    let expected = [
        "sandbox.destroy.warning.user",
        "template.delete.warning.user",
        "snapshot.create.success.user",
        "snapshot.create.success.user",
        "sandbox.create.success.user",
    ];
    assert_eq!(deeds(&log), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_made_while_an_account_is_locked_do_not_outlive_it() {
    let server = Server::start(Duration::ZERO).await;
    let root = server.administrator().await;
    for _ in 0..5 {
        let ada = server.owner("Ada").await;
        let make = async || answer(server.by(&ada, Method::POST, "/v1/api-keys").json(&json!({}))).await;
        let lock =
            put(&server, &root, format!("/v1/admin/users/{}/active", ada.id), json!({"active": false}));
        tokio::join!(make(), make(), make(), lock, make(), make(), make());
        let left = format!("select count(*) from api_keys where created_by = '{}'", ada.id.uuid());
        assert_eq!(server.number(&left).await, 0);
    }
}
