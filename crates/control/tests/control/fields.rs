//! Bad input of every field is refused with the field's name.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Server, refused};

/// A body that is refused for one field.
type Bad = (Method, String, Value, &'static str);

fn bad_bodies_of_accounts() -> Vec<Bad> {
    let long = "x".repeat(300);
    let post = |path: &str, body: Value, field| (Method::POST, path.to_owned(), body, field);
    let mut all = Vec::new();
    let signup = json!({"email": "a@b.c", "password": "long enough", "name": "Ada"});
    for (field, bad) in [
        ("email", json!("nobody")),
        ("email", json!("")),
        ("email", json!(7)),
        ("email", json!(format!("{long}@b"))),
        ("password", json!("short")),
        ("password", Value::Null),
        ("password", json!(["x"])),
        ("password", json!("x".repeat(2000))),
        ("name", json!("  ")),
        ("name", json!(long)),
        ("name", json!("a\nb")),
        ("name", json!({})),
    ] {
        let mut body = signup.clone();
        body[field] = bad;
        all.push(post("/v1/auth/signup", body, field));
    }
    all.push(post("/v1/auth/login", json!({"password": "x"}), "email"));
    all.push(post("/v1/auth/login", json!({"email": "a@b.c"}), "password"));
    all.push(post("/v1/auth/activate", json!({}), "token"));
    all.push(post("/v1/auth/activate", json!({"token": 1}), "token"));
    all.push(post("/v1/auth/switch-team", json!({"team_id": "team-1"}), "team_id"));
    all.push(post("/v1/auth/switch-team", json!({}), "team_id"));
    all.push((Method::PATCH, "/v1/me".into(), json!({"name": ""}), "name"));
    all.push((Method::DELETE, "/v1/me".into(), json!({"confirmation": "x"}), "confirmation"));
    all.push((Method::DELETE, "/v1/me".into(), json!({}), "confirmation"));
    all.push(post("/v1/me/password", json!({"new_password": "short"}), "new_password"));
    all.push(post(
        "/v1/me/password",
        json!({"new_password": "long enough", "confirm_password": "x"}),
        "confirm_password",
    ));
    all.push(post("/v1/me/password/reset/confirm", json!({"new_password": "long enough"}), "token"));
    all.push(post(
        "/v1/me/password/reset/confirm",
        json!({"token": "x", "new_password": "short"}),
        "new_password",
    ));
    all
}

fn bad_bodies_of_teams(team: &str, user: &str) -> Vec<Bad> {
    let long = "x".repeat(300);
    let post = |path: &str, body: Value, field| (Method::POST, path.to_owned(), body, field);
    let mut all = Vec::new();
    for bad in [json!(""), json!("a/b"), json!("é"), json!("x".repeat(129)), json!(1), Value::Null] {
        all.push(post("/v1/teams", json!({"name": bad}), "name"));
        all.push((Method::PATCH, format!("/v1/teams/{team}"), json!({"name": bad}), "name"));
    }
    all.push(post(&format!("/v1/teams/{team}/members"), json!({"email": "x"}), "email"));
    let member = format!("/v1/teams/{team}/members/{user}");
    all.push((Method::PATCH, member.clone(), json!({"role": "owner"}), "role"));
    all.push((Method::PATCH, member, json!({}), "role"));
    all.push(post("/v1/api-keys", json!({"name": long}), "name"));
    all.push(post("/v1/api-keys", json!({"name": 5}), "name"));
    all.push((Method::PUT, format!("/v1/admin/users/{user}/active"), json!({}), "active"));
    all.push((Method::PUT, format!("/v1/admin/users/{user}/active"), json!({"active": "no"}), "active"));
    all.push((Method::PUT, format!("/v1/admin/users/{user}/admin"), json!({"admin": 1}), "admin"));
    all.push((Method::PUT, format!("/v1/admin/teams/{team}/byoc"), json!({"enabled": false}), "enabled"));
    all.push((Method::PUT, format!("/v1/admin/teams/{team}/byoc"), json!({}), "enabled"));
    all.push(post("/v1/snapshots", json!({}), "sandbox_id"));
    all.push(post("/v1/snapshots", json!({"sandbox_id": "cl-1"}), "sandbox_id"));
    for field in ["vcpus", "memory_mb", "disk_size_mb", "timeout_sec", "template", "metadata"] {
        all.push(post("/v1/capsules", json!({field: [true]}), field));
        all.push(post("/v1/admin/capsules", json!({field: [true]}), field));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_of_every_field_names_the_field() {
    let server = Server::configured(Duration::ZERO, |control| control.auth_limits.address_burst = 1000).await;
    let root = server.administrator().await;
    let other = server.person("Bob", root.team, "member").await;
    let mut all = bad_bodies_of_accounts();
    all.extend(bad_bodies_of_teams(&root.team.to_string(), &other.id.to_string()));
    for (method, path, body, field) in all {
        let found = server.send_by(&root, method.clone(), &path, &body).await;
        let message = refused(found, 400, "invalid_request");
        assert!(message.contains(field), "{method} {path} {body}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_parameters_name_themselves() {
    let server = Server::start(Duration::ZERO).await;
    let root = server.administrator().await;
    for (path, field) in [
        ("/v1/audit-logs?limit=0", "limit"),
        ("/v1/audit-logs?limit=x", "limit"),
        ("/v1/audit-logs?before=x", "before"),
        ("/v1/audit-logs?before_id=log-1", "before_id"),
        ("/v1/admin/audit-logs?limit=-3", "limit"),
        ("/v1/users/search?email=x", "email"),
        ("/v1/users/search", "email"),
        ("/auth/oauth/github?intent=x", "intent"),
    ] {
        let message = refused(server.get_by(&root, path).await, 400, "invalid_request");
        assert!(message.contains(field), "{path}: {message}");
    }
    for path in ["/v1/teams/team-x", "/v1/teams/usr-0000000000000000000000000"] {
        refused(server.get_by(&root, path).await, 400, "invalid_request");
    }
}
