//! A lost database is a designed state.

use std::time::Duration;

use serde_json::json;

use crate::support::{PATIENCE, Server};

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_is_503_until_it_is_back() {
    let mut server = Server::start_alone(Duration::ZERO).await;
    assert_eq!(server.get("/v1/capsules").await.0, 200);
    server.database.as_mut().unwrap().stop();
    for _ in 0..2 {
        let (status, body) = server.get("/v1/capsules").await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (503, &json!("host_unavailable")), "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains("database"));
    }
    assert_eq!(server.get("/health").await.0, 200);
    server.database.as_mut().unwrap().resume().await;
    let back = async {
        while server.get("/v1/capsules").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.unwrap();
}
