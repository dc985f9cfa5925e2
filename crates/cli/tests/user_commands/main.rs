//! The program as people run it, against a stub server: an in-process test double that speaks the wire format of the
//! API. What the platform itself does is tested end to end, elsewhere.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]
#![expect(unreachable_pub, reason = "a test binary has no outside")]

mod people;
mod people_stub;
mod stub;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::stub::{ID, Stub, wrenn};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn capsules_are_made_listed_and_destroyed_against_a_stub_server() {
    let stub = Stub::start();
    assert_eq!(stdout(&stub.run(&["capsule", "create"])), format!("{ID}\n"));
    assert_eq!(stdout(&stub.run(&["capsule", "ls", "-q"])), format!("{ID}\n"));
    assert!(stdout(&stub.run(&["capsule", "list"])).contains("running"));
    let all: Value = serde_json::from_slice(&stub.run(&["capsule", "ls", "--json"]).stdout).unwrap();
    assert_eq!(all[0]["id"], ID);
    assert_eq!(stdout(&stub.run(&["capsule", "rm", "6dfz"])), format!("{ID}\n"));
    let unknown = stub.run(&["capsule", "rm", "zz"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(stderr(&unknown), "error: no capsule's id begins with `zz`\n");
}

#[test]
fn capsules_are_paused_resumed_and_forked_against_a_stub_server() {
    let stub = Stub::start();
    assert_eq!(stdout(&stub.run(&["capsule", "pause", "6dfz"])), format!("{ID}\n"));
    let paused: Value = serde_json::from_slice(&stub.run(&["c", "pause", "--json", ID]).stdout).unwrap();
    assert_eq!(paused, json!({"paused": [ID]}));
    let refused = stub.run(&["capsule", "resume", ID]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).starts_with(&format!("error: cannot resume {ID}: because")),
        "{}",
        stderr(&refused)
    );
    let copies = stub.run(&["capsule", "fork", ID, "-n", "2", "-l", "a=b"]);
    assert_eq!(stdout(&copies), format!("{ID}\n{ID}\n"));
    assert_eq!(stub.run(&["capsule", "fork", ID, "-n", "101"]).status.code(), Some(2));
}

#[test]
fn templates_are_made_listed_and_deleted_against_a_stub_server() {
    let stub = Stub::start();
    assert_eq!(stdout(&stub.run(&["template", "create", "6d", "--name", "mine", "--overwrite"])), "mine\n");
    let taken = stub.run(&["template", "create", ID, "--name", "mine"]);
    assert_eq!((taken.status.code(), stderr(&taken).contains("(conflict)")), (Some(1), true));
    assert_eq!(stub.run(&["template", "create", ID, "--overwrite"]).status.code(), Some(2));
    assert_eq!(stdout(&stub.run(&["template", "ls", "-q"])), "mine\nminimal\n");
    assert_eq!(stdout(&stub.run(&["template", "ls", "-q", "--type", "base"])), "minimal\n");
    let all: Value = serde_json::from_slice(&stub.run(&["t", "ls", "--json"]).stdout).unwrap();
    assert_eq!((&all[0]["name"], &all[0]["type"]), (&json!("mine"), &json!("snapshot")));
    let removed = stub.run(&["template", "rm", "mine", "other"]);
    assert_eq!((removed.status.code(), stdout(&removed).as_str()), (Some(1), "mine\n"));
    assert!(
        stderr(&removed).contains("cannot delete other") && stderr(&removed).contains("wrenn template ls")
    );
}

#[test]
fn exec_passes_output_and_exit_code_through_against_a_stub_server() {
    let stub = Stub::start();
    let output = stub.run(&["capsule", "exec", ID, "-e", "A=b", "--", "echo", "-n", "--json"]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert_eq!(stdout(&output), "[\"-n\",\"--json\"]{\"A\":\"b\"}\n");
    assert_eq!(stderr(&output), "careful\n");

    let lines = stdout(&stub.run(&["capsule", "exec", "--json", "cl-6d", "echo"]));
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last, json!({"type": "exit", "exit_code": 7}));

    let exact = stub.run(&["capsule", "exec", "--exact", ID, "echo"]);
    assert_eq!((exact.stdout.as_slice(), exact.status.code()), (&[0xff, 0][..], Some(4)));
    assert_eq!(stdout(&stub.run(&["capsule", "exec", "-b", ID, "echo"])), "42 proc-1\n");

    let failed = stub.run(&["capsule", "exec", ID, "fail"]);
    assert_eq!((failed.status.code(), stderr(&failed).as_str()), (Some(125), "error: no such directory\n"));
}

#[test]
fn an_interrupt_stops_the_remote_command_against_a_stub_server() {
    let stub = Stub::start();
    let mut child = stub.command(&["capsule", "exec", ID, "wait"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_reader_that_goes_away_is_no_error_against_a_stub_server() {
    let stub = Stub::start();
    let mut child = stub
        .command(&["capsule", "ls", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn files_and_directories_travel_both_ways_against_a_stub_server() {
    let stub = Stub::start();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let large: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    fs::create_dir_all(at("tree/sub/empty")).unwrap();
    fs::write(at("tree/large"), &large).unwrap();
    fs::write(at("tree/sub/small"), "s").unwrap();
    let copy = |from: &str, to: &str| {
        let output = stub.run(&["capsule", "cp", "--json", from, to]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let summary = copy(&at("tree"), &format!("{ID}:/new"));
    assert_eq!(summary, json!({"files": 2, "directories": 3, "bytes": 3_000_001, "skipped": []}));
    assert_eq!(stub.file("/new/large").unwrap(), large);
    assert!(stub.file("/new/sub/empty/").is_some());

    // Again into what exists now: under its own name, or merged.
    copy(&at("tree"), &format!("{ID}:/new"));
    assert!(stub.file("/new/tree/sub/small").is_some());
    copy(&format!("{}/.", at("tree")), &format!("{ID}:/new"));
    assert!(stub.file("/new/tree/tree/large").is_none());

    stub.files.lock().unwrap().retain(|path, _| !path.starts_with("/new/tree"));
    copy(&format!("{ID}:/new"), &at("back"));
    assert_eq!(fs::read(at("back/large")).unwrap(), large);
    assert!(Path::new(&at("back/sub/empty")).is_dir());
    copy(&format!("{ID}:/new/sub/small"), &at("back"));
    assert_eq!(fs::read(at("back/small")).unwrap(), b"s");
    let left: Vec<_> = fs::read_dir(at("back")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().starts_with(".wrenn-")), "{left:?}");
}

#[test]
fn standard_streams_are_ends_of_a_copy_against_a_stub_server() {
    let stub = Stub::start();
    let to = format!("{ID}:/in");
    let mut child = stub.command(&["capsule", "cp", "-", &to]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"a\xff\0b").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(stub.file("/in").unwrap(), b"a\xff\0b");
    assert_eq!(stub.run(&["capsule", "cp", &to, "-"]).stdout, b"a\xff\0b");
}

#[test]
fn copies_that_would_destroy_or_escape_are_refused_against_a_stub_server() {
    let stub = Stub::start();
    for path in ["/d/", "/d/taken/", "/evil/"] {
        stub.put(path, b"");
    }
    stub.put("/file", b"x");
    stub.put("/evil/good", b"g");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("taken"), "t").unwrap();
    fs::create_dir(at("tree")).unwrap();
    let refused = |from: &str, to: &str, why: &str| {
        let output = stub.run(&["capsule", "cp", from, to]);
        assert_eq!(output.status.code(), Some(1), "{from} {to}");
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    };
    refused(&at("taken"), &format!("{ID}:/d"), "/d/taken in the capsule is a directory");
    refused(&at("tree"), &format!("{ID}:/file"), "is a file, and is not replaced");
    refused(&format!("{ID}:/none"), &at("x"), "there is no /none in the capsule");
    refused(&format!("{ID}:/d"), &at("taken"), "is a file, and is not replaced");
    refused(&at("none"), &format!("{ID}:/d"), "there is no ");
    refused("a:/x", "b:/y", "one side must be on this machine");
    refused("/etc/hostname", "/tmp/x", "one side must be in a capsule");

    refused(&format!("{ID}:/evil"), &at("out"), "skipped /evil/../escaped");
    assert_eq!(fs::read(at("out/good")).unwrap(), b"g");
    assert!(!Path::new(&at("escaped")).exists());
}

/// The program on a terminal of its own, of which this end is returned.
fn on_terminal(mut command: Command, size: (u16, u16)) -> (Child, OwnedFd) {
    let pty = nix::pty::openpty(&winsize(size), None).unwrap();
    for stream in [Command::stdin, Command::stdout] {
        stream(&mut command, Stdio::from(pty.slave.try_clone().unwrap()));
    }
    command.stderr(Stdio::piped());
    // SAFETY: the closure makes two system calls and neither allocates nor takes locks.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
        });
    }
    (command.spawn().unwrap(), pty.master)
}

fn winsize((cols, rows): (u16, u16)) -> nix::pty::Winsize {
    nix::pty::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Reads from a terminal until `wanted` has appeared.
fn expect(terminal: &mut fs::File, wanted: &str) {
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    while !seen.contains(wanted) {
        let len = terminal.read(&mut buffer).unwrap_or_else(|e| panic!("{e} after {seen:?}"));
        seen.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
}

#[test]
fn a_shell_forwards_keys_and_sizes_and_restores_the_terminal_against_a_stub_server() {
    let stub = Stub::start();
    let (mut child, master) = on_terminal(stub.command(&["capsule", "shell", ID]), (100, 30));
    let before = rustix::termios::tcgetattr(master.as_fd()).unwrap();
    let mut terminal = fs::File::from(master.try_clone().unwrap());
    expect(&mut terminal, "\"start\" 100x30");
    expect(&mut terminal, "\"resize\" 100x30");
    // Ctrl-C is a key like any other.
    terminal.write_all(b"a\x03").unwrap();
    expect(&mut terminal, "<3>");
    let size = rustix::termios::Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master.as_fd(), size).unwrap();
    expect(&mut terminal, "\"resize\" 120x40");
    terminal.write_all(b"\x04").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let after = rustix::termios::tcgetattr(master.as_fd()).unwrap();
    assert_eq!((before.local_modes, before.input_modes), (after.local_modes, after.input_modes));
}

#[test]
fn a_lost_shell_tells_the_way_back_against_a_stub_server() {
    let stub = Stub::start();
    let (child, master) = on_terminal(stub.command(&["capsule", "shell", ID, "--attach", "pty-1"]), (80, 24));
    let mut terminal = fs::File::from(master);
    expect(&mut terminal, "\"connect\" 80x24");
    terminal.write_all(b"!").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(
        stderr(&output).contains(&format!("wrenn capsule shell {ID} --attach pty-1")),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_shell_without_a_terminal_is_refused() {
    let output = wrenn(&["capsule", "shell", ID]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("needs a terminal"));
}

#[test]
fn what_is_missing_is_told_with_its_cure() {
    let keyless = wrenn(&["capsule", "ls"]).output().unwrap();
    assert!(stderr(&keyless).starts_with("error: no API key: "), "{}", stderr(&keyless));
    let mut closed = wrenn(&["capsule", "ls", "--base-url", "http://127.0.0.1:1", "--api-key", "k"]);
    let text = stderr(&closed.output().unwrap());
    assert!(text.starts_with("error: cannot reach http://127.0.0.1:1: tcp connect error: "), "{text}");
    assert!(text.ends_with("hint: is the platform running? start it with `wrenn up`\n"), "{text}");
}

#[test]
fn the_console_of_a_local_capsule_is_read_from_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let capsule = dir.path().join("capsules").join(ID);
    fs::create_dir_all(&capsule).unwrap();
    fs::write(capsule.join("console.log"), "booted\n").unwrap();
    let dir = dir.path().to_str().unwrap();
    let output = wrenn(&["capsule", "logs", "6dfz", "--dir", dir]).output().unwrap();
    assert_eq!(stdout(&output), "booted\n", "{}", stderr(&output));
    let missing = wrenn(&["capsule", "logs", ID]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("hint: console logs exist only on the host"), "{}", stderr(&missing));
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&wrenn(&["completion", shell]).output().unwrap());
        assert!(
            ["capsule", "shell", "pause", "fork", "template", "login", "teams", "whoami", "byoc"]
                .iter()
                .all(|word| script.contains(word)),
            "{shell}"
        );
    }
}
