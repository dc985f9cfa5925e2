//! What people do after they have signed in, against a stub that acts out the API.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::people_stub::{PASSWORD, PeopleStub, key};
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
    for args in [&["whoami"][..], &["capsule", "ls"], &["keys", "ls"]] {
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
