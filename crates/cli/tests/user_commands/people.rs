//! What people do after they have signed in, against a stub that acts out the API.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::people_stub::{PASSWORD, PeopleStub, key, team, user};
use crate::stub::wrenn;
use crate::{on_terminal, stderr, stdout};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn signing_in_is_remembered_for_the_owner_alone_until_signing_out_against_a_stub_server() {
    let stub = PeopleStub::start();
    let silent = stub.run(&["login", "--email", "a@b.c"]);
    assert!(stderr(&silent).contains("standard input ended before an answer"), "{}", stderr(&silent));
    let refused = stub.login("wrong");
    assert_eq!(
        (refused.status.code(), stderr(&refused).as_str()),
        (Some(1), "error: because (unauthorized)\n")
    );
    let nobody = stub.run(&["whoami"]);
    assert_eq!(
        stderr(&nobody),
        format!(
            "error: this needs a person, and nobody is signed in to {}\nhint: sign in with `wrenn login`; --base-url or WRENN_BASE_URL names another deployment\n",
            stub.base_url()
        )
    );

    let done = stub.login(PASSWORD);
    assert_eq!(
        stdout(&done),
        format!("Signed in to {} as a@b.c for 5 more hours.\n", stub.base_url()),
        "{}",
        stderr(&done)
    );
    let file = stub.home.path().join(".config/wrenn/credentials.json");
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    let me = stdout(&stub.run(&["whoami"]));
    assert!(me.contains("Ada <a@b.c>") && me.contains("Red (000001-abcdef), owner"), "{me}");
    assert_eq!(stub.json(&["whoami"])["base_url"], stub.base_url());

    assert_eq!(stdout(&stub.run(&["logout"])), format!("Signed out of {}.\n", stub.base_url()));
    assert_eq!(stub.run(&["whoami"]).status.code(), Some(1));
    assert_eq!(stub.run(&["logout"]).status.code(), Some(0));
    assert!(!fs::read_to_string(file).unwrap().contains("token"));
}

#[test]
fn the_credentials_file_has_the_name_of_the_environment_against_a_stub_server() {
    let stub = PeopleStub::start();
    let file = stub.home.path().join("elsewhere");
    let password = stub.home.path().join("password");
    fs::write(&password, PASSWORD).unwrap();
    let mut login = stub.command(&["login", "--email", "a@b.c", "--json"]);
    login.env("WRENN_CREDENTIALS", &file).env("WRENN_API_KEY", "k");
    let output = login.stdin(fs::File::open(password).unwrap()).output().unwrap();
    assert!(output.status.success() && stderr(&output).contains("still goes first"), "{}", stderr(&output));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let output = stub.command(&["whoami"]).env("WRENN_CREDENTIALS", &file).output().unwrap();
    assert!(stderr(&output).starts_with("warning: others could read "), "{}", stderr(&output));
    assert_eq!((output.status.code(), mode(&file)), (Some(0), 0o600));
}

/// Reads until `wanted` has appeared.
fn expect(from: &mut impl Read, wanted: &str) -> String {
    let mut seen = String::new();
    let mut byte = [0; 1];
    while !seen.contains(wanted) {
        from.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {seen:?}"));
        seen.push(char::from(byte[0]));
    }
    seen
}

fn echoes(terminal: impl AsFd) -> bool {
    rustix::termios::tcgetattr(terminal).unwrap().local_modes.contains(rustix::termios::LocalModes::ECHO)
}

#[test]
fn a_password_is_asked_for_on_the_terminal_and_does_not_appear_against_a_stub_server() {
    let stub = PeopleStub::start();
    let (mut child, master) = on_terminal(stub.command(&["login"]), (80, 24));
    let mut terminal = fs::File::from(master);
    let mut questions = child.stderr.take().unwrap();
    expect(&mut questions, "E-mail for ");
    terminal.write_all(b"a@b.c\n").unwrap();
    expect(&mut questions, "Password: ");
    assert!(!echoes(&terminal));
    terminal.write_all(format!("{PASSWORD}\n").as_bytes()).unwrap();
    let seen = expect(&mut terminal, "more hours.");
    assert!(seen.starts_with("a@b.c") && !seen.contains("horse"), "{seen:?}");
    assert!(child.wait().unwrap().success());
    assert!(echoes(&terminal));
}

#[test]
fn an_interrupted_question_leaves_the_terminal_as_it_was_against_a_stub_server() {
    let stub = PeopleStub::start();
    let (mut child, master) = on_terminal(stub.command(&["login", "--email", "a@b.c"]), (80, 24));
    let mut terminal = fs::File::from(master);
    expect(child.stderr.as_mut().unwrap(), "Password: ");
    terminal.write_all(b"half\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(echoes(&terminal));
}

#[test]
fn a_sign_in_that_has_expired_is_told_and_not_replaced_by_a_key_against_a_stub_server() {
    let stub = PeopleStub::start();
    stub.let_tokens_last(-1);
    assert!(stub.login(PASSWORD).status.success());
    for args in [&["teams", "ls"][..], &["capsule", "ls"], &["keys", "ls"]] {
        let output = stub.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            stderr(&output).starts_with("error: your sign-in has expired; run `wrenn login`\n"),
            "{}",
            stderr(&output)
        );
    }
    assert!(stub.asked().is_empty());
    let by_key = stub.command(&["capsule", "ls", "--json"]).env("WRENN_API_KEY", "k").output().unwrap();
    assert!(by_key.status.success());
}

#[test]
fn keys_go_through_the_api_for_whoever_is_signed_in_against_a_stub_server() {
    let stub = PeopleStub::signed_in();
    // A key could not do it, so that one at hand is no hindrance.
    let made = stub.command(&["keys", "create", "ci"]).env("WRENN_API_KEY", "k").output().unwrap();
    assert_eq!(stdout(&made), "wrn_secret\n", "{}", stderr(&made));
    assert!(stdout(&stub.run(&["keys", "ls"])).contains("wrn_012345…"));
    assert_eq!(stub.json(&["keys", "rm", &key()]), json!({"revoked": key()}));
    let wanted = ["POST /v1/api-keys {\"name\":\"ci\"}", "GET /v1/api-keys"];
    assert_eq!(stub.asked(), [wanted[0], wanted[1], &format!("DELETE /v1/api-keys/{}", key())]);

    let mut local = stub.command(&["keys", "--local", "ls"]);
    local.env("DATABASE_URL", "postgres://x@127.0.0.1:1/x");
    let output = local.output().unwrap();
    assert!(stderr(&output).contains("cannot reach the database"), "{}", stderr(&output));
    assert!(stub.asked().is_empty());
}

#[test]
fn keys_of_another_deployment_are_not_looked_for_on_this_machine_against_a_stub_server() {
    let stub = PeopleStub::start();
    let output = stub.run(&["keys", "ls"]);
    assert!(stderr(&output).contains("nobody is signed in to"), "{}", stderr(&output));
    let own = wrenn(&["keys", "ls"]).env("DATABASE_URL", "postgres://x@127.0.0.1:1/x").output().unwrap();
    assert!(stderr(&own).contains("cannot reach the database"), "{}", stderr(&own));
}

#[test]
fn teams_are_named_by_id_slug_or_name_and_switched_for_good_against_a_stub_server() {
    let stub = PeopleStub::signed_in();
    let list = stdout(&stub.run(&["teams", "ls"]));
    assert!(list.lines().nth(1).unwrap().starts_with("*   Red"), "{list}");
    assert_eq!(stdout(&stub.run(&["teams", "create", "New"])), format!("{}\n", team(4)));
    let several = stub.run(&["teams", "switch", "Blue"]);
    assert!(stderr(&several).contains("name one by its slug: 000002-abcdef, 000003-abcdef"));
    assert!(
        stderr(&stub.run(&["teams", "show", "Green"])).contains("no team has the id, the slug or the name")
    );

    // Another team is worked in for one command.
    assert_eq!(stub.json(&["teams", "show", "000002-abcdef"])["team"]["name"], "Blue");
    assert_eq!(stub.json(&["whoami"])["team_id"], team(1));
    assert_eq!(stub.json(&["teams", "switch", "000002-abcdef"]), json!({"team_id": team(2)}));
    assert_eq!(stub.json(&["whoami"])["team_id"], team(2));
    assert_eq!(stub.json(&["teams", "rename", &team(1), "Rot"]), json!({"renamed": team(1)}));
    stub.asked();

    let unasked = stub.run(&["teams", "rm", &team(2)]);
    assert!(stderr(&unasked).contains("hint: give --yes if it may"), "{}", stderr(&unasked));
    assert!(stub.asked().is_empty());
    let removed = stub.run(&["teams", "rm", &team(2), "--yes"]);
    assert_eq!(stdout(&removed), format!("{}\n", team(2)));
    assert_eq!(stderr(&removed), "You are in the team Red now.\n");
    assert_eq!(stub.json(&["whoami"])["team_id"], team(1));
    assert_eq!(stub.json(&["teams", "leave", "Blue"]), json!({"left": team(3)}));
}

#[test]
fn deleting_asks_on_a_terminal_against_a_stub_server() {
    let stub = PeopleStub::signed_in();
    for (reply, code) in [("n\n", 1), ("y\n", 0)] {
        let (mut child, master) = on_terminal(stub.command(&["teams", "rm", &team(1)]), (80, 24));
        let mut terminal = fs::File::from(master);
        expect(child.stderr.as_mut().unwrap(), "[y/N] ");
        terminal.write_all(reply.as_bytes()).unwrap();
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(code));
        let deleted = stub.asked().contains(&format!("DELETE /v1/teams/{}", team(1)));
        assert_eq!(deleted, code == 0);
    }
}

#[test]
fn members_are_named_by_address_or_id_against_a_stub_server() {
    let stub = PeopleStub::signed_in();
    assert!(stdout(&stub.run(&["teams", "members"])).contains("m2@b.c"));
    assert_eq!(stub.json(&["teams", "add", "m3@b.c"])["user_id"], user(3));
    assert_eq!(
        stub.json(&["teams", "role", "M2@b.c", "admin"]),
        json!({"user_id": user(2), "role": "admin"})
    );
    assert_eq!(stub.json(&["teams", "remove", &user(2)]), json!({"removed": user(2)}));
    let asked = stub.asked();
    assert!(asked.contains(&format!(
        "PATCH /v1/teams/{}/members/{} {{\"role\":\"admin\"}}",
        team(1),
        user(2)
    )));
    assert_eq!(asked.last().unwrap(), &format!("DELETE /v1/teams/{}/members/{}", team(1), user(2)));

    let unknown = stub.run(&["teams", "add", "nobody@b.c"]);
    assert_eq!(stderr(&unknown), "error: because (not_found)\n");
    assert!(stderr(&stub.run(&["teams", "remove", "m9@b.c"])).contains("no member has the address `m9@b.c`"));
    assert_eq!(stub.run(&["teams", "role", "m2@b.c", "owner"]).status.code(), Some(2));
}

#[test]
fn the_audit_log_is_followed_to_its_end_against_a_stub_server() {
    let stub = PeopleStub::signed_in();
    let ids = |args: &[&str]| -> Vec<String> {
        let entries = stub.json(args);
        entries.as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&["audit", "--all"]), ["log-5", "log-4", "log-3", "log-2", "log-1"]);
    assert_eq!(ids(&["audit", "--limit", "3"]), ["log-5", "log-4", "log-3"]);
    assert_eq!(ids(&["admin", "audit", "--limit", "1"]), ["log-5"]);
    assert!(stdout(&stub.run(&["audit"])).contains("sandbox create"));
    stub.asked();
    stub.run(&["audit", "--limit=1", "--resource-type=team", "--resource-type=member", "--action=add"]);
    assert_eq!(
        stub.asked(),
        ["GET /v1/audit-logs?limit=1&resource_type=team&resource_type=member&action=add"]
    );
    assert_eq!(stub.run(&["audit", "--before", "yesterday"]).status.code(), Some(2));
}

#[test]
fn the_platform_is_run_by_commands_against_a_stub_server() {
    let stub = PeopleStub::signed_in();
    let first = stub.run(&["admin", "users", "ls"]);
    assert!(stdout(&first).contains("m1@b.c"), "{}", stderr(&first));
    assert_eq!(stderr(&first), "page 1 of 2 (2 in all); --page 2 shows the next\n");
    assert_eq!(stub.json(&["admin", "users", "ls", "--page", "2"])["items"][0]["id"], user(2));
    stub.asked();
    for (action, done, call) in [
        ("activate", "activated", "active {\"active\":true}"),
        ("deactivate", "deactivated", "active {\"active\":false}"),
        ("grant", "granted", "admin {\"admin\":true}"),
        ("revoke", "revoked", "admin {\"admin\":false}"),
    ] {
        assert_eq!(stub.json(&["admin", "users", action, "m2@b.c"]), json!({ done: user(2) }));
        assert_eq!(stub.asked().last().unwrap(), &format!("PUT /v1/admin/users/{}/{call}", user(2)));
    }
    assert!(stderr(&stub.run(&["admin", "users", "grant", "m9@b.c"])).contains("no user has the address"));

    assert!(stdout(&stub.run(&["admin", "teams", "ls"])).contains("a@b.c"));
    assert_eq!(stub.json(&["admin", "teams", "byoc", "Red"]), json!({"enabled": team(1)}));
    assert_eq!(stub.run(&["admin", "teams", "rm", "000001-abcdef"]).status.code(), Some(1));
    assert_eq!(stub.json(&["admin", "teams", "rm", "-y", "000001-abcdef"]), json!({"deleted": team(1)}));
    assert_eq!(stub.asked().last().unwrap(), &format!("DELETE /v1/admin/teams/{}", team(1)));

    assert!(stdout(&stub.run(&["admin", "templates", "ls"])).contains("platform"));
    let removed = stub.run(&["admin", "templates", "rm", "mine", "minimal"]);
    assert_eq!((removed.status.code(), stdout(&removed).as_str()), (Some(1), "mine\n"));
    assert!(stderr(&removed).contains("cannot delete minimal"), "{}", stderr(&removed));
}
