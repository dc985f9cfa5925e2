//! Processes and terminals, over the generated clients.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use buffa::MessageField;
use connectrpc::ErrorCode;
use connectrpc::client::CallOptions;
use support::{Daemon, Field, PATIENCE, Ran, alive, by_pid, command, run, shell};
use wrenn_protocol::guest::SPAWN_ERROR_HEADER;
use wrenn_protocol::process::__buffa::oneof::process_input::Input;
use wrenn_protocol::process::__buffa::oneof::stream_input_request::Event as InputEvent;
use wrenn_protocol::process::{
    CloseStdinRequest, ConnectRequest, ConnectResponse, ListRequest, PTY, ProcessClient, ProcessInput,
    SendInputRequest, SendSignalRequest, Signal, StartRequest, StartResponse, StreamInputRequest,
    UpdateRequest, pty, stream_input_request,
};

fn options() -> CallOptions {
    CallOptions::default()
}

fn stdin(bytes: impl Into<Vec<u8>>) -> Field<ProcessInput> {
    MessageField::some(ProcessInput { input: Some(Input::Stdin(bytes.into())), ..ProcessInput::default() })
}

fn typed(text: &str) -> Field<ProcessInput> {
    MessageField::some(ProcessInput { input: Some(Input::Pty(text.into())), ..ProcessInput::default() })
}

fn kill(pid: u32) -> SendSignalRequest {
    SendSignalRequest {
        process: by_pid(pid),
        signal: Signal::SIGNAL_SIGKILL.into(),
        ..SendSignalRequest::default()
    }
}

#[tokio::test]
async fn output_and_exit_arrive_in_both_encodings() {
    let daemon = Daemon::start();
    for config in [daemon.config().json(), daemon.config().proto()] {
        let client = ProcessClient::new(connectrpc::client::HttpClient::plaintext(), config);
        let ran = run(&client, shell("printf out; printf err >&2; exit 3"), options()).await.unwrap();
        assert_eq!((ran.stdout.as_slice(), ran.stderr.as_slice()), (&b"out"[..], &b"err"[..]));
        let end = ran.end.unwrap();
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (3, true, "exit status 3"));
    }
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let daemon = Daemon::start();
    let mut nowhere = shell("true");
    nowhere.process.get_or_insert_default().cwd = Some("/no/such/place".into());
    let cases = [
        (command("no-such-program", &[]), "not-found"),
        (command("/no/such/program", &[]), "not-found"),
        (command("/etc/passwd", &[]), "not-executable"),
        (nowhere, "bad-cwd"),
    ];
    for (request, marker) in cases {
        let error = run(&daemon.processes(), request, options()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert_eq!(error.response_headers()[SPAWN_ERROR_HEADER], marker);
    }
}

#[tokio::test]
async fn a_program_is_looked_up_in_its_own_path() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("own-program");
    std::fs::write(&program, "#!/bin/sh\necho found\n").unwrap();
    rustix::fs::chmod(&program, 0o755.into()).unwrap();
    let mut request = command("own-program", &[]);
    let path = format!("/nowhere:{}", directory.path().display());
    request.process.get_or_insert_default().envs.insert("PATH".into(), path);
    assert_eq!(run(&daemon.processes(), request, options()).await.unwrap().text(), "found\n");
}

#[tokio::test]
async fn the_user_of_the_call_owns_the_process() {
    let daemon = Daemon::start();
    let client = daemon.processes();
    let as_nobody = options().with_header("authorization", "Basic bm9ib2R5Og==");
    let ran = run(&client, shell("id -un; echo $USER $LOGNAME"), as_nobody).await.unwrap();
    assert_eq!(ran.text(), "nobody\nnobody nobody\n");
    let as_stranger = options().with_header("authorization", "Basic c3RyYW5nZXI6");
    let error = run(&client, shell("true"), as_stranger).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn binary_data_survive_both_ways() {
    let daemon = Daemon::start();
    let client = daemon.processes();
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let request = StartRequest { stdin: Some(true), ..command("cat", &[]) };
    let mut stream = client.start(request).await.unwrap();
    let mut ran = Ran::default();
    ran.take(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.unwrap());
    let process = by_pid(ran.pid);
    let (writer, bytes) = (daemon.processes(), data.clone());
    let writing = tokio::spawn(async move {
        for piece in bytes.chunks(100_000) {
            let input = SendInputRequest {
                process: process.clone(),
                input: stdin(piece),
                ..SendInputRequest::default()
            };
            writer.send_input(input).await.unwrap();
        }
        let close = || CloseStdinRequest { process: process.clone(), ..CloseStdinRequest::default() };
        writer.close_stdin(close()).await.unwrap();
    });
    while let Some(message) = stream.message::<StartResponse>().await.unwrap() {
        ran.take(message.to_owned_message().event.unwrap());
    }
    writing.await.unwrap();
    assert_eq!(ran.exit_code(), 0);
    assert!(ran.stdout == data, "{} bytes came back", ran.stdout.len());
}

#[tokio::test]
async fn a_time_limit_kills_the_whole_family() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    let script = format!(
        "echo $$ >> {0}; (sleep 1000 & echo $! >> {0}; wait) & setsid sleep 1000 & echo $! >> {0}; wait",
        pids.display()
    );
    // By the header alone, so that it is not the client who looks at the clock.
    let limited = options().with_header("connect-timeout-ms", "2000");
    let error = run(&daemon.processes(), shell(&script), limited).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    let pids = std::fs::read_to_string(pids).unwrap();
    assert_eq!(pids.lines().count(), 3);
    for pid in pids.lines().map(|pid| pid.parse().unwrap()) {
        assert!(!alive(pid), "{pid} survived");
    }
}

#[tokio::test]
async fn a_killed_process_is_gone_when_the_call_returns() {
    let daemon = Daemon::start();
    let client = daemon.processes();
    let mut stream = client.start(shell("sleep 1000 & wait")).await.unwrap();
    let mut ran = Ran::default();
    ran.take(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.unwrap());
    client.send_signal(kill(ran.pid)).await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{}", ran.pid)).exists());
    while let Some(message) = stream.message::<StartResponse>().await.unwrap() {
        ran.take(message.to_owned_message().event.unwrap());
    }
    let end = ran.end.unwrap();
    assert_eq!((end.exit_code, end.exited, end.status.as_str()), (-1, false, "signal: killed"));
    let error = client.send_signal(kill(ran.pid)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_process_outlives_its_stream_and_can_be_joined_again() {
    let daemon = Daemon::start();
    let client = daemon.processes();
    let request = StartRequest {
        tag: Some("mine".into()),
        stdin: Some(true),
        ..shell("read line; echo got $line; exit 7")
    };
    let mut stream = client.start(request).await.unwrap();
    let mut ran = Ran::default();
    ran.take(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.unwrap());
    drop(stream);
    let listed = client.list(ListRequest::default()).await.unwrap().into_owned().processes;
    assert_eq!((listed[0].pid, listed[0].tag.as_deref()), (ran.pid, Some("mine")));
    let connect = || ConnectRequest { process: by_pid(ran.pid), ..ConnectRequest::default() };
    let mut joined = client.connect(connect()).await.unwrap();
    let input =
        SendInputRequest { process: by_pid(ran.pid), input: stdin("x\n"), ..SendInputRequest::default() };
    client.send_input(input).await.unwrap();
    let mut seen = Ran::default();
    while let Some(message) = joined.message::<ConnectResponse>().await.unwrap() {
        seen.take(message.to_owned_message().event.unwrap());
    }
    assert_eq!((seen.text().as_str(), seen.exit_code()), ("got x\n", 7));
    let mut late = client.connect(connect()).await.unwrap();
    let mut end = Ran::default();
    while let Some(message) = late.message::<ConnectResponse>().await.unwrap() {
        end.take(message.to_owned_message().event.unwrap());
    }
    assert_eq!((end.pid, end.exit_code()), (ran.pid, 7));
    assert!(client.list(ListRequest::default()).await.unwrap().into_owned().processes.is_empty());
}

#[tokio::test]
async fn a_slow_reader_stops_nobody_else_and_loses_nothing() {
    let daemon = Daemon::start();
    let client = daemon.processes();
    let flood = shell("head -c 20000000 /dev/zero; echo end");
    let mut slow = client.start(flood).await.unwrap();
    for _ in 0..20 {
        let quick = daemon.processes();
        assert_eq!(run(&quick, shell("echo quick"), options()).await.unwrap().text(), "quick\n");
    }
    let mut ran = Ran::default();
    while let Some(message) = slow.message::<StartResponse>().await.unwrap() {
        ran.take(message.to_owned_message().event.unwrap());
    }
    assert_eq!(ran.stdout.len(), 20_000_004);
    assert!(ran.stdout.ends_with(b"\0end\n"));
}

#[tokio::test]
async fn input_to_a_process_that_does_not_read_holds_up_only_itself() {
    let daemon = Daemon::start();
    let client = daemon.processes();
    let request = StartRequest { stdin: Some(true), ..shell("sleep 1000") };
    let mut stream = client.start(request).await.unwrap();
    let mut ran = Ran::default();
    ran.take(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.unwrap());
    let (writer, process) = (daemon.processes(), by_pid(ran.pid));
    let stuck = tokio::spawn(async move {
        let input = stdin(vec![b'x'; 1 << 20]);
        writer.send_input(SendInputRequest { process, input, ..SendInputRequest::default() }).await
    });
    let other = run(&daemon.processes(), shell("echo fine"), options()).await.unwrap();
    assert_eq!(other.text(), "fine\n");
    assert!(!stuck.is_finished());
    client.send_signal(kill(ran.pid)).await.unwrap();
    let written = tokio::time::timeout(PATIENCE, stuck).await.unwrap().unwrap();
    assert!(written.is_err());
}

#[tokio::test]
async fn a_stream_of_input_is_applied_to_its_process() {
    let daemon = Daemon::start();
    let client = daemon.processes();
    let request = StartRequest { stdin: Some(true), ..shell("read a; read b; echo $a-$b") };
    let mut stream = client.start(request).await.unwrap();
    let mut ran = Ran::default();
    ran.take(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.unwrap());
    let message =
        |event: InputEvent| StreamInputRequest { event: Some(event), ..StreamInputRequest::default() };
    let start = stream_input_request::StartEvent { process: by_pid(ran.pid), ..Default::default() };
    let data = |text: &str| stream_input_request::DataEvent { input: stdin(text), ..Default::default() };
    let messages = vec![message(start.into()), message(data("1\n").into()), message(data("2\n").into())];
    client.stream_input(futures::stream::iter(messages)).await.unwrap();
    while let Some(message) = stream.message::<StartResponse>().await.unwrap() {
        ran.take(message.to_owned_message().event.unwrap());
    }
    assert_eq!(ran.text(), "1-2\n");
}

#[tokio::test]
async fn a_terminal_echoes_resizes_and_ends() {
    let daemon = Daemon::start();
    let client = daemon.processes();
    let size = |cols, rows| {
        let size = pty::Size { cols, rows, ..pty::Size::default() };
        MessageField::some(PTY { size: MessageField::some(size), ..PTY::default() })
    };
    let mut request = StartRequest { pty: size(100, 30), stdin: None, ..command("/bin/sh", &[]) };
    request.process.get_or_insert_default().envs.insert("PS1".into(), "> ".into());
    let mut stream = client.start(request).await.unwrap();
    let mut ran = Ran::default();
    ran.take(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.unwrap());
    let pid = ran.pid;
    let type_in = async |text: &str| {
        let request =
            SendInputRequest { process: by_pid(pid), input: typed(text), ..SendInputRequest::default() };
        client.send_input(request).await.unwrap();
    };
    type_in("stty size; tty\n").await;
    while !String::from_utf8_lossy(&ran.pty).contains("/dev/pts/") {
        ran.take(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.unwrap());
    }
    let update = UpdateRequest { process: by_pid(pid), pty: size(70, 20), ..UpdateRequest::default() };
    client.update(update).await.unwrap();
    type_in("stty size; exit 5\n").await;
    while let Some(message) = stream.message::<StartResponse>().await.unwrap() {
        ran.take(message.to_owned_message().event.unwrap());
    }
    let screen = String::from_utf8_lossy(&ran.pty).into_owned();
    assert!(screen.contains("30 100\r\n") && screen.contains("20 70\r\n"), "{screen}");
    assert_eq!(ran.exit_code(), 5);
}

#[tokio::test]
async fn a_flooding_terminal_still_takes_its_interrupt() {
    let daemon = Daemon::start();
    let client = daemon.processes();
    let mut request = StartRequest { stdin: None, ..command("yes", &[]) };
    request.pty = MessageField::some(PTY::default());
    let mut stream = client.start(request).await.unwrap();
    let mut ran = Ran::default();
    ran.take(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.unwrap());
    while ran.pty.len() < 1 << 20 {
        ran.take(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.unwrap());
    }
    let request =
        SendInputRequest { process: by_pid(ran.pid), input: typed("\x03"), ..SendInputRequest::default() };
    client.send_input(request).await.unwrap();
    while let Some(message) = stream.message::<StartResponse>().await.unwrap() {
        ran.take(message.to_owned_message().event.unwrap());
    }
    assert_eq!(ran.end.unwrap().status, "signal: interrupt");
}

#[tokio::test]
async fn silence_is_broken_by_signs_of_life() {
    let daemon = Daemon::start();
    let often = options().with_header("keepalive-ping-interval", "1");
    let ran = run(&daemon.processes(), shell("sleep 2.5"), often).await.unwrap();
    assert!(ran.keepalives >= 1);
}

#[tokio::test]
async fn process_one_collects_orphans_and_mixes_up_no_exit_status() {
    let daemon = Daemon::as_process_one();
    let runs = (0..60).map(|i| {
        let client = daemon.processes();
        let script = format!("(setsid sh -c 'sleep 0.0{}; exit 9' &) ; exit {i}", i % 7);
        async move { (i, run(&client, shell(&script), options()).await.unwrap().exit_code()) }
    });
    for (expected, code) in futures::future::join_all(runs).await {
        assert_eq!(code, expected);
    }
    let count = shell("sleep 1; cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z'");
    let ran = run(&daemon.processes(), count, options()).await.unwrap();
    assert_eq!(ran.text(), "0\n");
}
