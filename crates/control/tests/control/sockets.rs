//! The WebSocket protocols.

use std::time::Duration;

use futures::{SinkExt, Stream, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::support::{PATIENCE, Server};

struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    async fn open(server: &Server, path: &str, key: Option<&str>) -> Self {
        let mut request = server.url(path).replacen("http", "ws", 1).into_client_request().unwrap();
        if let Some(key) = key {
            request.headers_mut().insert("x-api-key", key.parse().unwrap());
        }
        Self(connect_async(request).await.unwrap().0)
    }

    async fn say(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    /// The next message that is no Ping.
    async fn hear(&mut self) -> Message {
        hear(&mut self.0).await
    }

    async fn text(&mut self) -> Value {
        match self.hear().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("expected text, not {other:?}"),
        }
    }

    async fn closed(&mut self, code: u16) {
        match self.hear().await {
            Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), code),
            other => panic!("expected a close, not {other:?}"),
        }
    }
}

async fn hear(messages: &mut (impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin)) -> Message {
    loop {
        match tokio::time::timeout(PATIENCE, messages.next()).await.unwrap().unwrap().unwrap() {
            Message::Ping(_) | Message::Pong(_) => {}
            message => return message,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_stream_sends_text_and_the_exit_code_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let path = format!("/v1/capsules/{}/exec/stream", server.capsule().await);
    let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
    socket.say(json!({"type": "auth", "token": "ignored"})).await;
    socket.say(json!({"type": "start", "cmd": "cut"})).await;
    let start = socket.text().await;
    assert_eq!(start["type"], "start");
    assert!(start["pid"].is_u64());
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let exit = loop {
        let message = socket.text().await;
        match message["type"].as_str().unwrap() {
            "stdout" => stdout += message["data"].as_str().unwrap(),
            "stderr" => stderr += message["data"].as_str().unwrap(),
            _ => break message,
        }
    };
    assert_eq!((stdout.as_str(), stderr.as_str()), ("a\u{20ac}\u{fffd}", "x"));
    assert_eq!(exit, json!({"type": "exit", "exit_code": 0}));
    socket.closed(1000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_starts_and_missing_commands_are_in_band_errors_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let path = format!("/v1/capsules/{}/exec/stream", server.capsule().await);
    let starts = [
        json!({"type": "begin"}),
        json!({"type": "start"}),
        json!([]),
        json!({"type": "start", "cmd": "missing"}),
        json!({"type": "start", "cmd": "echo", "cwd": "/missing"}),
    ];
    for start in starts {
        let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
        socket.say(start.clone()).await;
        let error = socket.text().await;
        assert_eq!(error["type"], "error", "{start}");
        assert!(error["data"].is_string());
        socket.closed(1000).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_authentication_and_unknown_capsules_are_in_band_errors() {
    let server = Server::start(Duration::ZERO).await;
    let missing = wrenn_core::CapsuleId::random();
    for route in ["exec/stream", "pty", "processes/1/stream"] {
        let path = format!("/api/v1/capsules/{missing}/{route}?token=x.y.z");
        for key in [None, Some("garbage")] {
            let mut socket = Socket::open(&server, &path, key).await;
            socket.say(json!({"type": "auth", "token": "x.y.z"})).await;
            assert_eq!(socket.text().await["data"], "authentication failed");
            socket.closed(1008).await;
        }
        let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
        let error = socket.text().await;
        assert!(error["data"].as_str().unwrap().contains("no capsule"), "{error}");
        assert_eq!(error["fatal"] == true, route == "pty");
        socket.closed(1000).await;
    }
    let mut bad =
        server.url("/v1/capsules/cl-x/pty").replacen("http", "ws", 1).into_client_request().unwrap();
    bad.headers_mut().insert("x-api-key", server.key.parse().unwrap());
    let refused = connect_async(bad).await.unwrap_err();
    assert!(refused.to_string().contains("400"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_and_disconnect_kill_the_process_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let path = format!("/v1/capsules/{}/exec/stream", server.capsule().await);
    let start = json!({"type": "start", "cmd": "wait"});
    let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
    socket.say(start.clone()).await;
    socket.text().await;
    socket.say(json!({"type": "unheard-of"})).await;
    socket.say(json!({"type": "stop"})).await;
    assert_eq!(socket.text().await, json!({"type": "exit", "exit_code": -1}));
    socket.closed(1000).await;
    let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
    socket.say(start).await;
    socket.text().await;
    drop(socket);
    let killed = async {
        while agent.world.guest.running() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, killed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_of_a_process_leave_it_running_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let base = format!("/v1/capsules/{}", server.capsule().await);
    let (_, made) = server.post(&format!("{base}/exec"), &json!({"cmd": "wait", "background": true})).await;
    let path = format!("{base}/processes/{}/stream", made["tag"].as_str().unwrap());
    let mut first = Socket::open(&server, &path, Some(&server.key)).await;
    assert_eq!(first.text().await["pid"], made["pid"]);
    drop(first);
    let mut second = Socket::open(&server, &path, Some(&server.key)).await;
    second.text().await;
    assert_eq!(agent.world.guest.running(), 1);
    assert_eq!(server.delete(&format!("{base}/processes/{}", made["pid"])).await, 204);
    assert_eq!(second.text().await, json!({"type": "exit", "exit_code": -1}));
    let mut late = Socket::open(&server, &path, Some(&server.key)).await;
    assert_eq!(late.text().await["type"], "error");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_types_resizes_survives_its_socket_and_exits_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let path = format!("/v1/capsules/{}/pty", server.capsule().await);
    let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
    socket.say(json!({"type": "start", "cols": 100, "rows": 30})).await;
    let started = socket.text().await;
    assert_eq!(started["type"], "started");
    let tag = started["tag"].as_str().unwrap().to_owned();
    assert_eq!((tag.len(), &tag[..4]), (12, "pty-"));
    socket.0.send(Message::binary(b"keys".to_vec())).await.unwrap();
    assert_eq!(socket.hear().await, Message::binary(b"keys".to_vec()));
    socket.say(json!({"type": "input", "data": "b2xk"})).await;
    assert_eq!(socket.hear().await, Message::binary(b"old".to_vec()));
    drop(socket);
    assert_eq!(agent.world.guest.running(), 1);
    let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
    socket.say(json!({"type": "connect", "tag": tag, "cols": 90, "rows": 20})).await;
    let again = socket.text().await;
    assert_eq!((&again["tag"], &again["pid"]), (&started["tag"], &started["pid"]));
    socket.say(json!({"type": "resize", "cols": 0, "rows": 5})).await;
    socket.say(json!({"type": "resize", "cols": 91, "rows": 21})).await;
    socket.say(json!({"type": "pong"})).await;
    socket.0.send(Message::binary(b"exit".to_vec())).await.unwrap();
    assert_eq!(socket.hear().await, Message::binary(b"exit".to_vec()));
    assert_eq!(socket.text().await, json!({"type": "exit", "exit_code": 7}));
    socket.closed(1000).await;
    assert_eq!(agent.world.guest.sizes.lock().unwrap()[0], (90, 20));
    let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
    socket.say(json!({"type": "connect", "tag": tag})).await;
    let error = socket.text().await;
    assert_eq!((&error["type"], &error["fatal"]), (&json!("error"), &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_terminal_ends_it_and_a_lost_host_is_fatal_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let path = format!("/v1/capsules/{}/pty", server.capsule().await);
    let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
    socket.say(json!({"type": "start"})).await;
    socket.text().await;
    socket.say(json!({"type": "kill"})).await;
    assert_eq!(socket.text().await, json!({"type": "exit", "exit_code": -1}));
    let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
    socket.say(json!({"type": "start"})).await;
    socket.text().await;
    drop(agent);
    let error = socket.text().await;
    assert_eq!((&error["type"], &error["fatal"]), (&json!("error"), &json!(true)));
    socket.closed(1000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_while_output_waits_and_shutdown_closes_with_1001_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let path = format!("/v1/capsules/{}/pty", server.capsule().await);
    let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
    socket.say(json!({"type": "start"})).await;
    socket.text().await;
    socket.0.send(Message::Ping(b"here".to_vec().into())).await.unwrap();
    let pong = tokio::time::timeout(PATIENCE, socket.0.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(pong, Message::Pong(b"here".to_vec().into()));
    server.shutdown.cancel();
    socket.closed(1001).await;
    drop(socket);
    tokio::time::timeout(PATIENCE, server.served).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_long_is_refused_in_words_and_with_1009_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let base = format!("/v1/capsules/{}", server.capsule().await);
    let limit = 4 << 20;
    for size in [limit + 1, 2 * limit + 1] {
        for (route, cmd) in [("exec/stream", "wait"), ("pty", "/bin/bash")] {
            let mut socket = Socket::open(&server, &format!("{base}/{route}"), Some(&server.key)).await;
            socket.say(json!({"type": "start", "cmd": cmd})).await;
            socket.text().await;
            let (mut sink, mut messages) = socket.0.split();
            // Beyond twice the limit the rest is not read, and sending it may fail.
            let sending = tokio::spawn(async move {
                let _ = sink.send(Message::binary(vec![b'x'; size])).await;
                sink
            });
            let error: Value = serde_json::from_str(hear(&mut messages).await.to_text().unwrap()).unwrap();
            assert_eq!((&error["type"], error["fatal"] == true), (&json!("error"), route == "pty"));
            assert!(error["data"].as_str().unwrap().contains(&limit.to_string()), "{error}");
            let close = hear(&mut messages).await;
            assert!(
                matches!(&close, Message::Close(Some(frame)) if u16::from(frame.code) == 1009),
                "{close}"
            );
            drop(sending.await.unwrap());
        }
    }
    let mut socket = Socket::open(&server, &format!("{base}/exec/stream"), Some(&server.key)).await;
    socket.say(json!({"type": "start", "cmd": "wait"})).await;
    socket.text().await;
    socket.0.send(Message::binary(vec![b'x'; limit])).await.unwrap();
    socket.say(json!({"type": "stop"})).await;
    assert_eq!(socket.text().await, json!({"type": "exit", "exit_code": -1}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_capsule_refuses_every_stream_in_words_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let id = server.capsule().await;
    assert_eq!(server.act(&id, "pause").await.0, 200);
    for route in ["exec/stream", "processes/1/stream", "pty"] {
        let path = format!("/v1/capsules/{id}/{route}");
        let mut socket = Socket::open(&server, &path, Some(&server.key)).await;
        if !route.starts_with("processes") {
            socket.say(json!({"type": "start", "cmd": "echo"})).await;
        }
        let error = socket.text().await;
        assert_eq!(error["type"], "error", "{route}: {error}");
        assert!(error["data"].as_str().unwrap().contains("paused"), "{route}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_a_socket_in_the_handshake_the_address_or_the_first_message_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let ada = server.owner("Ada").await;
    let root = server.administrator().await;
    let create = async |by: &crate::support::people::Person, path: &str| {
        let (status, made) = server.send_by(by, reqwest::Method::POST, path, &json!({})).await;
        assert_eq!(status, 201, "{made}");
        format!("{path}/{}/exec/stream", made["id"].as_str().unwrap())
    };
    let path = create(&ada, "/v1/capsules").await;
    let admins = create(&root, "/v1/admin/capsules").await;
    let start = json!({"type": "start", "cmd": "cut"});
    let auth = |token: &str| json!({"type": "auth", "token": token});

    let mut by_address = Socket::open(&server, &format!("{path}?token={}", ada.token), None).await;
    by_address.say(start.clone()).await;
    assert_eq!(by_address.text().await["type"], "start");
    // A bad key falls through to what comes first.
    let mut by_message = Socket::open(&server, &path, Some("wrn_bad")).await;
    by_message.say(auth(&ada.token)).await;
    by_message.say(start.clone()).await;
    assert_eq!(by_message.text().await["type"], "start");
    let mut of_platform = Socket::open(&server, &admins, None).await;
    of_platform.say(auth(&root.token)).await;
    of_platform.say(start.clone()).await;
    assert_eq!(of_platform.text().await["type"], "start");

    for (path, first) in [
        (&path, auth("garbage")),
        (&path, auth("")),
        (&path, start.clone()),
        (&admins, auth(&ada.token)),
        (&path, json!("auth")),
    ] {
        let mut socket = Socket::open(&server, path, None).await;
        socket.say(first).await;
        assert_eq!(socket.text().await, json!({"type": "error", "data": "authentication failed"}));
        socket.closed(1008).await;
    }
    // A key is nobody, where a person is asked for; somebody else's capsule is unknown.
    let mut keyed = Socket::open(&server, &admins, Some(&server.key)).await;
    keyed.say(start.clone()).await;
    assert_eq!(keyed.text().await["data"], "authentication failed");
    let eve = server.owner("Eve").await;
    let mut foreign = Socket::open(&server, &format!("{path}?token={}", eve.token), None).await;
    foreign.say(start).await;
    assert!(foreign.text().await["data"].as_str().unwrap().contains("there is no capsule"));
    // In the address a token is good for sockets only.
    let plain = server.http.get(server.url(&format!("/v1/capsules?token={}", ada.token)));
    assert_eq!(crate::support::answer(plain).await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_socket_ends_with_the_right_to_it_fake_agent() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let owner = server.owner("Ada").await;
    let member = server.person("Zoe", owner.team, "member").await;
    let (status, made) = server.send_by(&owner, reqwest::Method::POST, "/v1/capsules", &json!({})).await;
    assert_eq!(status, 201, "{made}");
    let path = format!("/v1/capsules/{}/exec/stream", made["id"].as_str().unwrap());
    let open = async |token: &str| {
        let mut socket = Socket::open(&server, &format!("{path}?token={token}"), None).await;
        socket.say(json!({"type": "start", "cmd": "wait"})).await;
        assert_eq!(socket.text().await["type"], "start");
        socket
    };
    let (mut theirs, mut owners) = (open(&member.token).await, open(&owner.token).await);
    let membership = format!("/v1/teams/{}/members/{}", owner.team, member.id);
    let removed = crate::support::answer(server.by(&owner, reqwest::Method::DELETE, &membership)).await;
    assert_eq!(removed.0, 204);
    assert_eq!(theirs.text().await, json!({"type": "error", "data": "authentication failed"}));
    theirs.closed(1008).await;
    owners.say(json!({"type": "stop"})).await;
    assert_eq!(owners.text().await["type"], "exit");
}
