//! How long a fork stops its source, against stopping a machine until everything that it has written is copied.

use std::time::Duration;

use anyhow::ensure;
use wrenn_agent::endpoint::Endpoint;
use wrenn_client::{CapsuleId, Command, ForkCapsule};

use crate::bare::Bare;
use crate::exec::straight;
use crate::lab::Lab;
use crate::log::number;
use crate::pairs;
use crate::pause::sync;
use crate::report::{Goal, Line};
use crate::warm::Warm;

/// MiB that the guest writes once, with something in every page.
const DIRT_MIB: u32 = 300;
/// MiB of them into which it writes for as long as it runs, a byte of every page at a time.
const BUSY_MIB: u32 = 16;
/// Writes, says that it has, and goes on writing fifty times a second.
const WRITER: &str = r"
import os, sys, time
dirt, busy = int(sys.argv[1]) << 20, int(sys.argv[2]) << 20
memory, piece = bytearray(dirt), os.urandom(1 << 20)
for at in range(0, dirt, len(piece)):
    memory[at:at + len(piece)] = piece
open('/dev/shm/written', 'w').close()
turn = 0
while True:
    turn = turn + 1 & 255
    memory[0:busy:4096] = bytes([turn]) * (busy >> 12)
    time.sleep(0.02)
";
/// Starts the writer and waits until it has written once.
const START: &str = r#"
setsid python3 -c "$1" "$2" "$3" > /dev/null 2>&1 < /dev/null &
until [ -e /dev/shm/written ]; do kill -0 $! && sleep 0.1 || exit 1; done
"#;

/// Forks a capsule, and stops and copies a bare machine that does the same, `count` times in turn.
pub(crate) async fn run(lab: &Lab, bare: &Bare, warm: &Warm, count: usize) -> anyhow::Result<Line> {
    let (dirt, busy) = (DIRT_MIB.to_string(), BUSY_MIB.to_string());
    let args = ["-c", START, "sh", WRITER, &*dirt, &*busy];
    let source = lab.create(warm.memory_mb).await?;
    let ran = lab.client.exec(source, &Command::new("/bin/sh").args(args).timeout_sec(120)).await?;
    ensure!(ran.exit_code == 0, "the writer does not start in the capsule: {}", ran.stderr_text());
    let machine = bare.restore(bare.ready(warm).await?).await?;
    straight(&Endpoint::new(machine.addr, "").processes(None)?, "/bin/sh", &args).await?;
    let copy = async || {
        sync().await?;
        machine.copy_stopped().await
    };
    let times = pairs::run(count, async || fork(lab, source).await, copy).await?;
    bare.remove(machine).await?;
    lab.destroy(source).await?;
    Ok(Line {
        name: format!("stop of a fork, {} MiB, {DIRT_MIB} of them written / stop and copy", warm.memory_mb),
        unit: "ms",
        this: times.0.summary(),
        bare: times.1.summary(),
        goal: Goal::Shown,
    })
}

/// Makes and removes one copy, and returns how long the source stood still.
async fn fork(lab: &Lab, source: CapsuleId) -> anyhow::Result<Duration> {
    sync().await?;
    let log = lab.log()?;
    let copies = lab.client.fork_and_wait(source, &ForkCapsule::copies(1)).await?;
    let said = log.wait("snapshot taken", Some(source)).await?;
    for copy in copies {
        lab.destroy(copy.id).await?;
    }
    Ok(Duration::from_micros(number(&said, "still_us")?))
}
