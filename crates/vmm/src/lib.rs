//! Virtual machine monitors behind one trait: [`Vmm`] starts or takes over a [`Machine`]; the drivers are
//! [`qemu::Qemu`] and [`firecracker::Firecracker`].
//!
//! This crate is handed paths and descriptors. It sets up neither networks nor disks, and it knows nothing of capsules
//! but the directory in which one's VMM may write.
//!
//! ```text
//!   LaunchSpec ──launch──▶ process in its own session, mount and network namespace, cgroup and uid
//!                              │  record() is kept by the caller; the VMM outlives the agent
//!                              ▼
//!   MachineRecord ──adopt──▶ the same Machine in a new agent      ──discard──▶ nothing left
//! ```
//!
//! A [`Machine`] is a handle: dropping it leaves the VMM running, [`Machine::kill`] ends it and removes its cgroup and
//! socket. The process is always addressed by a pidfd, so a recycled process id can never be hit.

mod accel;
pub mod blocks;
pub mod cgroup;
mod confine;
mod error;
pub mod firecracker;
mod launch;
mod machine;
pub mod pager;
mod process;
pub mod qemu;
pub mod qmp;
mod remains;
mod socket;

pub use accel::{Accelerator, AcceleratorChoice};
pub use error::VmmError;
pub use launch::CONSOLE;
pub use machine::{
    DiskFiles, ExitReason, FileKey, LaunchSpec, Machine, MachineRecord, MemorySaved, MemoryTarget, RunState,
    Start, Vmm,
};
pub use process::boot_id;
