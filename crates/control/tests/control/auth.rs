//! Who may call what.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use wrenn_control::{admin, api};

use crate::support::{JWT_SECRET, PATIENCE, Server, answer, refusal};

/// Every route that a key opens, with an id that nobody has.
fn guarded() -> Vec<(Method, String)> {
    let id = wrenn_core::CapsuleId::random().to_string();
    let all = api::described_routes();
    assert!(all.len() > 15, "the document describes too few routes: {all:?}");
    all.into_iter()
        .filter(|(_, path)| ["/v1/capsules", "/v1/snapshots"].iter().any(|begin| path.starts_with(begin)))
        .map(|(method, path)| {
            (method, path.replace("{id}", &id).replace("{selector}", "1").replace("{name}", "x"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_guarded_route_refuses_missing_and_bad_credentials() {
    let server = Server::start(Duration::ZERO).await;
    let unknown = format!("wrn_{}", "0".repeat(32));
    for (method, path) in guarded() {
        for prefix in ["", "/api"] {
            let request = || {
                server.http.request(method.clone(), server.url(&format!("{prefix}{path}"))).json(&json!({}))
            };
            let wanted = (401, "unauthorized".to_owned());
            assert_eq!(refusal(request()).await, wanted, "{method} {prefix}{path} without a key");
            for key in ["garbage", unknown.as_str(), &server.key[..35], ""] {
                assert_eq!(
                    refusal(request().header("x-api-key", key)).await,
                    wanted,
                    "{method} {path} with {key}"
                );
            }
            assert_eq!(
                refusal(request().bearer_auth("e30.e30.x")).await,
                wanted,
                "{method} {path} with a bearer"
            );
            let both = request().header("x-api-key", "bad").bearer_auth("good");
            assert_eq!(refusal(both).await, wanted);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_teams_capsule_does_not_exist_on_any_route_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    let foreign = admin::create_team_with_key(&server.store, "others").await.unwrap().key;
    for (method, path) in api::described_routes() {
        if !path.starts_with("/v1/capsules/{id}") || path.ends_with("/stream") || path.ends_with("/pty") {
            continue;
        }
        let path = path.replace("{id}", &id).replace("{selector}", "1");
        let request = server.http.request(method.clone(), server.url(&path)).header("x-api-key", &foreign);
        let request = if path.ends_with("write") {
            let form = reqwest::multipart::Form::new().text("path", "/x").text("file", "x");
            request.multipart(form)
        } else {
            request.json(&json!({"cmd": "echo", "path": "/x"}))
        };
        assert_eq!(refusal(request).await, (404, "not_found".to_owned()), "{method} {path}");
    }
    let list = server.http.get(server.url("/v1/capsules")).header("x-api-key", &foreign);
    assert_eq!(answer(list).await.1, json!([]));
    assert_eq!(server.get(&format!("/v1/capsules/{id}")).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_stops_working_within_seconds_and_uses_are_recorded() {
    let server = Server::start(Duration::ZERO).await;
    let made = admin::create_key(&server.store, "temporary").await.unwrap();
    let list = || server.http.get(server.url("/v1/capsules")).header("x-api-key", &made.key);
    assert_eq!(answer(list()).await.0, 200);
    let used = async {
        loop {
            let keys = admin::list_keys(&server.store).await.unwrap();
            if keys.iter().any(|key| key.id == made.id && key.last_used.is_some()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, used).await.unwrap();
    admin::revoke_key(&server.store, made.id).await.unwrap();
    let refused = async {
        while answer(list()).await.0 != 401 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert!(admin::revoke_key(&server.store, made.id).await.is_err());
    assert!(admin::ensure_default_team_and_key(&server.store).await.unwrap().is_none());
}

/// What the whole process logs, in one place: this test alone looks at it.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_logged_with_address_and_beginning_and_no_secret_ever_is() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .init();
    let server = Server::start(Duration::ZERO).await;
    let user = admin::LocalUser {
        email: "ada@example.com".into(),
        name: "Ada".into(),
        password: "the right password".into(),
        admin: true,
    };
    admin::create_user(&server.store, user).await.unwrap();
    let ada = server.owner("Bob").await;
    let (bad_key, bad_token) = ("wrn_0badbadbadbadbadbadbadbadbadbad0", format!("{}x", ada.token));
    let get = |path: &str| server.http.get(server.url(path));
    assert_eq!(refusal(get("/v1/capsules").header("x-api-key", bad_key)).await.0, 401);
    assert_eq!(refusal(get("/v1/me").bearer_auth(&bad_token)).await.0, 401);
    let login = async |password: &str| {
        server.open_post("/v1/auth/login", &json!({"email": "ada@example.com", "password": password})).await
    };
    assert_eq!(login("the wrong password").await.0, 401);
    let (status, auth) = login("the right password").await;
    assert_eq!(status, 200);
    let key = server.send_by(&ada, Method::POST, "/v1/api-keys", &json!({})).await.1["key"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(answer(get("/v1/capsules").header("x-api-key", &key)).await.0, 200);
    get(&format!("/v1/capsules/{}/pty?token={}", wrenn_core::CapsuleId::random(), ada.token))
        .send()
        .await
        .unwrap();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let (token, right) = (auth["token"].as_str().unwrap(), "the right password");
    for secret in
        [bad_key, &bad_token, &ada.token, &key, token, "the wrong password", right, JWT_SECRET, "$argon2id"]
    {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret} is in the log: {line:?}");
    }
    for (what, begins) in [
        ("refused an API key", "\"wrn_0badba\""),
        ("refused a token", &format!("\"{}\"", &bad_token[..10])),
        ("refused a sign-in", "\"ada@example.com\""),
    ] {
        let line =
            text.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("no line with {what}"));
        assert!(
            line.contains("WARN") && line.contains("client=127.0.0.1") && line.contains(begins),
            "{line}"
        );
    }
}
