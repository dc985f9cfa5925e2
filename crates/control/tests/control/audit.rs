//! The audit log: what is in it, who reads it, and its cursor.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::acts::Act;
use crate::support::agent::Boot;
use crate::support::people::{Person, deeds};
use crate::support::{PATIENCE, Server, answer, refused};

#[tokio::test(flavor = "multi_thread")]
async fn every_act_on_a_capsule_is_recorded_with_who_asked_for_it_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let ada = server.owner("Ada").await;
    let key = server.send_by(&ada, Method::POST, "/v1/api-keys", &json!({"name": "ci"})).await.1;
    let with_key = |method: Method, path: &str| {
        let request = server.http.request(method, server.url(path)).timeout(PATIENCE);
        request.header("x-api-key", key["key"].as_str().unwrap())
    };
    let (status, made) = answer(with_key(Method::POST, "/v1/capsules").json(&json!({}))).await;
    assert_eq!(status, 201, "{made}");
    let id = made["id"].as_str().unwrap().to_owned();
    let act = async |call: &str| {
        answer(server.by(&ada, Method::POST, &format!("/v1/capsules/{id}/{call}"))).await.0
    };
    assert_eq!((act("pause").await.as_u16(), act("resume").await.as_u16()), (200, 200));
    agent.set_act(Act::Refuses);
    assert!(act("pause").await.is_server_error() || act("pause").await.as_u16() == 409);
    agent.set_act(Act::Works);
    let snapshot = json!({"sandbox_id": id, "name": "mine"});
    assert_eq!(server.send_by(&ada, Method::POST, "/v1/snapshots", &snapshot).await.0, 201);
    assert_eq!(answer(server.by(&ada, Method::DELETE, "/v1/snapshots/mine")).await.0, 204);
    assert_eq!(answer(with_key(Method::DELETE, &format!("/v1/capsules/{id}"))).await.0, 204);
    agent.set_boot(Boot::Fails);
    assert!(answer(with_key(Method::POST, "/v1/capsules").json(&json!({}))).await.0.is_server_error());

    let (_, log) = server.get_by(&ada, "/v1/audit-logs?resource_type=sandbox,snapshot").await;
    let all = deeds(&log);
    let failed = all.iter().filter(|deed| *deed == "sandbox.pause.error.user").count();
    assert!((1..=2).contains(&failed), "{all:?}");
    let rest: Vec<_> =
        all.iter().filter(|deed| *deed != "sandbox.pause.error.user").map(String::as_str).collect();
    let expected = [
        "sandbox.create.error.api_key",
        "sandbox.destroy.warning.api_key",
        "snapshot.delete.warning.user",
        "snapshot.create.success.user",
        "sandbox.resume.success.user",
        "sandbox.pause.success.user",
        "sandbox.create.success.api_key",
    ];
    assert_eq!(rest, expected);
    let items = log["items"].as_array().unwrap();
    let first = items.last().unwrap();
    let told = json!({
        "id": first["id"], "actor_type": "api_key", "actor_id": key["id"], "actor_name": "ci",
        "resource_type": "sandbox", "resource_id": id, "action": "create", "scope": "team", "status": "success",
        "metadata": {"template": "minimal"}, "created_at": first["created_at"],
    });
    assert_eq!(*first, told);
    assert!(items[0]["metadata"]["error"].is_string(), "{}", items[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_does_by_itself_is_the_platforms_deed_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let ada = server.owner("Ada").await;
    let create = async || {
        let (status, made) = server.send_by(&ada, Method::POST, "/v1/capsules", &json!({})).await;
        assert_eq!(status, 201, "{made}");
        made["id"].as_str().unwrap().to_owned()
    };
    use wrenn_protocol::agent::CapsulePhase::{
        CAPSULE_PHASE_PAUSED as PAUSED, CAPSULE_PHASE_PAUSING as PAUSING,
    };
    let idle = create().await;
    agent.change(&idle, PAUSING, "");
    agent.change(&idle, PAUSED, "");
    let lost = create().await;
    agent.lose(&lost, "the VM ended");
    let path = "/v1/audit-logs?resource_type=sandbox&action=pause&action=error";
    let recorded = async {
        loop {
            let (_, log) = server.get_by(&ada, path).await;
            if log["items"].as_array().unwrap().len() == 2 {
                return log;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let log = tokio::time::timeout(PATIENCE, recorded).await.unwrap();
    let mut all = deeds(&log);
    all.sort();
    assert_eq!(all, ["sandbox.error.error.system", "sandbox.pause.info.system"]);
    let lost = log["items"].as_array().unwrap().iter().find(|entry| entry["action"] == "error").unwrap();
    assert_eq!(lost["metadata"], json!({"template": "minimal", "phase": "running", "error": "the VM ended"}));
    assert!(lost.get("actor_id").is_none() && lost.get("actor_name").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn members_read_what_concerns_the_team_and_admins_read_all() {
    let server = Server::start(Duration::ZERO).await;
    let owner = server.owner("Ada").await;
    let (admin, member) =
        (server.person("Bob", owner.team, "admin").await, server.person("Zoe", owner.team, "member").await);
    let path = format!("/v1/teams/{}/members/{}", owner.team, member.id);
    for role in ["admin", "member"] {
        assert_eq!(server.send_by(&owner, Method::PATCH, &path, &json!({"role": role})).await.0, 204);
    }
    server.send_by(&member, Method::POST, "/v1/api-keys", &json!({})).await;
    let all = [
        "api_key.create.success.user",
        "member.role_update.info.user",
        "member.role_update.info.user",
        "api_key.create.success.system",
    ];
    assert_eq!(server.deeds(&owner).await, all);
    assert_eq!(server.deeds(&admin).await, all);
    assert_eq!(server.deeds(&member).await, [all[0], all[3]]);
    let (_, none) = server.get_by(&member, "/v1/audit-logs?resource_type=member").await;
    assert_eq!(none, json!({"items": []}));
    let eve = server.owner("Eve").await;
    assert_eq!(server.deeds(&eve).await, ["api_key.create.success.system"]);
    refused(server.get_by(&owner, "/v1/admin/audit-logs").await, 403, "forbidden");
}

/// Follows the cursor; the ids in the order in which they came.
async fn walk(server: &Server, person: &Person, filter: &str, limit: usize) -> Vec<String> {
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/audit-logs?limit={limit}{filter}{cursor}");
        let (status, page) = server.get_by(person, &path).await;
        assert_eq!(status, 200, "{page}");
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= limit);
        let Some(last) = items.last() else {
            assert!(page.get("next_before").is_none() && page.get("next_before_id").is_none());
            return seen;
        };
        assert_eq!(page["next_before_id"], last["id"]);
        seen.extend(items.iter().map(|entry| entry["id"].as_str().unwrap().to_owned()));
        let text = |field: &str| page[field].as_str().unwrap().to_owned();
        cursor = format!("&before={}&before_id={}", text("next_before"), text("next_before_id"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_neither_skips_nor_repeats_entries_of_one_moment() {
    let server = Server::start(Duration::ZERO).await;
    let ada = server.owner("Ada").await;
    // Many in the same microsecond, many in the same second, and other teams' between them.
    server.sql(format!(
        "delete from audit_logs; \
         insert into audit_logs (id, team_id, actor_type, resource_type, resource_id, action, scope, status, created_at) \
         select gen_random_uuid(), case when n % 5 = 0 then '{other}'::uuid else '{own}'::uuid end, 'system', \
            case when n % 4 = 3 then 'api_key' else 'sandbox' end, 'cl-' || n, \
            case when n % 4 = 3 then 'revoke' when n % 3 = 0 then 'create' else 'destroy' end, 'team', 'success', \
            '2026-01-02T03:04:05Z'::timestamptz + (n / 7) * interval '1 microsecond' from generate_series(0, 699) n",
        other = uuid::Uuid::nil(),
        own = ada.team.uuid(),
    )).await;
    let whole = walk(&server, &ada, "", 200).await;
    assert_eq!(whole.len(), 560);
    let mut unique = whole.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 560);
    for limit in [1_usize, 7, 50, 199] {
        if limit > 1 {
            assert_eq!(walk(&server, &ada, "", limit).await, whole, "{limit}");
        }
    }
    // One kind, all of one resource, and more than are merged.
    for (query, condition) in [
        ("&action=create&resource_type=sandbox", "action = 'create' and resource_type = 'sandbox'"),
        ("&resource_type=sandbox", "resource_type = 'sandbox'"),
        (
            "&resource_type=sandbox,snapshot,api_key,member",
            "resource_type in ('sandbox', 'snapshot', 'api_key', 'member')",
        ),
    ] {
        let some = walk(&server, &ada, query, 13).await;
        let own = ada.team.uuid();
        let count = format!("select count(*) from audit_logs where team_id = '{own}' and {condition}");
        assert_eq!(i64::try_from(some.len()).unwrap(), server.number(&count).await, "{query}");
        let in_order: Vec<_> = whole.iter().filter(|&id| some.contains(id)).cloned().collect();
        assert_eq!(some, in_order, "{query}");
    }
    let by_time: Value =
        server.get_by(&ada, "/v1/audit-logs?before=2026-01-02T03:04:05.000002Z&limit=200").await.1;
    assert_eq!(by_time["items"].as_array().unwrap().len(), 11);
}
