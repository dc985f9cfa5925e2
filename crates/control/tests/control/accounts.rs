//! From signing up to being forgotten, with a real mail server.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use wrenn_control::AuthLimits;

use crate::support::mail::MailServer;
use crate::support::people::{Person, deeds};
use crate::support::{PATIENCE, Server, answer, refused};

const PASSWORD: &str = "correct horse";

async fn with_mail() -> (Server, MailServer) {
    let mail = MailServer::start().await;
    let config = mail.config();
    let server = Server::configured(Duration::ZERO, |control| {
        control.smtp = Some(config);
        control.dashboard_url = "https://wrenn.example".into();
    })
    .await;
    (server, mail)
}

fn person(auth: &Value) -> Person {
    let id = |field: &str| auth[field].as_str().unwrap();
    Person {
        id: id("user_id").parse().unwrap(),
        email: id("email").to_owned(),
        team: id("team_id").parse().unwrap(),
        token: id("token").to_owned(),
    }
}

async fn sign_up(server: &Server, mail: &MailServer, email: &str, name: &str) -> Person {
    let body = json!({"email": email, "password": PASSWORD, "name": name});
    let (status, message) = server.open_post("/v1/auth/signup", &body).await;
    assert_eq!(status, 201, "{message}");
    let token = mail.token(email, "Activate").await;
    let (status, auth) = server.open_post("/v1/auth/activate", &json!({"token": token})).await;
    assert_eq!(status, 200, "{auth}");
    person(&auth)
}

async fn login(server: &Server, email: &str, password: &str) -> (reqwest::StatusCode, Value) {
    server.open_post("/v1/auth/login", &json!({"email": email, "password": password})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_signs_up_by_mail_and_the_first_one_administers_the_platform() {
    let (server, mail) = with_mail().await;
    let body = json!({"email": " Ada@Example.COM ", "password": PASSWORD, "name": " Ada "});
    assert_eq!(server.open_post("/v1/auth/signup", &body).await.0, 201);
    refused(server.open_post("/v1/auth/signup", &body).await, 409, "signup_cooldown");
    refused(login(&server, "ada@example.com", PASSWORD).await, 403, "account_not_activated");
    refused(login(&server, "ada@example.com", "wrong wrong").await, 401, "unauthorized");

    let token = mail.token("ada@example.com", "Activate").await;
    let letter = mail.letter("ada@example.com", "Activate").await;
    assert!(
        letter["text"].as_str().unwrap().contains(&format!("https://wrenn.example/activate?token={token}"))
    );
    let activate = json!({"token": token});
    let (status, auth) = server.open_post("/v1/auth/activate", &activate).await;
    assert_eq!(
        (status.as_u16(), &auth["email"], &auth["name"]),
        (200, &json!("ada@example.com"), &json!("Ada"))
    );
    refused(server.open_post("/v1/auth/activate", &activate).await, 400, "invalid_token");
    refused(server.open_post("/v1/auth/signup", &body).await, 409, "email_taken");

    let ada = person(&auth);
    let (_, me) = server.get_by(&ada, "/v1/me").await;
    let expected = json!({
        "user_id": ada.id, "team_id": ada.team, "name": "Ada", "email": "ada@example.com", "role": "owner",
        "is_admin": true, "has_password": true, "providers": [],
    });
    assert_eq!(me, expected);
    let (_, teams) = server.get_by(&ada, "/v1/teams").await;
    assert_eq!((&teams[0]["name"], &teams[0]["role"]), (&json!("Ada's Team"), &json!("owner")));

    let bob = sign_up(&server, &mail, "bob@example.com", "Bob").await;
    assert_eq!(server.get_by(&bob, "/v1/me").await.1["is_admin"], false);
    let (status, auth) = login(&server, "BOB@example.com ", PASSWORD).await;
    assert_eq!((status.as_u16(), &auth["team_id"]), (200, &json!(bob.team)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_ends_after_half_an_hour_and_so_does_the_account_that_waits() {
    let (server, mail) = with_mail().await;
    let body = json!({"email": "ada@example.com", "password": PASSWORD, "name": "Ada"});
    assert_eq!(server.open_post("/v1/auth/signup", &body).await.0, 201);
    let token = mail.token("ada@example.com", "Activate").await;
    server.sql("update user_tokens set expires_at = now() - interval '1 second'").await;
    refused(server.open_post("/v1/auth/activate", &json!({"token": token})).await, 400, "invalid_token");
    server.sql("update users set created_at = now() - interval '31 minutes'").await;
    assert_eq!(server.open_post("/v1/auth/signup", &body).await.0, 201);
    server.sql("update users set status = 'active'").await;
    let again = async {
        loop {
            let newer = mail.token("ada@example.com", "Activate").await;
            if newer != token {
                return newer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let token = tokio::time::timeout(PATIENCE, again).await.unwrap();
    refused(server.open_post("/v1/auth/activate", &json!({"token": token})).await, 400, "already_activated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_changed_and_a_forgotten_one_is_replaced() {
    let (server, mail) = with_mail().await;
    let ada = sign_up(&server, &mail, "ada@example.com", "Ada").await;
    let change = |current: &str, new: &str| json!({"current_password": current, "new_password": new});
    let path = "/v1/me/password";
    let wrong = server.send_by(&ada, Method::POST, path, &change("wrong", "new password")).await;
    refused(wrong, 401, "wrong_password");
    let none = server.send_by(&ada, Method::POST, path, &json!({"new_password": "new password"})).await;
    assert!(refused(none, 400, "invalid_request").contains("current_password"));
    assert_eq!(server.send_by(&ada, Method::POST, path, &change(PASSWORD, "new password")).await.0, 204);
    mail.letter("ada@example.com", "changed").await;
    refused(login(&server, "ada@example.com", PASSWORD).await, 401, "unauthorized");
    assert_eq!(login(&server, "ada@example.com", "new password").await.0, 200);
    // Their sign-in goes on.
    assert_eq!(server.get_by(&ada, "/v1/me").await.0, 200);

    for email in ["nobody@example.com", "ada@example.com", "nonsense"] {
        assert_eq!(server.open_post("/v1/me/password/reset", &json!({"email": email})).await.0, 204);
    }
    let garbage = server.http.post(server.url("/v1/me/password/reset")).body("{").send().await.unwrap();
    assert_eq!(garbage.status(), 204);
    let token = mail.token("ada@example.com", "Reset").await;
    // A second passes, after which tokens of before are told from tokens of after.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let confirm = json!({"token": token, "new_password": "third password"});
    assert_eq!(server.open_post("/v1/me/password/reset/confirm", &confirm).await.0, 204);
    refused(server.open_post("/v1/me/password/reset/confirm", &confirm).await, 400, "invalid_token");
    refused(server.get_by(&ada, "/v1/me").await, 401, "unauthorized");
    let (status, auth) = login(&server, "ada@example.com", "third password").await;
    assert_eq!(status, 200, "{auth}");
    assert_eq!(server.get_by(&person(&auth), "/v1/me").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_link_ends_after_a_quarter_of_an_hour_and_goes_to_active_accounts_only() {
    let (server, mail) = with_mail().await;
    let ada = sign_up(&server, &mail, "ada@example.com", "Ada").await;
    server.open_post("/v1/me/password/reset", &json!({"email": "ada@example.com"})).await;
    let token = mail.token("ada@example.com", "Reset").await;
    server
        .sql("update user_tokens set expires_at = now() - interval '1 second' where purpose = 'reset'")
        .await;
    let confirm = json!({"token": token, "new_password": "third password"});
    refused(server.open_post("/v1/me/password/reset/confirm", &confirm).await, 400, "invalid_token");
    server.sql(format!("update users set status = 'disabled' where id = '{}'", ada.id.uuid())).await;
    let before = mail.count();
    server.open_post("/v1/me/password/reset", &json!({"email": "ada@example.com"})).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(mail.count(), before);
    refused(login(&server, "ada@example.com", PASSWORD).await, 403, "account_disabled");
    refused(server.get_by(&ada, "/v1/me").await, 403, "account_deactivated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_server_that_is_away_holds_nobody_up_and_loses_no_letter() {
    let (server, mut mail) = with_mail().await;
    mail.stop().await;
    let body = json!({"email": "ada@example.com", "password": PASSWORD, "name": "Ada"});
    assert_eq!(server.open_post("/v1/auth/signup", &body).await.0, 201);
    let waiting = async {
        while server.number("select count(*) from mails where attempts > 0").await == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    // What waits is sealed: neither the token nor the person's name can be read.
    let readable = "select count(*) from mails where letter like '%token%' or letter like '%Ada%'";
    assert_eq!(server.number(readable).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_mail_server_signing_up_works_and_an_administrator_activates() {
    let server = Server::start(Duration::ZERO).await;
    let root = server.administrator().await;
    let body = json!({"email": "ada@example.com", "password": PASSWORD, "name": "Ada"});
    assert_eq!(server.open_post("/v1/auth/signup", &body).await.0, 201);
    assert_eq!(server.number("select count(*) from mails").await, 0);
    let (_, page) = server.get_by(&root, "/v1/admin/users").await;
    let ada = &page["users"][0];
    assert_eq!((&ada["email"], &ada["status"]), (&json!("ada@example.com"), &json!("inactive")));
    let path = format!("/v1/admin/users/{}/active", ada["id"].as_str().unwrap());
    assert_eq!(server.send_by(&root, Method::PUT, &path, &json!({"active": true})).await.0, 204);
    let (status, auth) = login(&server, "ada@example.com", PASSWORD).await;
    assert_eq!(status, 200, "{auth}");
    let (_, teams) = server.get_by(&person(&auth), "/v1/teams").await;
    assert_eq!(teams[0]["name"], "Ada's Team");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_ends_with_its_teams_and_keys_and_is_purged_after_its_grace() {
    let (server, _agent) = Server::with_agent(PATIENCE).await;
    let root = server.administrator().await;
    let ada = server.owner("Ada").await;
    let joined = server.person("Zoe", ada.team, "member").await;
    let shared = refused(delete(&server, &ada, &ada.email).await, 409, "owns_team_with_members");
    assert!(shared.contains("remove them"), "{shared}");
    let no = refused(delete(&server, &ada, "other@example.com").await, 400, "invalid_request");
    assert!(no.contains("confirmation"), "{no}");

    let key = server.send_by(&joined, Method::POST, "/v1/api-keys", &json!({"name": "ci"})).await.1;
    let list =
        || server.http.get(server.url("/v1/capsules")).header("x-api-key", key["key"].as_str().unwrap());
    assert_eq!(answer(list()).await.0, 200);
    assert_eq!(delete(&server, &joined, &joined.email.to_uppercase()).await.0, 204);
    assert_eq!(answer(list()).await.0, 401);
    refused(server.get_by(&joined, "/v1/me").await, 403, "account_deactivated");
    assert_eq!(
        server.deeds(&ada).await,
        [
            "member.leave.info.user",
            "api_key.revoke.warning.user",
            "api_key.create.success.user",
            "api_key.create.success.system"
        ]
    );

    let (_, made) = server.send_by(&ada, Method::POST, "/v1/capsules", &json!({})).await;
    let id = made["id"].as_str().unwrap().to_owned();
    assert_eq!(delete(&server, &ada, &ada.email).await.0, 204);
    let gone = format!("select count(*) from capsules where status = 'stopped' and id = '{}'", uuid_of(&id));
    let stopped = async {
        while server.number(&gone).await == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stopped).await.unwrap();
    let (_, users) = server.get_by(&root, "/v1/admin/users").await;
    assert_eq!(users["total"], 1, "{users}");

    let left = "select count(*) from users where status = 'deleted'";
    assert_eq!(server.store.purge_user(15.0 * 86400.0).await.unwrap(), None);
    assert_eq!(server.number(left).await, 2);
    server.sql("update users set deleted_at = now() - interval '16 days' where status = 'deleted'").await;
    for _ in 0..2 {
        assert!(server.store.purge_user(15.0 * 86400.0).await.unwrap().is_some());
    }
    assert_eq!(server.number(left).await, 0);
    let named = format!(
        "select count(*) from audit_logs where actor_id in ('{0}', '{1}') or metadata ? 'email' \
         or resource_id like 'usr-%'",
        ada.id.uuid(),
        joined.id.uuid()
    );
    assert_eq!(server.number(&named).await, 0);
    let renamed = "select count(*) from audit_logs where actor_type = 'user' and actor_name = 'deleted-user'";
    assert!(server.number(renamed).await >= 4);
}

fn uuid_of(capsule: &str) -> uuid::Uuid {
    capsule.parse::<wrenn_core::CapsuleId>().unwrap().uuid()
}

async fn delete(server: &Server, person: &Person, confirmation: &str) -> (reqwest::StatusCode, Value) {
    server.send_by(person, Method::DELETE, "/v1/me", &json!({"confirmation": confirmation})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_administrator_stays() {
    let server = Server::start(Duration::ZERO).await;
    let root = server.administrator().await;
    server.owner("Ada").await;
    refused(delete(&server, &root, &root.email).await, 409, "conflict");
    server.sql("update users set status = 'disabled' where not is_admin").await;
    // Alone there is nobody who could miss them.
    assert_eq!(delete(&server, &root, &root.email).await.0, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_are_limited_per_account_and_requests_per_address() {
    let hour = Duration::from_secs(3600);
    let server = Server::configured(Duration::ZERO, |control| {
        control.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        control.auth_limits =
            AuthLimits { address_burst: 6, address_every: hour, account_burst: 3, account_every: hour };
    })
    .await;
    let attempt = async |from: &str, email: &str| {
        let body = json!({"email": email, "password": "wrong wrong"});
        let request =
            server.http.post(server.url("/v1/auth/login")).json(&body).header("x-forwarded-for", from);
        let response = request.send().await.unwrap();
        let wait = response.headers().contains_key("retry-after");
        (response.status().as_u16(), wait)
    };
    for _ in 0..3 {
        assert_eq!(attempt("10.0.0.1", "ada@example.com").await, (401, false));
    }
    assert_eq!(attempt("10.0.0.1", "ADA@example.com").await, (429, true));
    // Their own person, who is elsewhere, is not locked out by that; many together are stopped all the same.
    for n in 2..29 {
        assert_eq!(attempt(&format!("10.0.0.{n}"), "ada@example.com").await.0, 401, "{n}");
    }
    assert_eq!(attempt("10.0.0.30", "ada@example.com").await, (429, true));
    for n in 0..6 {
        assert_eq!(attempt("10.0.1.1", &format!("{n}@example.com")).await.0, 401);
    }
    assert_eq!(attempt("10.0.1.1", "other@example.com").await, (429, true));
    assert_eq!(attempt("10.0.1.2", "other@example.com").await.0, 401);
    let reset = server.http.post(server.url("/v1/me/password/reset")).header("x-forwarded-for", "10.0.1.1");
    assert_eq!(reset.send().await.unwrap().status(), 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_password_takes_the_wrong_ones_back() {
    let server = Server::configured(Duration::ZERO, |control| {
        control.auth_limits.account_burst = 3;
        control.auth_limits.account_every = Duration::from_secs(3600);
    })
    .await;
    let user = wrenn_control::admin::LocalUser {
        email: "ada@example.com".into(),
        name: "Ada".into(),
        password: PASSWORD.into(),
        admin: false,
    };
    wrenn_control::admin::create_user(&server.store, user.clone()).await.unwrap().unwrap();
    assert!(wrenn_control::admin::create_user(&server.store, user).await.unwrap().is_none());
    for _ in 0..2 {
        for _ in 0..2 {
            refused(login(&server, "ada@example.com", "wrong wrong").await, 401, "unauthorized");
        }
        assert_eq!(login(&server, "ada@example.com", PASSWORD).await.0, 200);
    }
    for _ in 0..3 {
        refused(login(&server, "ada@example.com", "wrong wrong").await, 401, "unauthorized");
    }
    refused(login(&server, "ada@example.com", PASSWORD).await, 429, "rate_limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_name_is_in_the_fresh_token_and_in_the_log() {
    let server = Server::start(Duration::ZERO).await;
    let ada = server.owner("Ada").await;
    let (status, auth) = server.send_by(&ada, Method::PATCH, "/v1/me", &json!({"name": " Countess "})).await;
    assert_eq!((status.as_u16(), &auth["name"]), (200, &json!("Countess")));
    let renamed = person(&auth);
    server.send_by(&renamed, Method::POST, "/v1/api-keys", &json!({})).await;
    let (_, page) = server.get_by(&ada, "/v1/audit-logs?limit=1").await;
    assert_eq!(deeds(&page), ["api_key.create.success.user"]);
    assert_eq!(page["items"][0]["actor_name"], "Countess");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_platform_takes_nobody_who_comes_by_themselves() {
    let server = Server::configured(Duration::ZERO, |control| control.signup = false).await;
    let body = json!({"email": "ada@example.com", "password": PASSWORD, "name": "Ada"});
    assert!(refused(server.open_post("/v1/auth/signup", &body).await, 403, "forbidden").contains("closed"));
    assert_eq!(server.number("select count(*) from users").await, 0);
}
