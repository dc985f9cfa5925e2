//! The settings that a measurement wants of the platform, which is restarted for them.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::lab::Lab;

/// What a platform keeps ready for capsules to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Nothing: every capsule boots.
    Cold,
    /// Warm templates.
    Warm,
    /// Warm templates, and machines that wait for the next creates and resumes: what a platform does unless told
    /// otherwise.
    Pool,
}

/// The log is where the agent tells of machines that wait, and where it tells what a pause and a fork took.
const LOG: [(&str, &str); 2] = [("WRENN_LOG", "info,wrenn_agent::warm=debug"), ("WRENN_LOG_FORMAT", "json")];
/// MiB of disk for warm templates, and machines that wait.
const KEPT: [&str; 2] = ["WRENN_WARM_MB", "WRENN_POOL_SIZE"];

impl Setup {
    /// Words for it.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Cold => "nothing is kept ready",
            Self::Warm => "warm templates, no pool",
            Self::Pool => "warm templates and the pool",
        }
    }

    /// Which of the settings in [`KEPT`] are 0; the others are the platform's own.
    const fn off(self) -> &'static [&'static str] {
        match self {
            Self::Cold => &KEPT,
            Self::Warm => &[KEPT[1]],
            Self::Pool => &[],
        }
    }
}

impl Lab {
    /// Restarts the platform with these settings. Once begun it is carried to its end, which [`Lab::close`] waits for, so
    /// that whoever stops the platform afterwards finds a whole one.
    pub(crate) async fn set_up(&self, setup: Setup) -> anyhow::Result<()> {
        let (wrenn, dir) = (self.wrenn.clone(), self.dir.clone());
        let restart = self.restarts.spawn(async move {
            run(&wrenn, &dir, setup, ["down"]).await?;
            run(&wrenn, &dir, setup, ["up", "--detach"]).await
        });
        restart.await?
    }
}

async fn run(
    wrenn: &Path,
    dir: &Path,
    setup: Setup,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> anyhow::Result<()> {
    let mut command = Command::new(wrenn);
    command.args(args).env("WRENN_DIR", dir).envs(LOG);
    for setting in KEPT {
        command.env_remove(setting);
    }
    command.envs(setup.off().iter().map(|setting| (setting, "0")));
    // Out of the reach of a terminal's Ctrl-C, which goes to whoever is in the foreground.
    command.process_group(0);
    let said = command.output().await.with_context(|| format!("cannot run {}", wrenn.display()))?;
    let error = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "the platform cannot be restarted: {error}");
    Ok(())
}
