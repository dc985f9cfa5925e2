//! How machines become hosts.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wrenn_control::hosts;

use crate::support::{PATIENCE, Server, refusal};

fn register(server: &Server, body: &Value) -> reqwest::RequestBuilder {
    server.http.request(Method::POST, server.url("/v1/hosts/register")).json(body)
}

fn refresh(server: &Server, token: &Value) -> reqwest::RequestBuilder {
    server.http.post(server.url("/v1/hosts/auth/refresh")).json(&json!({"refresh_token": token}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_token_works_once_and_a_refresh_token_is_rotated() {
    let server = Server::start(Duration::ZERO).await;
    let issued = hosts::ensure_local_host(&server.store).await.unwrap();
    assert_eq!(issued.token.len(), 64);
    let body = json!({"token": issued.token, "address": "127.0.0.1:1", "memory_mb": 1});
    let made: Value = register(&server, &body).send().await.unwrap().json().await.unwrap();
    assert_eq!(made["host"]["status"], "online");
    assert_eq!(made["host"]["id"], issued.host.to_string());
    assert_eq!(made["host"]["type"], "regular");
    for pem in ["cert_pem", "key_pem", "ca_cert_pem"] {
        assert!(made[pem].as_str().unwrap().starts_with("-----BEGIN"), "{pem}");
    }
    assert_eq!(refusal(register(&server, &body)).await, (401, "unauthorized".to_owned()));
    let renewed: Value = refresh(&server, &made["refresh_token"]).send().await.unwrap().json().await.unwrap();
    assert_ne!(renewed["refresh_token"], made["refresh_token"]);
    assert_ne!(renewed["cert_pem"], made["cert_pem"]);
    assert_eq!(renewed["ca_cert_pem"], made["ca_cert_pem"]);
    assert_eq!(refusal(refresh(&server, &made["refresh_token"])).await, (401, "unauthorized".to_owned()));
    assert_eq!(refresh(&server, &renewed["refresh_token"]).send().await.unwrap().status(), 200);
}

fn repeatable(server: &Server, token: &Value) -> reqwest::RequestBuilder {
    let body = json!({"refresh_token": token, "repeatable": true});
    server.http.post(server.url("/v1/hosts/auth/refresh")).json(&body)
}

/// Sends a refresh and hangs up without reading the answer.
async fn refresh_into_nothing(server: &Server, token: &Value) {
    let body = json!({"refresh_token": token, "repeatable": true}).to_string();
    let address = server.base.trim_start_matches("http://");
    let head = format!(
        "POST /v1/hosts/auth/refresh HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    // The first byte: by then the new token is stored.
    stream.read_u8().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_whose_answer_was_lost_can_be_repeated_until_a_later_token_is_used() {
    let server = Server::start(Duration::ZERO).await;
    let issued = hosts::ensure_local_host(&server.store).await.unwrap();
    let body = json!({"token": issued.token, "address": "127.0.0.1:1"});
    let made: Value = register(&server, &body).send().await.unwrap().json().await.unwrap();
    let first = &made["refresh_token"];
    refresh_into_nothing(&server, first).await;
    refresh_into_nothing(&server, first).await;
    let one: Value = repeatable(&server, first).send().await.unwrap().json().await.unwrap();
    // A request that was under way for long comes late and changes nothing for the answer that arrived.
    let late: Value = repeatable(&server, first).send().await.unwrap().json().await.unwrap();
    let two: Value = repeatable(&server, &one["refresh_token"]).send().await.unwrap().json().await.unwrap();
    for ended in [first, &late["refresh_token"]] {
        assert_eq!(refusal(repeatable(&server, ended)).await, (401, "unauthorized".to_owned()));
    }
    assert_eq!(repeatable(&server, &two["refresh_token"]).send().await.unwrap().status(), 200);
    assert_eq!(refusal(repeatable(&server, &one["refresh_token"])).await, (401, "unauthorized".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_host_that_registers_anew_ends_all_refresh_tokens() {
    let server = Server::start(Duration::ZERO).await;
    let issued = hosts::ensure_local_host(&server.store).await.unwrap();
    let body = json!({"token": issued.token, "address": "127.0.0.1:1"});
    let made: Value = register(&server, &body).send().await.unwrap().json().await.unwrap();
    let renewed: Value = refresh(&server, &made["refresh_token"]).send().await.unwrap().json().await.unwrap();
    hosts::ensure_local_host(&server.store).await.unwrap();
    for ended in [&made["refresh_token"], &renewed["refresh_token"]] {
        assert_eq!(refusal(refresh(&server, ended)).await, (401, "unauthorized".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_host_that_lost_its_credentials_gets_new_ones_and_keeps_its_id() {
    let server = Server::start(Duration::ZERO).await;
    let first = hosts::ensure_local_host(&server.store).await.unwrap();
    let second = hosts::ensure_local_host(&server.store).await.unwrap();
    assert_eq!(first.host, second.host);
    let body = json!({"token": first.token, "address": "127.0.0.1:1"});
    assert_eq!(refusal(register(&server, &body)).await, (401, "unauthorized".to_owned()));
    let body = json!({"token": second.token, "address": "127.0.0.1:1"});
    assert_eq!(register(&server, &body).send().await.unwrap().status(), 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_registered_anew_is_reached_at_its_new_address_at_once_fake_agent() {
    let (server, mut agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    // A request that went to the old address would do so only until the link to the host is replaced.
    for round in 0..20 {
        let world = agent.world.clone();
        agent.leave().await;
        agent = server.add_agent_with(world).await;
        let (status, answer) = server.act(&id, "ping").await;
        assert_eq!(status, 204, "round {round}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_registrations_are_refused() {
    let server = Server::start(Duration::ZERO).await;
    let cases = [
        (json!({}), 400),
        (json!({"token": "x"}), 400),
        (json!({"token": "x", "address": "nowhere"}), 400),
        (json!({"token": "x", "address": "127.0.0.1:1", "cpu_cores": -1}), 400),
        (json!({"token": "x", "address": "127.0.0.1:1"}), 401),
    ];
    for (body, status) in cases {
        assert_eq!(refusal(register(&server, &body)).await.0, status, "{body}");
    }
    assert_eq!(refusal(refresh(&server, &Value::Null)).await.0, 400);
    assert_eq!(refusal(refresh(&server, &json!("x"))).await.0, 401);
}
