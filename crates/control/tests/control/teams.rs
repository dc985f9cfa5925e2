//! Teams, their members, and what goes with a team.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use wrenn_core::UserId;

use crate::support::mail::MailServer;
use crate::support::people::Person;
use crate::support::{PATIENCE, Server, answer, refused};

fn member(person: &Person, user: &Person) -> String {
    format!("/v1/teams/{}/members/{}", person.team, user.id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_is_made_entered_renamed_and_left_alone_by_those_outside() {
    let server = Server::start(Duration::ZERO).await;
    let ada = server.owner("Ada").await;
    let (status, made) =
        server.send_by(&ada, Method::POST, "/v1/teams", &json!({"name": " Lab 'one' "})).await;
    assert_eq!((status.as_u16(), &made["name"], &made["role"]), (201, &json!("Lab 'one'"), &json!("owner")));
    let slug = made["slug"].as_str().unwrap();
    assert!(slug.len() == 13 && slug.as_bytes()[6] == b'-', "{slug}");
    let team = made["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/teams/{team}");
    let elsewhere = refused(server.get_by(&ada, &path).await, 403, "forbidden");
    assert!(elsewhere.contains("switch"), "{elsewhere}");

    let switch = async |person: &Person, team: &str| {
        server.send_by(person, Method::POST, "/v1/auth/switch-team", &json!({"team_id": team})).await
    };
    let (status, auth) = switch(&ada, &team).await;
    assert_eq!((status.as_u16(), &auth["team_id"]), (200, &json!(team)));
    let lab = Person { token: auth["token"].as_str().unwrap().to_owned(), ..ada.of(team.parse().unwrap()) };
    let (_, shown) = server.get_by(&lab, &path).await;
    assert_eq!((&shown["team"]["slug"], shown["members"].as_array().unwrap().len()), (&json!(slug), 1));
    assert_eq!(server.send_by(&lab, Method::PATCH, &path, &json!({"name": "Lab 2"})).await.0, 204);
    let (_, log) = server.get_by(&lab, "/v1/audit-logs").await;
    assert_eq!(log["items"][0]["metadata"], json!({"old_name": "Lab 'one'", "new_name": "Lab 2"}));
    let (_, teams) = server.get_by(&ada, "/v1/teams").await;
    assert_eq!((&teams[0]["name"], &teams[1]["name"]), (&json!("Ada"), &json!("Lab 2")));

    let eve = server.owner("Eve").await;
    refused(switch(&eve, &team).await, 403, "forbidden");
    refused(switch(&eve, &wrenn_core::TeamId::random().to_string()).await, 404, "not_found");
    assert!(refused(switch(&eve, "team-x").await, 400, "invalid_request").contains("team_id"));
    // A token that claims the team is no key to it.
    refused(server.get_by(&eve.of(lab.team), &path).await, 403, "forbidden");
    refused(server.get_by(&eve.of(lab.team), "/v1/capsules").await, 403, "no_team");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_by_address_change_roles_and_go_and_the_owner_is_safe() {
    let mail = MailServer::start().await;
    let config = mail.config();
    let server = Server::configured(Duration::ZERO, |control| control.smtp = Some(config)).await;
    let owner = server.owner("Ada").await;
    let (bob, zoe) = (server.owner("Bob").await, server.owner("Zoe").await);
    let members = format!("/v1/teams/{}/members", owner.team);
    let add = async |by: &Person, email: &str| {
        server.send_by(by, Method::POST, &members, &json!({"email": email})).await
    };
    let (status, added) = add(&owner, &bob.email.to_uppercase()).await;
    assert_eq!((status.as_u16(), &added["role"], &added["user_id"]), (201, &json!("member"), &json!(bob.id)));
    let letter = mail.letter(&bob.email, "Ada").await;
    assert!(letter["text"].as_str().unwrap().contains("Ada"));
    assert!(refused(add(&owner, &bob.email).await, 400, "invalid_request").contains("already"));
    refused(add(&owner, "nobody@example.com").await, 404, "not_found");

    let bob_here = bob.of(owner.team);
    refused(add(&bob_here, &zoe.email).await, 403, "forbidden");
    let role = async |by: &Person, whom: &Person, role: &str| {
        server.send_by(by, Method::PATCH, &member(by, whom), &json!({"role": role})).await
    };
    assert_eq!(role(&owner, &bob, "admin").await.0, 204);
    // The token is the same; what it may do has changed with the database.
    assert_eq!(add(&bob_here, &zoe.email).await.0, 201);
    refused(role(&bob_here, &owner, "member").await, 403, "forbidden");
    refused(
        server.send_by(&bob_here, Method::DELETE, &member(&owner, &owner), &json!({})).await,
        403,
        "forbidden",
    );
    for bad in ["owner", "", "Admin"] {
        assert!(refused(role(&owner, &zoe, bad).await, 400, "invalid_request").contains("role"), "{bad}");
    }
    let stranger = Person { id: UserId::random(), ..zoe.clone() };
    refused(role(&owner, &stranger, "admin").await, 404, "not_found");

    let leave = format!("/v1/teams/{}/leave", owner.team);
    refused(answer(server.by(&owner, Method::POST, &leave)).await, 403, "forbidden");
    assert_eq!(answer(server.by(&zoe.of(owner.team), Method::POST, &leave)).await.0, 204);
    assert_eq!(answer(server.by(&owner, Method::DELETE, &member(&owner, &bob))).await.0, 204);
    refused(answer(server.by(&owner, Method::DELETE, &member(&owner, &bob))).await, 404, "not_found");
    refused(server.get_by(&bob_here, &members).await, 403, "forbidden");
    let (_, left) = server.get_by(&owner, &members).await;
    assert_eq!(left.as_array().unwrap().len(), 1);
    let deeds = server.deeds(&owner).await;
    let expected = [
        "member.remove.warning.user",
        "member.leave.info.user",
        "member.add.success.user",
        "member.role_update.info.user",
        "member.add.success.user",
    ];
    assert_eq!(deeds[..5], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_team_takes_everything_along_fake_agent() {
    let (server, agent) = Server::with_agent(PATIENCE).await;
    let ada = server.owner("Ada").await;
    let bob = server.person("Bob", ada.team, "admin").await;
    let key = server.send_by(&bob, Method::POST, "/v1/api-keys", &json!({"name": "ci"})).await.1;
    let with_key = || {
        let request = server.http.get(server.url("/v1/capsules"));
        request.header("x-api-key", key["key"].as_str().unwrap())
    };
    let (status, capsule) = server.send_by(&bob, Method::POST, "/v1/capsules", &json!({})).await;
    assert_eq!(status, 201, "{capsule}");
    let id = capsule["id"].as_str().unwrap();
    let snapshot = json!({"sandbox_id": id, "name": "mine"});
    assert_eq!(server.send_by(&bob, Method::POST, "/v1/snapshots", &snapshot).await.0, 201);
    assert_eq!(answer(with_key()).await.1.as_array().unwrap().len(), 1);

    let path = format!("/v1/teams/{}", ada.team);
    refused(answer(server.by(&bob, Method::DELETE, &path)).await, 403, "forbidden");
    assert_eq!(answer(server.by(&ada, Method::DELETE, &path)).await.0, 204);
    refused(answer(with_key()).await, 401, "unauthorized");
    refused(server.get_by(&ada, &path).await, 404, "not_found");
    refused(server.get_by(&ada, "/v1/capsules").await, 403, "no_team");
    assert_eq!(server.get_by(&ada, "/v1/teams").await.1, json!([]));
    let gone = async {
        while server.number("select count(*) from capsules where status <> 'stopped'").await > 0
            || !agent.world.templates.lock().unwrap().is_empty()
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert_eq!(server.number("select count(*) from template_deletions").await, 0);
    let root = server.administrator().await;
    let (_, log) = server.get_by(&root, "/v1/admin/audit-logs?action=delete").await;
    assert_eq!(
        (&log["items"][0]["resource_id"], &log["items"][0]["actor_name"]),
        (&json!(ada.team), &json!("Ada"))
    );
    let (_, teams) = server.get_by(&root, "/v1/admin/teams").await;
    let last = teams["teams"].as_array().unwrap().last().unwrap();
    assert!(last["id"] == json!(ada.team) && last["deleted_at"].is_string(), "{teams}");
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_found_by_the_beginning_of_their_address_taken_literally() {
    let server = Server::start(Duration::ZERO).await;
    let ada = server.owner("Ada").await;
    for (index, email) in ["a_b@x.org", "a%b@x.org", "acb@x.org", "a_b@x.net"].iter().enumerate() {
        let id = UserId::random().uuid();
        let status = if index == 3 { "disabled" } else { "active" };
        server
            .sql(format!(
                "insert into users (id, email, name, status) values ('{id}', '{email}', 'x', '{status}')"
            ))
            .await;
    }
    for n in 0..12 {
        let id = UserId::random().uuid();
        server
            .sql(format!("insert into users (id, email, name, status) values ('{id}', 'many@{n:02}.org', 'x', 'active')"))
            .await;
    }
    let search = async |prefix: &str| {
        let prefix = percent_encoding::utf8_percent_encode(prefix, percent_encoding::NON_ALPHANUMERIC);
        server.get_by(&ada, &format!("/v1/users/search?email={prefix}")).await
    };
    let found = async |prefix: &str| {
        let (status, users) = search(prefix).await;
        assert_eq!(status, 200, "{users}");
        let email = |user: &Value| user["email"].as_str().unwrap().to_owned();
        users.as_array().unwrap().iter().map(email).collect::<Vec<_>>()
    };
    assert_eq!(found("a_b@").await, ["a_b@x.org"]);
    assert_eq!(found(" A%B@X").await, ["a%b@x.org"]);
    assert_eq!(found("%%@").await, [""; 0]);
    let many = found("many@").await;
    assert_eq!((many.len(), many[0].as_str(), many[9].as_str()), (10, "many@00.org", "many@09.org"));
    for bad in ["", "a@", "abc", "a_b", "ab@\0"] {
        assert!(refused(search(bad).await, 400, "invalid_request").contains("email"), "{bad}");
    }
}
