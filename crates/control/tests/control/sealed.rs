//! Secrets at rest, and their rotation.

use std::time::Duration;

use serde_json::json;
use wrenn_control::admin;
use wrenn_control::vault::{SecretKey, SecretKeys};

use crate::support::mail::MailServer;
use crate::support::{Server, answer};

fn key(byte: u8) -> SecretKey {
    hex::encode([byte; 32]).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_outlive_the_rotation_of_their_key_and_not_its_loss() {
    let mut mail = MailServer::start().await;
    mail.stop().await;
    let config = mail.config();
    let server = Server::configured(Duration::ZERO, |control| control.smtp = Some(config)).await;
    let body = json!({"email": "ada@example.com", "password": "correct horse", "name": "Ada"});
    let signup = server.http.post(server.url("/v1/auth/signup")).json(&body);
    assert_eq!(answer(signup).await.0, 201);
    let keys = |current: u8, old: &[u8]| SecretKeys {
        current: key(current),
        old: old.iter().map(|&b| key(b)).collect(),
    };
    // The server of these tests seals with 07.
    assert_eq!(admin::reseal(&server.store, &keys(7, &[])).await.unwrap(), 0);
    let lost = admin::reseal(&server.store, &keys(8, &[])).await.unwrap_err();
    assert!(lost.to_string().contains("none of the secrets keys"), "{lost}");
    assert_eq!(admin::reseal(&server.store, &keys(8, &[9, 7])).await.unwrap(), 1);
    assert_eq!(admin::reseal(&server.store, &keys(8, &[])).await.unwrap(), 0);
    assert!(admin::reseal(&server.store, &keys(7, &[])).await.is_err());
}
