//! The roles as child processes of `wrenn up`: started, restarted when they die, stopped in order.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, kill};
use nix::unistd::Pid;
use tracing::{info, warn};

/// A role that ran at least this long is restarted at once.
const HEALTHY_RUN: Duration = Duration::from_secs(10);
/// Longest pause before a restart.
const PAUSE_CEILING: Duration = Duration::from_secs(5);

/// One role of this binary, kept running.
#[derive(Debug)]
pub struct Role {
    name: &'static str,
    env: Vec<(String, String)>,
    without: &'static [&'static str],
    child: Option<Child>,
    started: Instant,
    restart_at: Option<Instant>,
    pause: Duration,
}

impl Role {
    /// Starts `wrenn <name>` with `env` added and what it is to be `without` taken out. Must be called from a thread that
    /// lives as long as the role should: the kernel ends the role with it.
    ///
    /// # Errors
    /// Where the process cannot be started.
    pub fn start(
        name: &'static str,
        env: Vec<(String, String)>,
        without: &'static [&'static str],
    ) -> anyhow::Result<Self> {
        let mut role = Self {
            name,
            env,
            without,
            child: None,
            started: Instant::now(),
            restart_at: None,
            pause: Duration::ZERO,
        };
        role.spawn()?;
        Ok(role)
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(binary);
        command.arg(self.name).envs(self.env.iter().cloned());
        for name in self.without {
            command.env_remove(name);
        }
        // Its own group, so that a Ctrl-C meant for the supervisor does not stop it out of turn.
        command.process_group(0);
        // SAFETY: the closure makes two system calls and neither allocates nor takes locks.
        unsafe {
            command.pre_exec(|| {
                ignore_hangups()?;
                Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start the role `{}`", self.name))?;
        self.child = Some(child);
        self.started = Instant::now();
        self.restart_at = None;
        Ok(())
    }

    /// Restarts it where it has died: at once after a healthy run, else after a growing pause. Call often.
    ///
    /// # Errors
    /// Where the process cannot be started.
    pub fn tend(&mut self) -> anyhow::Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            self.child = None;
            let healthy = self.started.elapsed() >= HEALTHY_RUN || status.code().is_none();
            self.pause = if healthy {
                Duration::ZERO
            } else {
                (self.pause * 2).clamp(Duration::from_millis(250), PAUSE_CEILING)
            };
            warn!("the role `{}` ended ({status}); restarting it in {:?}", self.name, self.pause);
            self.restart_at = Some(Instant::now() + self.pause);
        }
        if self.child.is_none() && self.restart_at.is_none_or(|at| Instant::now() >= at) {
            self.spawn()?;
        }
        Ok(())
    }

    /// Tells it to open its log file anew.
    pub fn hang_up(&self) {
        if let Some(child) = &self.child {
            signal(child, Signal::SIGHUP);
        }
    }

    /// Asks it to end and waits; after `limit` it is killed.
    pub fn stop(mut self, limit: Duration) {
        let Some(mut child) = self.child.take() else { return };
        signal(&child, Signal::SIGTERM);
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if !matches!(child.try_wait(), Ok(None)) {
                info!("the role `{}` has stopped", self.name);
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        warn!("the role `{}` did not stop in {limit:?} and is killed", self.name);
        signal(&child, Signal::SIGKILL);
        let _status = child.wait();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, Signal::SIGTERM);
            let _status = child.wait();
        }
    }
}

/// Between fork and exec: lets SIGHUP pass by until the new program handles it itself, which it does before it opens its
/// log file, so that nothing is missed.
///
/// # Errors
/// What the system says.
pub fn ignore_hangups() -> std::io::Result<()> {
    // SAFETY: ignoring a signal runs no code of ours when it arrives.
    unsafe { nix::sys::signal::signal(Signal::SIGHUP, SigHandler::SigIgn) }?;
    Ok(())
}

fn signal(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // It may have ended meanwhile; it is not reaped yet, so the id is still its own.
        let _gone = kill(Pid::from_raw(pid), signal);
    }
}
