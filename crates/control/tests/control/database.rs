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

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_waits_for_a_lock_or_stands_still_is_503_and_comes_back() {
    let server = Server::start_alone(Duration::ZERO).await;
    let ada = server.owner("Ada").await;
    let id = ada.id.uuid();
    let lock = tokio::spawn({
        let url = server.database_url().to_owned();
        async move {
            use sqlx::Connection;
            let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
            let held =
                format!("begin; update users set name = name where id = '{id}'; select pg_sleep(14); commit");
            sqlx::raw_sql(sqlx::AssertSqlSafe(held)).execute(&mut connection).await.unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Readers go on; a writer of the locked row gives up before its client does.
    assert_eq!(server.get_by(&ada, "/v1/me").await.0, 200);
    let (status, body) =
        server.send_by(&ada, reqwest::Method::PATCH, "/v1/me", &json!({"name": "Eve"})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (503, &json!("host_unavailable")), "{body}");
    lock.await.unwrap();
    assert_eq!(server.send_by(&ada, reqwest::Method::PATCH, "/v1/me", &json!({"name": "Eve"})).await.0, 200);

    let database = server.database.as_ref().unwrap();
    database.freeze();
    let (status, body) = server.get_by(&ada, "/v1/me").await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (503, &json!("host_unavailable")), "{body}");
    assert_eq!(server.get("/health").await.0, 200);
    database.thaw();
    let back = async {
        while server.get_by(&ada, "/v1/me").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_takes_no_more_connections_is_503_until_it_does() {
    let server = Server::start_alone(Duration::ZERO).await;
    let ada = server.owner("Ada").await;
    // No new connections, and those that there are end.
    server.sql_in("template1", "alter database postgres with allow_connections false").await;
    server
        .sql_in(
            "template1",
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'postgres'",
        )
        .await;
    let (status, body) = server.get_by(&ada, "/v1/me").await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (503, &json!("host_unavailable")), "{body}");
    server.sql_in("template1", "alter database postgres with allow_connections true").await;
    let back = async {
        while server.get_by(&ada, "/v1/me").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_are_broken_off_leave_nothing_to_those_that_follow() {
    let server = Server::start_alone(Duration::ZERO).await;
    let ada = server.owner("Ada").await;
    let held = tokio::spawn({
        let url = server.database_url().to_owned();
        async move {
            use sqlx::Connection;
            let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
            let held = "begin; lock table api_keys in access exclusive mode; select pg_sleep(3); commit";
            sqlx::raw_sql(held).execute(&mut connection).await.unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let waiting =
        (0..6).map(|_| tokio::time::timeout(Duration::from_millis(500), server.get_by(&ada, "/v1/api-keys")));
    for broken_off in futures::future::join_all(waiting).await {
        assert!(broken_off.is_err(), "the table is not locked");
    }
    for _ in 0..20 {
        let (status, me) = server.get_by(&ada, "/v1/me").await;
        assert_eq!((status.as_u16(), &me["email"]), (200, &json!(ada.email)), "{me}");
        let (status, teams) = server.get_by(&ada, "/v1/teams").await;
        assert_eq!((status.as_u16(), &teams[0]["id"]), (200, &json!(ada.team)), "{teams}");
    }
    held.await.unwrap();
    assert_eq!(server.get_by(&ada, "/v1/api-keys").await.0, 200);
}

/// What PostgreSQL answers to what no code should try.
#[tokio::test(flavor = "multi_thread")]
async fn the_schema_itself_keeps_out_what_must_not_be() {
    let server = Server::start(Duration::ZERO).await;
    let ada = server.owner("Ada").await;
    let bob = server.person("Bob", ada.team, "member").await;
    let (team, user) = (ada.team.uuid(), bob.id.uuid());
    let nil = uuid::Uuid::nil();
    for statement in [
        format!("update team_members set role = 'owner' where user_id = '{user}'"),
        format!("update team_members set role = 'king' where user_id = '{user}'"),
        format!("insert into team_members (team_id, user_id, role) values ('{nil}', '{user}', 'member')"),
        format!("update users set email = '{}' where id = '{user}'", ada.email),
        "update users set email = 'Upper@Example.com'".to_owned(),
        "update users set email = 'nobody'".to_owned(),
        "update users set name = ''".to_owned(),
        "update users set status = 'deleted'".to_owned(),
        "update users set status = 'asleep'".to_owned(),
        format!("update users set status = 'inactive', is_admin = true where id = '{user}'"),
        format!("update teams set slug = 'mine' where id = '{team}'"),
        format!("update teams set name = 'a/b' where id = '{team}'"),
        format!("update teams set deleted_at = now() where id = '{nil}'"),
        format!(
            "insert into audit_logs (id, team_id, actor_type, actor_name, resource_type, action, scope, status) \
             values (gen_random_uuid(), '{team}', 'system', 'x', 'team', 'rename', 'team', 'info')"
        ),
        "update api_keys set created_by = gen_random_uuid()".to_owned(),
        "insert into deployment values (true, null)".to_owned(),
    ] {
        assert!(server.try_sql(&statement).await.is_err(), "{statement}");
    }
}
