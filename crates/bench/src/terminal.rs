//! The echo of a keystroke while another stream of the same capsule floods output, against the echo when it is idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use wrenn_client::{
    Command, ProcessEvent, ProcessStream, PtyCommand, PtyEvent, PtyReader, PtyWriter, TerminalSize,
};

use crate::lab::{Lab, Subject};
use crate::report::{Goal, Line};
use crate::stats::Samples;

const ROUNDS: usize = 6;
const ECHOES: usize = 60;
const WARM_UP: usize = 20;
/// Between two keystrokes.
const PAUSE: Duration = Duration::from_millis(5);
/// After a flood begins or ends.
const SETTLE: Duration = Duration::from_millis(800);
/// The flood: as much as the pipe takes, in lines.
const FLOOD: &str = "yes 'a line of output that is neither short nor very long, as programs write them'";

/// Alternates rounds without and with a flood. The flood is read as fast as it comes; in a third kind of round it is
/// not read at all, so that it stands still behind its full buffers.
pub(crate) async fn run(lab: &Lab, subject: &Subject) -> anyhow::Result<Vec<Line>> {
    let command = PtyCommand { cmd: Some("/bin/cat".to_owned()), ..PtyCommand::default() };
    let size = TerminalSize { cols: 80, rows: 24 };
    let (writer, mut reader) = lab.client.pty(subject.id, &command, size).await?.split();
    let (mut idle, mut flooded, mut stalled) = <(Samples, Samples, Samples)>::default();
    let mut speed = Samples::default();
    type_keys(&writer, &mut reader, WARM_UP, &mut Samples::default()).await?;
    for _ in 0..ROUNDS {
        type_keys(&writer, &mut reader, ECHOES, &mut idle).await?;
        let flood = Flood::start(lab, subject).await?;
        let (begun, before) = (Instant::now(), flood.received());
        type_keys(&writer, &mut reader, ECHOES, &mut flooded).await?;
        #[expect(clippy::cast_precision_loss, reason = "a few hundred MiB")]
        let received = (flood.received() - before) as f64 / 1_048_576.0;
        speed.number(received / begun.elapsed().as_secs_f64());
        flood.stop().await;
        let standing = start(lab, subject).await?;
        tokio::time::sleep(SETTLE).await;
        type_keys(&writer, &mut reader, ECHOES, &mut stalled).await?;
        drop(standing);
        tokio::time::sleep(SETTLE).await;
    }
    writer.kill().await?;
    let line = |name: String, this: &Samples, goal| Line {
        name,
        unit: "ms",
        this: this.summary(),
        bare: idle.summary(),
        goal,
    };
    let beside = format!("echo beside a flood of {:.0} MiB/s / idle", speed.percentile(50));
    Ok(vec![
        line(beside, &flooded, Goal::AtMost(1.5)),
        line("  echo beside a flood that nobody reads / idle".to_owned(), &stalled, Goal::Shown),
    ])
}

async fn type_keys(
    writer: &PtyWriter,
    reader: &mut PtyReader,
    count: usize,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    for _ in 0..count {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        writer.write("x").await?;
        echo(reader).await?;
        samples.time(begun.elapsed());
    }
    Ok(())
}

async fn echo(reader: &mut PtyReader) -> anyhow::Result<()> {
    loop {
        match reader.next().await.context("the terminal ended")?? {
            PtyEvent::Output(bytes) if bytes.contains(&b'x') => return Ok(()),
            PtyEvent::Output(_) => {}
            PtyEvent::Notice(text) => bail!("the terminal said: {text}"),
            PtyEvent::Exit(code) => bail!("the terminal's process ended with {code}"),
        }
    }
}

async fn start(lab: &Lab, subject: &Subject) -> anyhow::Result<ProcessStream> {
    Ok(lab.client.exec_stream(subject.id, &Command::shell(FLOOD)).await?)
}

/// A flood that is read as fast as it comes, until it is stopped or dropped.
struct Flood {
    reading: JoinHandle<()>,
    received: Arc<AtomicU64>,
}

impl Flood {
    async fn start(lab: &Lab, subject: &Subject) -> anyhow::Result<Self> {
        let mut stream = start(lab, subject).await?;
        let received = Arc::new(AtomicU64::new(0));
        let counted = received.clone();
        let reading = tokio::spawn(async move {
            while let Some(Ok(event)) = stream.next().await {
                if let ProcessEvent::Stdout { data } = event {
                    counted.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
            }
        });
        let flood = Self { reading, received };
        tokio::time::sleep(SETTLE).await;
        Ok(flood)
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The end of the session kills the process.
    async fn stop(self) {
        self.reading.abort();
        tokio::time::sleep(SETTLE).await;
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.reading.abort();
    }
}
