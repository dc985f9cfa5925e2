//! The host's side that all slots share: forwarding, and one static firewall table.
//!
//! The table names links by pattern and so never changes with the slots. It only ever drops or translates
//! packets of ours: an `accept` here ends our chain and leaves every other table its say. Its chains stand a
//! little before the usual ones, so ours are refused even where another table accepts everything. A guest's
//! connection whose destination the host has translated went to a port that the host publishes for somebody
//! else, a container for example; that is a service of the host as well, and refused.

use std::io;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::{NetError, Result};
use crate::firewall::TABLE as TABLE_NAME;
use crate::nft::{self, Family};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// The first two lines make the next one start from nothing, whether the table was there or not.
const TABLE: &str = r#"
add table inet wrenn
delete table inet wrenn
table inet wrenn {
    chain input {
        type filter hook input priority filter - 5; policy accept;
        iifname "wrenn-*" ct state established,related accept
        iifname "wrenn-*" drop
    }
    chain forward {
        type filter hook forward priority filter - 5; policy accept;
        iifname "wrenn-*" oifname "wrenn-*" drop
        iifname "wrenn-*" meta nfproto ipv6 drop
        iifname "wrenn-*" ip saddr != 10.12.0.0/16 drop
        iifname "wrenn-*" ip daddr 169.254.0.0/16 drop
        iifname "wrenn-*" ct status dnat drop
        oifname "wrenn-*" ct state established,related accept
        oifname "wrenn-*" drop
    }
    chain postrouting {
        type nat hook postrouting priority srcnat - 5; policy accept;
        ip saddr 10.12.0.0/16 oifname != { "lo", "wrenn-*" } masquerade
    }
}
"#;

const NO_TABLE: &str = "add table inet wrenn\ndelete table inet wrenn\n";

/// Makes the host forward packets, and puts the table in place, replacing an older one at once.
pub(crate) async fn prepare() -> Result<()> {
    // Writing only when needed lets the agent run where /proc/sys is read-only but already right.
    let forwards = std::fs::read_to_string(IP_FORWARD).is_ok_and(|text| text.trim() == "1");
    if !forwards {
        std::fs::write(IP_FORWARD, "1").map_err(NetError::refused("enable", "net.ipv4.ip_forward"))?;
    }
    run_nft(TABLE).await
}

/// Puts the table back if it is gone: reloading the nftables service, for one, flushes the tables of everybody.
///
/// # Returns
/// Whether it was gone.
pub(crate) async fn restore() -> Result<bool> {
    let there = nft::table_exists(Family::Inet, TABLE_NAME)
        .map_err(NetError::refused("look up", "the firewall table inet wrenn"))?;
    if !there {
        tracing::warn!("the firewall table inet wrenn had been removed; putting it back");
        run_nft(TABLE).await?;
    }
    Ok(!there)
}

/// Removes the table.
pub(crate) async fn clear() -> Result<()> {
    run_nft(NO_TABLE).await
}

async fn run_nft(script: &str) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| NetError::NftMissing { source })?;
    // Taken out, so that it is closed and nft sees the end of its input.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await.map_err(NetError::refused("write to", "nft"))?;
    }
    let output = child.wait_with_output().await.map_err(NetError::refused("wait for", "nft"))?;
    if output.status.success() { Ok(()) } else { Err(refusal(&output.stderr)) }
}

/// `nft` says "Operation not permitted" in words only.
fn refusal(stderr: &[u8]) -> NetError {
    let message = String::from_utf8_lossy(stderr).trim().to_owned();
    if message.contains("Operation not permitted") {
        let source = io::Error::from_raw_os_error(libc::EPERM);
        return NetError::refused("write", "the firewall table inet wrenn")(source);
    }
    NetError::NftRefused { message }
}
