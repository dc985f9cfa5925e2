//! A stub server that acts out what the API has for people: sign-in, teams, keys, audit log, administration. It keeps just
//! enough state for the tests to see what a command did, and records what it was asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::stub::wrenn;

pub const PASSWORD: &str = "correct horse";
pub const WHEN: &str = "2026-01-02T03:04:05Z";

pub fn team(n: u8) -> String {
    format!("team-{}", n.to_string().repeat(25))
}

pub fn user(n: u8) -> String {
    format!("usr-{}", n.to_string().repeat(25))
}

pub fn key() -> String {
    format!("key-{}", "4".repeat(25))
}

#[derive(Default)]
struct Acted {
    /// What was asked: method, path with query, body.
    asked: Vec<String>,
    /// Teams by number, with their names.
    teams: BTreeMap<u8, String>,
    /// Seconds for which a token is good.
    lifetime: i64,
}

/// One person, `a@b.c`, who is in a few teams.
pub struct PeopleStub {
    address: SocketAddr,
    acted: Arc<Mutex<Acted>>,
    pub home: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl PeopleStub {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let teams = BTreeMap::from([(1, "Red".into()), (2, "Blue".into()), (3, "Blue".into())]);
        let acted = Arc::new(Mutex::new(Acted { teams, lifetime: 21_600, ..Acted::default() }));
        let state = Arc::clone(&acted);
        let router = Router::new().fallback(move |request| answer(Arc::clone(&state), request));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { address, acted, home: tempfile::tempdir().unwrap(), _runtime: runtime }
    }

    /// A stub that the person of its home is signed in to.
    pub fn signed_in() -> Self {
        let stub = Self::start();
        assert!(stub.login(PASSWORD).status.success());
        stub.asked();
        stub
    }

    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = wrenn(args);
        command.env("WRENN_BASE_URL", self.base_url()).env("HOME", self.home.path());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output of a command that succeeds, as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.command(args).arg("--json").output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn login(&self, password: &str) -> Output {
        let file = self.home.path().join("password");
        std::fs::write(&file, format!("{password}\n")).unwrap();
        let mut command = self.command(&["login", "--email", "a@b.c"]);
        command.stdin(std::fs::File::open(file).unwrap()).output().unwrap()
    }

    pub fn let_tokens_last(&self, seconds: i64) {
        self.acted.lock().unwrap().lifetime = seconds;
    }

    /// What was asked since the last look.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.acted.lock().unwrap().asked)
    }
}

fn refusal(status: StatusCode, code: &str) -> Response {
    (status, Json(json!({"error": {"code": code, "message": "because"}}))).into_response()
}

/// What a token says, were it signed.
fn sign_in(team_number: u8, lifetime: i64) -> Response {
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + lifetime;
    let claims = URL_SAFE_NO_PAD.encode(json!({"exp": exp, "team": team_number}).to_string());
    let token = format!("h.{claims}.s");
    Json(json!({"token": token, "user_id": user(1), "team_id": team(team_number), "email": "a@b.c", "name": "Ada"}))
        .into_response()
}

/// The team that a request's token speaks for.
fn team_of(request: &Request) -> Option<u8> {
    let bearer = request.headers().get("authorization")?.to_str().ok()?;
    let claims = URL_SAFE_NO_PAD.decode(bearer.strip_prefix("Bearer h.")?.strip_suffix(".s")?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    u8::try_from(claims["team"].as_u64()?).ok()
}

async fn answer(acted: Arc<Mutex<Acted>>, request: Request) -> Response {
    let current = team_of(&request);
    let by_key = request.headers().contains_key("x-api-key");
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 100_000).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (method, path) = (head.method.as_str(), head.uri.path());
    let mut acted = acted.lock().unwrap();
    if path == "/v1/auth/login" {
        let good = body == json!({"email": "a@b.c", "password": PASSWORD});
        return if good {
            sign_in(1, acted.lifetime)
        } else {
            refusal(StatusCode::UNAUTHORIZED, "unauthorized")
        };
    }
    let target = head.uri.path_and_query().unwrap();
    let told = if body.is_null() { String::new() } else { format!(" {body}") };
    acted.asked.push(format!("{method} {target}{told}"));
    if path == "/v1/capsules" {
        return Json(json!([])).into_response();
    }
    let Some(current) = current.filter(|_| !by_key) else {
        return refusal(StatusCode::UNAUTHORIZED, "unauthorized");
    };
    if path == "/v1/auth/switch-team" {
        let wanted = acted.teams.keys().find(|n| body["team_id"] == team(**n)).copied();
        return wanted.map_or_else(|| refusal(StatusCode::FORBIDDEN, "forbidden"), |n| sign_in(n, 21_600));
    }
    if let Some(rest) = path.strip_prefix("/v1/teams/") {
        return one_team(&mut acted, current, method, rest, &body);
    }
    if let Some(rest) = path.strip_prefix("/v1/admin/") {
        return admin(method, rest, head.uri.query().unwrap_or_default());
    }
    whole(&acted, current, method, path, head.uri.query().unwrap_or_default())
}

fn team_value(n: u8, name: &str) -> Value {
    json!({"id": team(n), "name": name, "slug": format!("00000{n}-abcdef"), "is_byoc": false, "created_at": WHEN})
}

fn whole(acted: &Acted, current: u8, method: &str, path: &str, query: &str) -> Response {
    let key_value = json!({"id": key(), "team_id": team(current), "name": "ci", "key_prefix": "wrn_012345",
        "created_by": user(1), "creator_email": "a@b.c", "created_at": WHEN});
    match (method, path) {
        ("GET", "/v1/me") => Json(json!({"user_id": user(1), "team_id": team(current), "name": "Ada",
            "email": "a@b.c", "role": "owner", "is_admin": true, "has_password": true, "providers": []}))
        .into_response(),
        ("GET", "/v1/teams") => {
            let with_role = |(n, name): (&u8, &String)| {
                let mut value = team_value(*n, name);
                value["role"] = json!("owner");
                value
            };
            Json(acted.teams.iter().map(with_role).collect::<Vec<_>>()).into_response()
        }
        ("POST", "/v1/teams") => (StatusCode::CREATED, Json(team_value(4, "New"))).into_response(),
        ("GET", "/v1/api-keys") => Json(json!([key_value])).into_response(),
        ("POST", "/v1/api-keys") => {
            let mut made = key_value;
            made["key"] = json!("wrn_secret");
            (StatusCode::CREATED, Json(made)).into_response()
        }
        ("DELETE", _) => StatusCode::NO_CONTENT.into_response(),
        ("GET", "/v1/audit-logs") => audit(query),
        _ => refusal(StatusCode::NOT_FOUND, "not_found"),
    }
}

/// Five entries, all of the same second, of which a page has as many as it may.
fn audit(query: &str) -> Response {
    let find = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let limit: usize = find("limit").unwrap().parse().unwrap();
    let before: usize = find("before_id").map_or(6, |id| id.strip_prefix("log-").unwrap().parse().unwrap());
    assert!(before == 6 || find("before") == Some("2026-01-02T03%3A04%3A05.5Z"), "{query}");
    let entry = |n: usize| {
        json!({"id": format!("log-{n}"), "actor_type": "user", "actor_id": user(1), "actor_name": "Ada",
            "resource_type": "sandbox", "resource_id": "cl-1", "action": "create", "scope": "team",
            "status": "success", "created_at": WHEN})
    };
    let numbers: Vec<usize> = (1..before).rev().take(limit.min(2)).collect();
    let items: Vec<Value> = numbers.iter().map(|n| entry(*n)).collect();
    match numbers.last() {
        Some(last) => {
            let next = json!("2026-01-02T03:04:05.5Z");
            Json(json!({"items": items, "next_before": next, "next_before_id": format!("log-{last}")}))
                .into_response()
        }
        None => Json(json!({"items": []})).into_response(),
    }
}

fn one_team(acted: &mut Acted, current: u8, method: &str, rest: &str, body: &Value) -> Response {
    let (id, rest) = rest.split_once('/').unwrap_or((rest, ""));
    if id != team(current) {
        return refusal(StatusCode::FORBIDDEN, "forbidden");
    }
    let member = |n: u8, role: &str| json!({"user_id": user(n), "name": "N", "email": format!("m{n}@b.c"), "role": role, "joined_at": WHEN});
    let members = json!([member(1, "owner"), member(2, "member")]);
    match (method, rest) {
        ("GET", "") => {
            let team = team_value(current, &acted.teams[&current]);
            Json(json!({"team": team, "members": members})).into_response()
        }
        ("GET", "members") => Json(members).into_response(),
        ("POST", "members") if body["email"] == "nobody@b.c" => refusal(StatusCode::NOT_FOUND, "not_found"),
        ("POST", "members") => (StatusCode::CREATED, Json(member(3, "member"))).into_response(),
        ("DELETE", "") | ("POST", "leave") => {
            acted.teams.remove(&current);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

fn admin(method: &str, rest: &str, query: &str) -> Response {
    // Two pages of one item each.
    let n: u8 = query.strip_prefix("page=").map_or(1, |page| page.parse().unwrap());
    let paged = |name: &str, item: Value| {
        let mut page = json!({"total": 2, "page": n, "per_page": 1, "total_pages": 2});
        page[name] = json!([item]);
        Json(page).into_response()
    };
    match (method, rest) {
        ("GET", "users") => paged(
            "users",
            json!({"id": user(n), "email": format!("m{n}@b.c"), "name": "N", "is_admin": n == 1, "status": "active",
                "created_at": WHEN, "teams_joined": 1, "teams_owned": 1}),
        ),
        ("GET", "teams") => {
            let mut value = team_value(n, "Red");
            value["owner_email"] = json!("a@b.c");
            value["deleted_at"] = if n == 2 { json!(WHEN) } else { Value::Null };
            paged("teams", value)
        }
        ("GET", "templates") => Json(json!([{"name": "minimal", "type": "base", "size_bytes": 0,
            "team_id": team(0), "created_at": WHEN, "protected": true}]))
        .into_response(),
        ("DELETE", "templates/minimal") => refusal(StatusCode::FORBIDDEN, "forbidden"),
        ("GET", "audit-logs") => audit(query),
        ("GET", _) => refusal(StatusCode::NOT_FOUND, "not_found"),
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}
