//! The documented example, as a program of one's own would run it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wrenn_control::ControlConfig;
use wrenn_control::vault::SecretKeys;

use crate::support::{JWT_SECRET, PATIENCE, Server, answer, refusal};

#[path = "../../examples/extended.rs"]
mod extended;

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_ones_own_adds_routes_that_know_their_callers() {
    let server = Server::start(Duration::ZERO).await;
    let pki = tempfile::tempdir().unwrap();
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let secrets = SecretKeys { current: "07".repeat(32).parse().unwrap(), old: Vec::new() };
    let config = ControlConfig::new(
        server.database_url().to_owned(),
        free,
        JWT_SECRET.to_owned(),
        secrets,
        pki.path().to_owned(),
    );
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(extended::serve(config, shutdown.clone()));
    let hello = format!("http://{free}/api/v1/hello");
    let up = async {
        while server.http.get(format!("http://{free}/health")).send().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, up).await.unwrap();
    assert_eq!(refusal(server.http.get(&hello)).await, (401, "unauthorized".to_owned()));
    let ada = server.owner("Ada").await;
    let said = server.http.get(&hello).bearer_auth(&ada.token).send().await.unwrap().text().await.unwrap();
    assert_eq!(said, format!("user calls for {}", ada.team));
    let said =
        server.http.get(&hello).header("x-api-key", &server.key).send().await.unwrap().text().await.unwrap();
    assert!(said.starts_with("api_key calls for team-"), "{said}");
    let own = server.http.get(format!("http://{free}/v1/capsules")).bearer_auth(&ada.token);
    assert_eq!(answer(own).await.0, 200);
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}
