//! Who may call what: every route, with every kind of credential.
//!
//! The table beside this file is the reviewed text. A route that is not in it fails the test, and so does an answer that
//! differs. After a change that is meant, `UPDATE_AUTHORISATION=1` writes the table anew: review the difference.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use time::Duration as Life;
use wrenn_control::{admin, api};
use wrenn_core::{ApiKeyId, HostId};

use crate::support::people::{Person, sign, token};
use crate::support::{PATIENCE, Server};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/control/authorisation.txt");

const HEADING: &str = "\
# Status of the answer to each route, by who asks. A team and what is its own are the subject: `key`, `member`, `admin`
# and `owner` are the team's, the foreign ones another team's, `disabled` is a member whose account is locked, `platform`
# administers the platform and is in a third team, `left` was a member and still has the token. Bodies are valid
# where that hurts nobody; each route has a team, a capsule and a template of its own.
";

/// Who asks, in the order of the columns. Those who may least come first, so that what the others do is still undone.
const ASKING: [&str; 14] = [
    "nothing",
    "garbage",
    "expired",
    "host",
    "bad key",
    "foreign key",
    "foreign",
    "left",
    "disabled",
    "platform",
    "key",
    "member",
    "admin",
    "owner",
];

/// The subject of one route, and those who ask.
struct Scene {
    server: Server,
    root: Person,
}

struct Subject {
    values: BTreeMap<&'static str, String>,
    people: BTreeMap<&'static str, Person>,
    keys: BTreeMap<&'static str, String>,
}

impl Scene {
    async fn subject(&self, path: &str) -> Subject {
        let server = &self.server;
        let made = admin::create_team_with_key(&server.store, "Subject").await.unwrap();
        let other = admin::create_team_with_key(&server.store, "Foreign").await.unwrap();
        let mut people = BTreeMap::from([("platform", self.root.clone())]);
        for role in ["member", "admin", "owner"] {
            people.insert(role, server.person(role, made.team, role).await);
        }
        for role in ["disabled", "left", "bystander"] {
            people.insert(role, server.person(role, made.team, "member").await);
        }
        people.insert("foreign", server.person("foreign", other.team, "owner").await);
        server
            .sql(format!(
                "update users set status = 'disabled' where id = '{}'; delete from team_members where user_id = '{}'",
                people["disabled"].id.uuid(),
                people["left"].id.uuid()
            ))
            .await;
        let mut values = BTreeMap::from([
            ("team", made.team.to_string()),
            ("user", people["bystander"].id.to_string()),
            ("key", ApiKeyId::random().to_string()),
            ("selector", "1".to_owned()),
            ("provider", "github".to_owned()),
            ("file", "index.css".to_owned()),
            ("name", "mine".to_owned()),
        ]);
        if path.contains("/capsules/{id}") || path.contains("/snapshots") || path.contains("templates/") {
            self.capsule(path, &people["owner"], &mut values).await;
        }
        let keys = BTreeMap::from([("key", made.key), ("foreign key", other.key)]);
        Subject { values, people, keys }
    }

    /// A running capsule, of the platform where the route is about those; and a template where it is about one.
    async fn capsule(&self, path: &str, owner: &Person, values: &mut BTreeMap<&'static str, String>) {
        let of_platform = path.starts_with("/v1/admin");
        let (by, prefix) = if of_platform { (&self.root, "/v1/admin") } else { (owner, "/v1") };
        let (status, made) =
            self.server.send_by(by, Method::POST, &format!("{prefix}/capsules"), &json!({})).await;
        assert_eq!(status, 201, "{made}");
        let id = made["id"].as_str().unwrap().to_owned();
        if path.ends_with("/{name}") {
            let (path, body) = if of_platform {
                (format!("{prefix}/capsules/{id}/snapshot"), json!({"name": "mine"}))
            } else {
                (format!("{prefix}/snapshots"), json!({"name": "mine", "sandbox_id": id}))
            };
            let (status, made) = self.server.send_by(by, Method::POST, &path, &body).await;
            assert_eq!(status, 201, "{made}");
        }
        values.insert("capsule", id);
    }

    fn request(&self, subject: &Subject, method: &Method, path: &str) -> RequestBuilder {
        let id = match path {
            _ if path.contains("/capsules/{id}") => subject.values.get("capsule"),
            _ if path.contains("/users/{id}") => subject.values.get("user"),
            _ if path.contains("/api-keys/{id}") => subject.values.get("key"),
            _ => subject.values.get("team"),
        };
        let mut filled = path.replace("{id}", id.map_or("", String::as_str));
        if path == "/v1/users/search" {
            filled.push_str("?email=nobody@");
        }
        filled = filled.replace("{uid}", &subject.values["user"]);
        for name in ["selector", "provider", "file", "name"] {
            filled = filled.replace(&format!("{{{name}}}"), &subject.values[name]);
        }
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let request = http.request(method.clone(), self.server.url(&filled)).timeout(PATIENCE);
        if path.ends_with("/write") {
            let form = reqwest::multipart::Form::new().text("path", "/x").text("file", "x");
            return request.multipart(form);
        }
        match *method {
            Method::GET => request,
            _ => request.json(&body(method, path, subject)),
        }
    }

    fn ask(&self, request: RequestBuilder, subject: &Subject, who: &str) -> RequestBuilder {
        let member = &subject.people["member"];
        match who {
            "nothing" => request,
            "garbage" => request.bearer_auth("garbage.garbage.garbage"),
            "expired" => request.bearer_auth(token(member.id, member.team, -Life::MINUTE)),
            "host" => {
                let host = HostId::random();
                let far = 4_000_000_000_i64;
                let claims = json!({"typ": "host", "host_id": host, "sub": member.id, "team_id": member.team, "iat": 0, "exp": far});
                request.bearer_auth(sign(&claims)).header("x-host-token", sign(&claims))
            }
            "bad key" => {
                request.header("x-api-key", "wrn_".to_owned() + &"0".repeat(32)).bearer_auth(&member.token)
            }
            "key" | "foreign key" => request.header("x-api-key", &subject.keys[who]),
            person => request.bearer_auth(&subject.people[person].token),
        }
    }
}

/// A body that the route takes, unless what it does would be felt by those who ask later.
fn body(method: &Method, path: &str, subject: &Subject) -> Value {
    let capsule = subject.values.get("capsule");
    match path {
        "/v1/auth/switch-team" => json!({"team_id": subject.values["team"]}),
        "/v1/snapshots" => json!({"sandbox_id": capsule, "name": "again"}),
        "/v1/teams" => json!({"name": "Another"}),
        "/v1/me" if *method == Method::PATCH => json!({"name": "Ada"}),
        "/v1/teams/{id}" => json!({"name": "Renamed"}),
        "/v1/teams/{id}/members" => json!({"email": subject.people["bystander"].email}),
        "/v1/teams/{id}/members/{uid}" => json!({"role": "admin"}),
        "/v1/admin/teams/{id}/byoc" => json!({"enabled": true}),
        "/v1/admin/users/{id}/active" => json!({"active": false}),
        "/v1/admin/users/{id}/admin" => json!({"admin": true}),
        _ if path.ends_with("/exec") => json!({"cmd": "echo"}),
        _ if path.contains("/files/") => json!({"path": "/x"}),
        _ => json!({}),
    }
}

async fn row(scene: &Scene, method: &Method, path: &str) -> String {
    let subject = scene.subject(path).await;
    let mut row = format!("{:<6} {path:<52}", method.as_str());
    for who in ASKING {
        let request = scene.ask(scene.request(&subject, method, path), &subject, who);
        let status = request.send().await.unwrap().status().as_u16();
        let width = who.len().max(3) + 2;
        let _ = write!(row, "{status:>width$}");
    }
    row
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_everybody_as_the_table_says_fake_agent() {
    let (server, _agent) = Server::configured_with_agent(PATIENCE, |control| {
        control.auth_limits.address_burst = 10_000;
        control.auth_limits.account_burst = 10_000;
    })
    .await;
    let root = server.administrator().await;
    let scene = Scene { server, root };
    let mut heading = format!("{:<59}", "");
    for who in ASKING {
        let width = who.len().max(3) + 2;
        let _ = write!(heading, "{who:>width$}");
    }
    let mut table = format!("{HEADING}\n{heading}\n");
    let mut routes = api::all_routes();
    routes.sort_by(|one, other| (&one.1, one.0.as_str()).cmp(&(&other.1, other.0.as_str())));
    for (method, path) in routes {
        table.push_str(row(&scene, &method, &path).await.trim_end());
        table.push('\n');
    }
    if std::env::var_os("UPDATE_AUTHORISATION").is_some() {
        std::fs::write(TABLE, &table).unwrap();
    }
    let kept = std::fs::read_to_string(TABLE).unwrap_or_default();
    let differing: Vec<&str> = table.lines().filter(|line| !kept.lines().any(|old| old == *line)).collect();
    let gone: Vec<&str> = kept.lines().filter(|line| !table.lines().any(|new| new == *line)).collect();
    assert!(
        differing.is_empty() && gone.is_empty(),
        "found:\n{}\nthe table:\n{}",
        differing.join("\n"),
        gone.join("\n")
    );
}
