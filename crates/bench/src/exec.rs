//! The round trip of a command through the public API, against the same call made straight to the guest daemon.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, ensure};
use connectrpc::client::{ClientConfig, HttpClient};
use tokio::time::Instant;
use wrenn_client::Command;
use wrenn_core::limits::GUEST_PORT;
use wrenn_protocol::process::__buffa::oneof::process_event::Event;
use wrenn_protocol::process::{ProcessClient, ProcessConfig, StartRequest, StartResponse};
use wrenn_protocol::tunnel::ACCESS_TOKEN_HEADER;

use crate::lab::{Lab, Subject};
use crate::report::{Goal, Line};
use crate::stats::Samples;

const PROGRAM: &str = "/bin/true";
const WARM_UP: usize = 30;
const PAIRS: usize = 600;

/// Measures both in turn; every second pair begins with the other.
pub(crate) async fn run(lab: &Lab, subject: &Subject) -> anyhow::Result<Vec<Line>> {
    let daemon = daemon(subject.addr, &subject.record.access_token)?;
    let (mut api, mut direct, mut answer) = <(Samples, Samples, Samples)>::default();
    for pair in 0..WARM_UP + PAIRS {
        let mut took = [Duration::ZERO; 2];
        for turn in [pair % 2, 1 - pair % 2] {
            let begun = Instant::now();
            match turn {
                0 => through_api(lab, subject).await?,
                _ => straight(&daemon, PROGRAM, &[]).await?,
            }
            took[turn] = begun.elapsed();
        }
        let begun = Instant::now();
        lab.client.get(subject.id).await?;
        if pair >= WARM_UP {
            api.time(took[0]);
            direct.time(took[1]);
            answer.time(begun.elapsed());
        }
    }
    let line = |name: &str, this: &Samples, goal| Line {
        name: name.to_owned(),
        unit: "ms",
        this: this.summary(),
        bare: direct.summary(),
        goal,
    };
    Ok(vec![
        line("exec: API / guest daemon", &api, Goal::AtMost(1.3)),
        line("  an API call without a guest / guest daemon", &answer, Goal::Shown),
    ])
}

async fn through_api(lab: &Lab, subject: &Subject) -> anyhow::Result<()> {
    let ran = lab.client.exec(subject.id, &Command::new(PROGRAM)).await?;
    ensure!(ran.exit_code == 0, "{PROGRAM} failed in the capsule");
    Ok(())
}

/// A client of the guest daemon in the encoding that the control plane uses.
pub(crate) fn daemon(addr: Ipv4Addr, token: &str) -> anyhow::Result<ProcessClient<HttpClient>> {
    let base = format!("http://{addr}:{GUEST_PORT}").parse()?;
    let config = ClientConfig::new(base).proto().with_default_header(ACCESS_TOKEN_HEADER, token);
    Ok(ProcessClient::new(HttpClient::plaintext(), config))
}

/// Runs a program to its end, past the platform, and demands that it succeeds.
pub(crate) async fn straight(
    daemon: &ProcessClient<HttpClient>,
    program: &str,
    args: &[&str],
) -> anyhow::Result<()> {
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    let process = ProcessConfig { cmd: program.to_owned(), args, ..ProcessConfig::default() };
    let request = StartRequest { process: process.into(), stdin: Some(false), ..StartRequest::default() };
    let mut events = daemon.start(request).await?;
    let mut code = None;
    while let Some(message) = events.message::<StartResponse>().await? {
        let event = message.to_owned_message().event.into_option().and_then(|event| event.event);
        if let Some(Event::End(end)) = event {
            code = Some(end.exit_code);
        }
    }
    ensure!(code.context("the guest daemon did not say how the command ended")? == 0, "{program} failed");
    Ok(())
}
