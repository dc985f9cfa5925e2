//! The daemon inside a capsule.
//!
//! One static program is the initramfs's `/init`, the machine's process 1 and the server on port 49983:
//!
//! ```text
//!   kernel ──▶ init (mounts, modules, network, root switch) ──▶ server ─┬─ process.Process        (process)
//!                                                                        ├─ filesystem.Filesystem  (filesystem)
//!                                                                        ├─ /files /init /metrics  (http)
//!                                                                        ├─ /connect?port=N        (http::tunnel)
//!                                                                        └─ UDP: init, prepare     (datagram)
//! ```
//!
//! Everything is root's view of an image the platform does not trust, so nothing of the image is ever loaded or
//! executed by the daemon itself: users are read from `/etc/passwd` by own parsing, no shared library and no shell is
//! needed. When it is not process 1 it only serves, which is how it is tested and how it can be run on a plain host.

mod accounts;
mod auth;
mod config;
mod connections;
mod datagram;
mod error;
mod filesystem;
mod http;
mod init;
mod paths;
mod process;
mod reaper;
mod server;
mod settings;

use std::process::ExitCode;

pub use config::Config;

/// Runs the daemon until it is told to stop. As process 1 it does not return: it powers the machine off.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    if Config::is_init() {
        return init::run();
    }
    match Config::parse(arguments) {
        Ok(config) => serve(&config),
        Err(error) => {
            eprintln!("wrenn-guest: {error}");
            ExitCode::from(2)
        }
    }
}

fn serve(config: &Config) -> ExitCode {
    match server::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wrenn-guest: {error}");
            ExitCode::FAILURE
        }
    }
}
