//! Bad luck: agents that are killed, disks that are full, commands that come in any order. With real VMs.

#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]
#![expect(dead_code, reason = "not every test needs all of the host")]

mod agent;
mod audit;
mod chaos;
#[path = "../common/mod.rs"]
mod common;
mod full;
mod points;
mod seed;
mod volume;
