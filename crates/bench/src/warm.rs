//! The platform's warm templates, as they lie in its data directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, ensure};
use serde_json::Value;
use tokio::time::Instant;
use wrenn_agent::saved::Saved;
use wrenn_core::limits::{DEFAULT_DISK_MB, DEFAULT_VCPUS};

use crate::lab::Lab;

/// How long the platform may take to make a template warm.
const MAKING: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(200);

/// A machine that capsules of one size are made from.
#[derive(Debug, Clone)]
pub(crate) struct Warm {
    /// Memory of its guest in MiB.
    pub(crate) memory_mb: u32,
    /// Path of the template below `templates/`.
    pub(crate) template: PathBuf,
    /// Where its files are.
    pub(crate) dir: PathBuf,
    /// What they are.
    pub(crate) saved: Saved,
}

impl Lab {
    /// The warm templates for capsules of these sizes. A first capsule of each has it made; nothing is made any more when
    /// this returns.
    pub(crate) async fn warm<const N: usize>(&self, sizes: [u32; N]) -> anyhow::Result<[Warm; N]> {
        let mut template = PathBuf::new();
        for memory_mb in sizes {
            let subject = self.subject(memory_mb).await?;
            template = subject.record.spec.template_path;
            self.destroy(subject.id).await?;
            self.warmed(&template, memory_mb).await?;
        }
        // Only now: the agent, which makes one after the other, may have made the first anew meanwhile.
        let found = sizes.map(|memory_mb| find(&self.dir, &template, memory_mb));
        let found: Vec<Warm> = found.into_iter().flatten().collect();
        found.try_into().map_err(|_| anyhow!("a warm template has gone while another was made"))
    }

    async fn warmed(&self, template: &Path, memory_mb: u32) -> anyhow::Result<()> {
        let limit = Instant::now() + MAKING;
        while find(&self.dir, template, memory_mb).is_none() {
            ensure!(Instant::now() < limit, "no warm template of {memory_mb} MiB has appeared");
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn find(platform: &Path, template: &Path, memory_mb: u32) -> Option<Warm> {
    let name = format!("{DEFAULT_VCPUS}x{memory_mb}x{DEFAULT_DISK_MB}-");
    let parent = platform.join("templates").join(template).join("warm");
    let mut entries = std::fs::read_dir(parent).ok()?.filter_map(Result::ok);
    let dir = entries.find(|entry| entry.file_name().to_string_lossy().starts_with(&name))?.path();
    let text = std::fs::read(dir.join("warm.json")).ok()?;
    let mut description: Value = serde_json::from_slice(&text).ok()?;
    let saved = serde_json::from_value(description["saved"].take()).ok()?;
    Some(Warm { memory_mb, template: template.to_owned(), dir, saved })
}
