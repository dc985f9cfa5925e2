//! The form of requests and answers: envelopes, ids, prefixes.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use wrenn_core::CapsuleId;

use crate::support::{Server, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_methods_and_ids_are_refused_in_the_envelope() {
    let server = Server::start(Duration::ZERO).await;
    let missing = CapsuleId::random();
    let cases = [
        (Method::GET, "/nothing".to_owned(), 404, "not_found"),
        (Method::GET, "/api/nothing".to_owned(), 404, "not_found"),
        (Method::GET, "/v1/billing".to_owned(), 404, "not_found"),
        (Method::POST, format!("/v1/capsules/{missing}/pause"), 404, "not_found"),
        (Method::GET, "/v1/capsules/".to_owned(), 404, "not_found"),
        (Method::PUT, "/v1/capsules".to_owned(), 405, "invalid_request"),
        (Method::GET, "/v1/capsules/cl-abc".to_owned(), 400, "invalid_request"),
        (Method::GET, format!("/v1/capsules/{}", missing.to_string().to_uppercase()), 400, "invalid_request"),
        (Method::DELETE, format!("/v1/capsules/team-{}", "0".repeat(25)), 400, "invalid_request"),
        (Method::GET, format!("/v1/capsules/cl-{}", "z".repeat(25)), 400, "invalid_request"),
        (Method::GET, "/v1/capsules/%ff".to_owned(), 400, "invalid_request"),
        (Method::GET, format!("/v1/capsules/{missing}"), 404, "not_found"),
        (Method::DELETE, format!("/v1/capsules/{missing}"), 404, "not_found"),
        (Method::POST, format!("/v1/capsules/{missing}/ping"), 404, "not_found"),
        (Method::GET, format!("/v1/capsules/{missing}/pty"), 400, "invalid_request"),
    ];
    for (method, path, status, code) in cases {
        let found = refusal(server.request(method.clone(), &path)).await;
        assert_eq!(found, (status, code.to_owned()), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_refused_and_name_the_field() {
    let server = Server::start(Duration::ZERO).await;
    let bodies: [(&[u8], &str); 15] = [
        (b"", ""),
        (b"{", ""),
        (b"[]", "object"),
        (br#"["unheard-of", 1, 512, 0, 5120, {}]"#, "object"),
        (b"\xff\xfe", ""),
        (br#"{"vcpus": "two"}"#, "vcpus: invalid type: string \"two\", expected an integer at line 1"),
        (br#"{"vcpus": 1.5}"#, "vcpus"),
        (br#"{"vcpus": 4000}"#, "vcpus"),
        (br#"{"memory_mb": 1}"#, "memory_mb"),
        (br#"{"memory_mb": 99999999999999999999}"#, "memory_mb"),
        (br#"{"disk_size_mb": 1}"#, "disk_size_mb"),
        (br#"{"metadata": {"a": 1}}"#, "metadata"),
        (br#"{"metadata": {"vmm_version": "x"}}"#, "vmm_version"),
        (br#"{"metadata": {"a b": "x"}}"#, "a b"),
        (br#"{"template": "../etc"}"#, "template"),
    ];
    for (body, field) in bodies {
        let request = server.request(Method::POST, "/v1/capsules").header("content-type", "application/json");
        let response = request.body(body.to_vec()).send().await.unwrap();
        let shown = String::from_utf8_lossy(body).into_owned();
        assert_eq!(response.status(), 400, "{shown}");
        let answer: serde_json::Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["code"], "invalid_request", "{shown}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(field), "{shown}: {answer}");
    }
    let text = server.request(Method::POST, "/v1/capsules").header("content-type", "text/plain").body("{}");
    assert_eq!(refusal(text).await, (400, "invalid_request".to_owned()));
    let untyped = server.request(Method::POST, "/v1/capsules").body(r#"{"template": "unheard-of"}"#);
    assert_eq!(refusal(untyped).await, (404, "not_found".to_owned()));
    let large = server.request(Method::POST, "/v1/capsules").json(&json!({"template": "x".repeat(9 << 20)}));
    assert_eq!(refusal(large).await, (413, "too_large".to_owned()));
    let unknown = server.request(Method::POST, "/v1/capsules").json(&json!({"template": "unheard-of"}));
    assert_eq!(refusal(unknown).await, (404, "not_found".to_owned()));
    let nowhere = server.request(Method::POST, "/v1/capsules").json(&json!({"unknown": 1, "vcpus": null}));
    assert_eq!(refusal(nowhere).await, (503, "host_unavailable".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_open_routes_answer_under_both_prefixes_with_a_request_id() {
    let server = Server::start(Duration::ZERO).await;
    for prefix in ["", "/api"] {
        let health = server.http.get(server.url(&format!("{prefix}/health"))).header("x-request-id", "mine");
        let response = health.send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"], "mine");
        assert_eq!(response.json::<serde_json::Value>().await.unwrap()["status"], "ok");
        let yaml = server.http.get(server.url(&format!("{prefix}/openapi.yaml"))).send().await.unwrap();
        assert_eq!(yaml.headers()["content-type"], "application/yaml");
        assert!(yaml.text().await.unwrap().starts_with("openapi: 3.1"));
        let page = server.http.get(server.url(&format!("{prefix}/docs"))).send().await.unwrap();
        assert_eq!(page.status(), 200);
        let html = page.text().await.unwrap();
        assert!(html.contains("<base href=\"docs/\">") && !html.contains("://"), "{html}");
        for asset in ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-initializer.js"] {
            let path = format!("{prefix}/docs/{asset}");
            assert_eq!(server.http.get(server.url(&path)).send().await.unwrap().status(), 200, "{path}");
        }
    }
    let odd =
        server.http.get(server.url("/health")).header("x-request-id", "x".repeat(500)).send().await.unwrap();
    assert_eq!(odd.headers()["x-request-id"].len(), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_the_server_while_connections_are_open() {
    let server = Server::start(Duration::ZERO).await;
    assert_eq!(server.get("/health").await.0, 200);
    server.shutdown.cancel();
    tokio::time::timeout(crate::support::PATIENCE, server.served).await.unwrap().unwrap().unwrap();
}
