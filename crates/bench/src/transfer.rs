//! Uploads and downloads through the API, against as many bytes over bare TCP.
//!
//! Four paths are measured in turn, so that one sees where time goes: the API; the guest daemon's own `/files`; TCP to
//! and from the same file; TCP alone, which touches no file and is what the API is held against.

use std::time::Duration;

use anyhow::{Context, ensure};
use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::io::StreamReader;
use wrenn_agent::endpoint::Endpoint;
use wrenn_client::Command;

use crate::lab::{Lab, Subject};
use crate::report::{Goal, Line};
use crate::stats::Samples;

const FILE: &str = "/root/bench.bin";
const PORT: u16 = 9000;
/// Bytes handed over at once by this side.
const PIECE: usize = 64 * 1024;
/// How long the program in the guest may take to listen.
const LISTENING: Duration = Duration::from_secs(60);

/// Serves one connection after another. The first byte says what to do: take bytes (`s`), take them into the file
/// (`S`), give bytes (`g`), give those of the file (`G`).
const PEER: &str = r"
import os, socket, sys
path, size, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
buffer = memoryview(bytearray(1 << 18))
def take(connection, write):
    while n := connection.recv_into(buffer):
        write(buffer[:n])
    connection.sendall(b'.')
server = socket.create_server(('0.0.0.0', port))
while True:
    connection, _ = server.accept()
    with connection:
        match connection.recv(1):
            case b's': take(connection, lambda piece: None)
            case b'S':
                with open(path, 'wb', buffering=0) as file: take(connection, file.write)
            case b'g':
                for _ in range(0, size, len(buffer)): connection.sendall(buffer)
            case b'G':
                with open(path, 'rb') as file: connection.sendfile(file)
";

#[derive(Debug, Clone, Copy)]
enum Way {
    Api,
    Daemon,
    TcpFile,
    Tcp,
}

const WAYS: [Way; 4] = [Way::Api, Way::Daemon, Way::TcpFile, Way::Tcp];

struct Bench<'a> {
    lab: &'a Lab,
    subject: &'a Subject,
    daemon: Endpoint,
    block: Bytes,
    size: u64,
}

/// Moves `mib` MiB in each direction by every way, `rounds` times after one round to warm up.
pub(crate) async fn run(lab: &Lab, subject: &Subject, mib: u32, rounds: usize) -> anyhow::Result<Vec<Line>> {
    let size = u64::from(mib) << 20;
    let peer = Command::new("python3").arg("-c").arg(PEER).args([FILE, &size.to_string(), &PORT.to_string()]);
    lab.client.spawn(subject.id, &peer, Some("bench-peer")).await?;
    let bench = Bench { lab, subject, daemon: subject.daemon(), block: block(), size };
    bench.wait_for_peer().await?;
    let (mut up, mut down) = (<[Samples; 4]>::default(), <[Samples; 4]>::default());
    for round in 0..=rounds {
        for turn in 0..WAYS.len() {
            let index = (turn + round) % WAYS.len();
            let (sent, received) = bench.both(WAYS[index]).await?;
            if round > 0 {
                up[index].time(sent);
                down[index].time(received);
            }
        }
    }
    let lines = [("upload", up), ("download", down)].into_iter();
    Ok(lines.flat_map(|(what, samples)| table(what, &samples, size)).collect())
}

fn table(what: &str, samples: &[Samples; 4], size: u64) -> [Line; 3] {
    let bare = samples[3].speed(size);
    let line = |name: String, index: usize, goal| Line {
        name,
        unit: "MiB/s",
        this: samples[index].speed(size),
        bare,
        goal,
    };
    [
        line(format!("{what} of {} MiB: API / TCP", size >> 20), 0, Goal::AtLeast(0.9)),
        line(format!("  {what}: guest daemon / TCP"), 1, Goal::Shown),
        line(format!("  {what}: TCP and the same file / TCP"), 2, Goal::Shown),
    ]
}

/// Bytes that no layer can take a short way with.
pub(crate) fn block() -> Bytes {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..PIECE).map(|_| next()).collect()
}

impl Bench<'_> {
    async fn wait_for_peer(&self) -> anyhow::Result<()> {
        let connecting = async {
            while self.connect().await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(LISTENING, connecting).await.context("the peer in the guest does not listen")
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect((self.subject.addr, PORT)).await
    }

    /// There and back by one way; what must be done before each is not counted.
    async fn both(&self, way: Way) -> anyhow::Result<(Duration, Duration)> {
        self.lab.shell(self.subject.id, &format!("rm -f {FILE}; sync")).await?;
        let begun = Instant::now();
        match way {
            Way::Api => {
                self.lab.client.upload(self.subject.id, FILE, StreamReader::new(self.pieces())).await?;
            }
            Way::Daemon => self.daemon_upload().await?,
            Way::TcpFile => self.tcp_upload(b"S").await?,
            Way::Tcp => self.tcp_upload(b"s").await?,
        }
        let sent = begun.elapsed();
        self.check(way).await?;
        let begun = Instant::now();
        let received = match way {
            Way::Api => self.api_download().await?,
            Way::Daemon => self.daemon_download().await?,
            Way::TcpFile => self.tcp_download(b"G").await?,
            Way::Tcp => self.tcp_download(b"g").await?,
        };
        let took = begun.elapsed();
        ensure!(received == self.size, "{received} bytes arrived by {way:?}, not {}", self.size);
        Ok((sent, took))
    }

    /// The file must have arrived whole, and be out of the way of what follows.
    async fn check(&self, way: Way) -> anyhow::Result<()> {
        if matches!(way, Way::Tcp) {
            return Ok(());
        }
        let said = self.lab.shell(self.subject.id, &format!("sync; stat -c %s {FILE}")).await?;
        ensure!(said.trim() == self.size.to_string(), "{} bytes arrived by {way:?}", said.trim());
        Ok(())
    }

    /// The content of the file.
    fn pieces(&self) -> impl stream::Stream<Item = std::io::Result<Bytes>> + Send + Unpin + use<> {
        let (block, count) = (self.block.clone(), self.size / PIECE as u64);
        stream::iter((0..count).map(move |_| Ok(block.clone())))
    }

    async fn api_download(&self) -> anyhow::Result<u64> {
        let mut stream = self.lab.client.download(self.subject.id, FILE).await?;
        let mut received = 0;
        while let Some(piece) = stream.next().await {
            received += piece?.len() as u64;
        }
        Ok(received)
    }

    async fn daemon_call(&self, method: Method, body: Body) -> anyhow::Result<Response<Incoming>> {
        let uri = self.daemon.uri(&format!("/files?path={FILE}&username=root"))?;
        let request = Request::builder().method(method).uri(uri);
        let request = request.header(http::header::CONTENT_TYPE, "application/octet-stream").body(body)?;
        let response = self.daemon.send(request).await?;
        ensure!(response.status().is_success(), "the guest daemon answered {}", response.status());
        Ok(response)
    }

    async fn daemon_upload(&self) -> anyhow::Result<()> {
        let response = self.daemon_call(Method::POST, Body::from_stream(self.pieces())).await?;
        response.into_body().collect().await?;
        Ok(())
    }

    async fn daemon_download(&self) -> anyhow::Result<u64> {
        let mut body = self.daemon_call(Method::GET, Body::empty()).await?.into_body();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            received += frame?.data_ref().map_or(0, Bytes::len) as u64;
        }
        Ok(received)
    }

    async fn tcp_upload(&self, order: &[u8]) -> anyhow::Result<()> {
        let mut stream = self.connect().await?;
        stream.write_all(order).await?;
        for _ in 0..self.size / PIECE as u64 {
            stream.write_all(&self.block).await?;
        }
        stream.shutdown().await?;
        stream.read_u8().await.context("the peer did not take everything")?;
        Ok(())
    }

    async fn tcp_download(&self, order: &[u8]) -> anyhow::Result<u64> {
        let mut stream = self.connect().await?;
        stream.write_all(order).await?;
        let mut buffer = vec![0; 4 * PIECE];
        let mut received = 0;
        loop {
            match stream.read(&mut buffer).await? {
                0 => return Ok(received),
                n => received += n as u64,
            }
        }
    }
}
