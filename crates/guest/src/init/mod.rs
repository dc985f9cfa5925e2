//! The machine's init.
//!
//! The kernel starts this program from the initramfs. It makes the machine usable, moves onto the template's disk and
//! serves. The disk is any root file system: nothing in it is needed, nothing of it is run, and what it lacks (a
//! directory to mount on) is made. An error on the way ends the machine with a line on the console, because a capsule
//! that answers only halfway is worse than one that is seen to have failed.

pub(crate) mod disk;
pub(crate) mod identity;
mod modules;
mod mounts;
mod network;
mod power;

use std::io;
use std::process::ExitCode;

use thiserror::Error;

use crate::config::Config;
use crate::server;

/// Scheduling priority ("nice") of the daemon.
const PRIORITY: i32 = -20;

/// A step of the start that failed.
#[derive(Debug, Error)]
#[error("{step}: {source}")]
struct InitError {
    step: String,
    source: io::Error,
}

/// Names the step that failed.
trait Step<T> {
    fn step(self, name: impl Into<String>) -> Result<T, InitError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, name: impl Into<String>) -> Result<T, InitError> {
        self.map_err(|source| InitError { step: name.into(), source: source.into() })
    }
}

/// Sets the machine up, serves until it is told to stop, and powers off.
pub(crate) fn run() -> ExitCode {
    if let Err(error) = set_up() {
        power::fail(&error.to_string());
    }
    if let Err(error) = server::run(&Config::default()) {
        power::fail(&error.to_string());
    }
    power::off()
}

/// Lets the daemon, and every thread it will start, run before what it serves: a program that takes all of the CPU must
/// not decide when a keystroke or a signal against it arrives. Processes start without this, see
/// [`crate::process`].
fn raise_priority() {
    // Without it the daemon only waits its turn.
    let _ = rustix::process::setpriority_process(None, PRIORITY);
}

fn set_up() -> Result<(), InitError> {
    mounts::early()?;
    modules::load()?;
    disk::switch_root()?;
    mounts::late()?;
    network::bring_up()?;
    identity::write_files();
    raise_priority();
    disk::grow_in_background(0);
    Ok(())
}
