//! What needs a person's token, against a stub server: an in-process test double that answers from a table and records
//! what it was asked. What the platform itself does is tested end to end, elsewhere.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::any;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use wrenn_client::{AuditQuery, CapsuleId, Client, Command, Error, TeamId, TeamRole, UserId};

const WHEN: &str = "2026-01-02T03:04:05Z";

/// What was asked, in order: method, path and body.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn answer(method: &str, path: &str) -> Value {
    let team =
        json!({"id": team_id(), "name": "T", "slug": "aaaaaa-bbbbbb", "is_byoc": false, "created_at": WHEN});
    let member = json!({"user_id": user(), "name": null, "email": "a@b", "role": "admin", "joined_at": WHEN});
    let numbers = json!({"total": 101, "page": 2, "per_page": 100, "total_pages": 2});
    let paged = |name: &str, item: Value| {
        let mut page = numbers.clone();
        page[name] = json!([item]);
        page
    };
    let me = json!({"user_id": user(), "team_id": team_id(), "name": "A", "email": "a@b", "role": "owner",
        "is_admin": true, "has_password": true, "providers": null});
    let key = json!({"id": format!("key-{}", "0".repeat(25)), "team_id": team_id(), "name": "k",
        "key_prefix": "wrn_000000", "created_by": user(), "created_at": WHEN, "last_used": null});
    let template = json!({"name": "minimal", "type": "base", "size_bytes": 0, "team_id": team_id(), "created_at": WHEN,
        "protected": true});
    match (method, path.split('?').next().unwrap()) {
        ("POST", "/v1/auth/signup") => json!({"message": "look at your mail"}),
        ("POST", path) if path.starts_with("/v1/auth/") => sign_in(),
        ("PATCH", "/v1/me") => sign_in(),
        ("GET", "/v1/me") => me,
        ("GET", "/v1/teams") => json!([team]),
        ("POST", "/v1/teams") => team,
        ("GET", "/v1/users/search") => json!([{"user_id": user(), "email": "a@b"}]),
        ("GET", path) if path.ends_with("/members") => json!([member]),
        ("POST", path) if path.ends_with("/members") => member,
        ("GET", path) if path.starts_with("/v1/teams/") => json!({"team": team, "members": [member]}),
        ("GET", "/v1/api-keys") => json!([key]),
        ("POST", "/v1/api-keys") => key,
        ("GET", "/v1/audit-logs" | "/v1/admin/audit-logs") => json!({"items": []}),
        ("GET", "/v1/admin/teams") => paged("teams", team),
        ("GET", "/v1/admin/users") => paged(
            "users",
            json!({"id": user(), "email": "a@b", "name": "A", "is_admin": true, "status": "active",
                "created_at": WHEN, "teams_joined": 1, "teams_owned": 1}),
        ),
        ("GET", "/v1/admin/templates") => json!([template]),
        _ => Value::Null,
    }
}

fn team_id() -> TeamId {
    format!("team-{}", "1".repeat(25)).parse().unwrap()
}

fn user() -> UserId {
    format!("usr-{}", "2".repeat(25)).parse().unwrap()
}

fn sign_in() -> Value {
    json!({"token": "j.w.t", "user_id": user(), "team_id": team_id(), "email": "a@b", "name": "A"})
}

async fn recorder() -> (String, Asked) {
    let asked = Asked::default();
    let record = Arc::clone(&asked);
    let base = serve(Router::new().fallback(move |request: Request| {
        let record = Arc::clone(&record);
        async move {
            let (head, body) = request.into_parts();
            let path = head.uri.path_and_query().unwrap().to_string();
            let open = ["login", "signup", "activate"].iter().any(|name| path.ends_with(name));
            let bearer = head.headers.get("authorization").map(|value| value.to_str().unwrap());
            assert_eq!(bearer, (!open).then_some("Bearer j.w.t"), "{path}");
            assert!(!head.headers.contains_key("x-api-key"));
            let body = axum::body::to_bytes(body, 10_000).await.unwrap();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            record.lock().unwrap().push((format!("{} {path}", head.method), body));
            match answer(head.method.as_str(), &path) {
                Value::Null => StatusCode::NO_CONTENT.into_response(),
                answer => axum::Json(answer).into_response(),
            }
        }
    }))
    .await;
    (base, asked)
}

fn taken(asked: &Asked) -> Vec<(String, Value)> {
    std::mem::take(&mut asked.lock().unwrap())
}

#[tokio::test]
async fn accounts_and_keys_are_spoken_of_as_the_contract_says_against_a_stub_server() {
    let (base, asked) = recorder().await;
    let nobody = Client::anonymous(&base).unwrap();
    assert_eq!(nobody.signup("a@b", "secret12", "A").await.unwrap(), "look at your mail");
    assert_eq!(nobody.activate("t").await.unwrap().email, "a@b");
    let signed_in = nobody.login("a@b", "secret12").await.unwrap();
    assert!(!format!("{signed_in:?}").contains("j.w.t"));

    let client = Client::with_token(&base, &signed_in.token).unwrap();
    client.switch_team(team_id()).await.unwrap();
    let me = client.me().await.unwrap();
    assert_eq!((me.role, me.is_admin, me.providers.len()), (TeamRole::Owner, true, 0));
    client.rename_me("B").await.unwrap();
    client.change_password(Some("old"), "new12345").await.unwrap();
    client.change_password(None, "new12345").await.unwrap();
    client.delete_me("a@b").await.unwrap();
    let key = client.create_api_key("k").await.unwrap();
    assert_eq!(client.list_api_keys().await.unwrap(), std::slice::from_ref(&key));
    client.delete_api_key(key.id).await.unwrap();
    let wanted = [
        ("POST /v1/auth/signup", json!({"email": "a@b", "password": "secret12", "name": "A"})),
        ("POST /v1/auth/activate", json!({"token": "t"})),
        ("POST /v1/auth/login", json!({"email": "a@b", "password": "secret12"})),
        ("POST /v1/auth/switch-team", json!({"team_id": team_id()})),
        ("GET /v1/me", Value::Null),
        ("PATCH /v1/me", json!({"name": "B"})),
        ("POST /v1/me/password", json!({"current_password": "old", "new_password": "new12345"})),
        ("POST /v1/me/password", json!({"confirm_password": "new12345", "new_password": "new12345"})),
        ("DELETE /v1/me", json!({"confirmation": "a@b"})),
        ("POST /v1/api-keys", json!({"name": "k"})),
        ("GET /v1/api-keys", Value::Null),
        (&format!("DELETE /v1/api-keys/{}", key.id), Value::Null),
    ];
    assert_eq!(taken(&asked), wanted.map(|(call, body)| (call.to_owned(), body)));
}

#[tokio::test]
async fn teams_are_spoken_of_as_the_contract_says_against_a_stub_server() {
    let (base, asked) = recorder().await;
    let client = Client::with_token(&base, "j.w.t").unwrap();
    assert_eq!(client.list_teams().await.unwrap()[0].role, None);
    client.create_team("N").await.unwrap();
    assert_eq!(client.team(team_id()).await.unwrap().members[0].name, "");
    client.rename_team(team_id(), "N").await.unwrap();
    client.delete_team(team_id()).await.unwrap();
    assert_eq!(client.list_members(team_id()).await.unwrap()[0].role, TeamRole::Admin);
    client.add_member(team_id(), "a@b").await.unwrap();
    client.set_member_role(team_id(), user(), TeamRole::Member).await.unwrap();
    client.remove_member(team_id(), user()).await.unwrap();
    client.leave_team(team_id()).await.unwrap();
    client.search_users("a+c@b").await.unwrap();
    let at = |method: &str, rest: &str| format!("{method} /v1/teams/{}{rest}", team_id());
    let member = format!("/members/{}", user());
    let wanted = [
        ("GET /v1/teams".to_owned(), Value::Null),
        ("POST /v1/teams".to_owned(), json!({"name": "N"})),
        (at("GET", ""), Value::Null),
        (at("PATCH", ""), json!({"name": "N"})),
        (at("DELETE", ""), Value::Null),
        (at("GET", "/members"), Value::Null),
        (at("POST", "/members"), json!({"email": "a@b"})),
        (at("PATCH", &member), json!({"role": "member"})),
        (at("DELETE", &member), Value::Null),
        (at("POST", "/leave"), Value::Null),
        ("GET /v1/users/search?email=a%2Bc%40b".to_owned(), Value::Null),
    ];
    assert_eq!(taken(&asked), wanted);
}

#[tokio::test]
async fn the_platform_is_run_as_the_contract_says_against_a_stub_server() {
    let (base, asked) = recorder().await;
    let client = Client::with_token(&base, "j.w.t").unwrap();
    let teams = client.admin_teams(2).await.unwrap();
    assert_eq!((teams.total, teams.total_pages, teams.items[0].member_count), (101, 2, 0));
    client.admin_enable_byoc(team_id()).await.unwrap();
    client.admin_delete_team(team_id()).await.unwrap();
    assert_eq!(client.admin_users(1).await.unwrap().items[0].status, "active");
    client.admin_set_user_active(user(), false).await.unwrap();
    client.admin_set_user_admin(user(), true).await.unwrap();
    assert!(client.admin_templates().await.unwrap()[0].protected);
    client.admin_delete_template("a").await.unwrap();
    let query = AuditQuery { limit: Some(3), ..AuditQuery::default() };
    assert_eq!(client.audit_log(&query).await.unwrap().next_before, None);
    client.admin_audit_log(&AuditQuery::default()).await.unwrap();
    let wanted = [
        ("GET /v1/admin/teams?page=2".to_owned(), Value::Null),
        (format!("PUT /v1/admin/teams/{}/byoc", team_id()), json!({"enabled": true})),
        (format!("DELETE /v1/admin/teams/{}", team_id()), Value::Null),
        ("GET /v1/admin/users?page=1".to_owned(), Value::Null),
        (format!("PUT /v1/admin/users/{}/active", user()), json!({"active": false})),
        (format!("PUT /v1/admin/users/{}/admin", user()), json!({"admin": true})),
        ("GET /v1/admin/templates".to_owned(), Value::Null),
        ("DELETE /v1/admin/templates/a".to_owned(), Value::Null),
        ("GET /v1/audit-logs?limit=3".to_owned(), Value::Null),
        ("GET /v1/admin/audit-logs".to_owned(), Value::Null),
    ];
    assert_eq!(taken(&asked), wanted);
}

#[tokio::test]
async fn a_session_opens_with_the_token_against_a_stub_server() {
    let open = |headers: HeaderMap, upgrade: WebSocketUpgrade| async move {
        assert_eq!(headers["authorization"], "Bearer j.w.t");
        upgrade.on_upgrade(|mut socket| async move {
            let _start = socket.recv().await;
            let told = json!({"type": "error", "data": "heard"});
            let _ = socket.send(Message::text(told.to_string())).await;
        })
    };
    let base = serve(Router::new().route("/v1/capsules/{id}/exec/stream", any(open))).await;
    let client = Client::with_token(&base, "j.w.t").unwrap();
    let mut stream = client.exec_stream(CapsuleId::random(), &Command::new("x")).await.unwrap();
    let event = futures::StreamExt::next(&mut stream).await.unwrap();
    assert!(matches!(&event, Err(Error::Session(said)) if said == "heard"), "{event:?}");
}
