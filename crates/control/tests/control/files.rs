//! Contents of files, in and out.

use std::time::Duration;

use bytes::Bytes;
use reqwest::multipart::{Form, Part};
use reqwest::{Method, RequestBuilder};
use serde_json::json;

use crate::support::{PATIENCE, Server, answer, refusal};

fn form(path: &str, content: Vec<u8>) -> Form {
    Form::new().text("path", path.to_owned()).part("file", Part::bytes(content).file_name("upload"))
}

fn raw(server: &Server, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
    server.request(Method::POST, path).header("content-type", "multipart/form-data; boundary=B").body(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read_back_byte_for_byte_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let base = format!("/v1/capsules/{}/files", server.capsule().await);
    let content: Vec<u8> = (0..5_000_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for (write, read) in [("write", "read"), ("stream/write", "stream/read")] {
        for (path, content) in [("/a b/ü?&", content.clone()), ("/empty", Vec::new())] {
            let written = server
                .request(Method::POST, &format!("{base}/{write}"))
                .multipart(form(path, content.clone()));
            assert_eq!(answer(written).await.0, 204);
            let read = server.request(Method::POST, &format!("{base}/{read}")).json(&json!({"path": path}));
            let response = read.send().await.unwrap();
            assert_eq!(response.headers()["content-type"], "application/octet-stream");
            assert_eq!(response.bytes().await.unwrap(), content);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_guest_and_of_bad_paths_have_their_codes_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let base = format!("/v1/capsules/{}/files", server.capsule().await);
    let write = |path: &str, size: usize| {
        server.request(Method::POST, &format!("{base}/write")).multipart(form(path, vec![1; size]))
    };
    for size in [1, 20_000_000] {
        assert_eq!(refusal(write("/dir", size)).await, (400, "invalid_request".to_owned()));
        assert_eq!(refusal(write("/full", size)).await, (507, "agent_error".to_owned()));
    }
    let read =
        |path: &str| server.request(Method::POST, &format!("{base}/read")).json(&json!({"path": path}));
    assert_eq!(refusal(read("/none")).await, (404, "not_found".to_owned()));
    assert_eq!(refusal(read("/dir")).await, (400, "invalid_request".to_owned()));
    assert_eq!(refusal(read("/huge")).await, (413, "too_large".to_owned()));
    for call in ["read", "stream/read", "list", "mkdir", "remove"] {
        for path in ["", "~root/x", "a\0b"] {
            let request =
                server.request(Method::POST, &format!("{base}/{call}")).json(&json!({"path": path}));
            assert_eq!(refusal(request).await, (400, "invalid_request".to_owned()), "{call} {path:?}");
        }
    }
    assert_eq!(refusal(write("", 1)).await, (400, "invalid_request".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_multipart_bodies_are_refused_and_write_nothing_fake_agent() {
    const PATH: &str = "--B\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\n/x\r\n";
    const FILE: &str = "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nabc";
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let base = format!("/v1/capsules/{}/files", server.capsule().await);
    let bodies = [
        String::new(),
        "--B--\r\n".to_owned(),
        format!("{PATH}--B--\r\n"),
        format!("{FILE}\r\n{PATH}--B--\r\n"),
        format!("{PATH}{FILE}"),
        format!("{PATH}{FILE}\r\n--B"),
    ];
    for call in ["write", "stream/write"] {
        for body in &bodies {
            let refused = refusal(raw(&server, &format!("{base}/{call}"), body.clone())).await;
            assert_eq!(refused, (400, "invalid_request".to_owned()), "{call} {body:?}");
        }
        let json = server.request(Method::POST, &format!("{base}/{call}")).json(&json!({"path": "/x"}));
        assert_eq!(refusal(json).await, (400, "invalid_request".to_owned()));
    }
    assert!(!agent.world.guest.files.lock().unwrap().contains_key("/x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_write_is_limited_to_100_mib_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let base = format!("/v1/capsules/{}/files", server.capsule().await);
    let chunks = (0..101).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![0u8; 1 << 20])));
    let begin = "--B\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\n/x\r\n\
        --B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n";
    let body = futures::stream::iter([Ok(Bytes::from(begin))].into_iter().chain(chunks));
    let request = raw(&server, &format!("{base}/write"), reqwest::Body::wrap_stream(body));
    assert_eq!(refusal(request).await, (413, "too_large".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_is_reported_to_the_guest_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let base = format!("/v1/capsules/{}/files", server.capsule().await);
    let begin = "--B\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\n/half\r\n\
        --B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nhalf of it";
    let body = futures::StreamExt::chain(
        futures::stream::iter([
            Ok::<_, std::io::Error>(Bytes::from(begin)),
            Ok(Bytes::from(vec![1; 1 << 20])),
        ]),
        futures::stream::pending(),
    );
    let request = raw(&server, &format!("{base}/stream/write"), reqwest::Body::wrap_stream(body));
    assert!(request.timeout(Duration::from_secs(1)).send().await.is_err());
    let told = async {
        while *agent.world.guest.broken_uploads.lock().unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert!(!agent.world.guest.files.lock().unwrap().contains_key("/half"));
    let again = server.request(Method::POST, &format!("{base}/write")).multipart(form("/half", vec![2]));
    assert_eq!(answer(again).await.0, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_breaks_off_aborts_the_connection_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let base = format!("/v1/capsules/{}/files", server.capsule().await);
    for call in ["read", "stream/read"] {
        let request =
            server.request(Method::POST, &format!("{base}/{call}")).json(&json!({"path": "/breaks"}));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.bytes().await.is_err(), "{call}");
    }
}
