//! Takes slots on this machine, releases them, and prints how long that took and whether descriptors leak.
//!
//! Needs root. `cargo run -p wrenn-net --example churn -- 100`

use std::time::{Duration, Instant};

use wrenn_net::{NetError, Network, NetworkConfig};

#[tokio::main]
async fn main() -> Result<(), NetError> {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(50);
    let owner = format!("churn-{}", std::process::id());
    let network = Network::open(NetworkConfig::new(owner, std::env::temp_dir())).await?;
    let (mut acquired, mut released) = (Vec::new(), Vec::new());
    let before = open_descriptors();
    let mut slots = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        slots.push(network.acquire().await?);
        acquired.push(start.elapsed());
    }
    for slot in slots {
        let start = Instant::now();
        slot.release().await?;
        released.push(start.elapsed());
    }
    report("acquire", acquired);
    report("release", released);
    // The kernel's side of the last slots may still be closing.
    tokio::time::sleep(Duration::from_millis(200)).await;
    println!("descriptors: {before} before, {} after", open_descriptors());
    network.close().await
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let (Some(median), Some(last)) = (times.get(times.len() / 2), times.last()) else { return };
    println!("{what}: median {median:?}, longest {last:?}");
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}
