//! Slots on a real kernel: who can reach whom, who owns what, and what is left behind.

mod dns;
mod guest;
mod machine;
mod outside;
mod ownership;
mod traffic;

use wrenn_net::{Network, NetworkConfig};

/// The configuration of an agent called `owner`, whose data directory exists.
fn config(owner: &str) -> NetworkConfig {
    let data_dir = format!("/run/data-{owner}");
    std::fs::create_dir_all(&data_dir).expect("data directory");
    NetworkConfig { resolv_conf: "/run/resolv.conf".into(), ..NetworkConfig::new(owner, data_dir) }
}

async fn open(owner: &str) -> Network {
    Network::open(config(owner)).await.expect("network opens")
}
