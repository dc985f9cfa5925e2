//! The parts of a run, in an order that restarts the platform as seldom as can be.
//!
//! First comes what is measured of a platform that keeps nothing ready, then what is with warm templates alone, then
//! what is with spare machines too: a platform that is told to keep no warm templates removes those that it has.

use std::path::Path;

use tokio::sync::OnceCell;

use crate::bare::Bare;
use crate::lab::Lab;
use crate::report::Line;
use crate::setup::Setup;
use crate::warm::Warm;
use crate::{Args, Part, boot, burst, clones, create, exec, fork, memory, pause, terminal, transfer};

/// Memory in MiB of the capsule that is measured: the files of the transfers fit into its page cache.
const SUBJECT_MEMORY_MB: u32 = 1024;
/// Memory in MiB of the guests that are restored: the default, and a large one.
const SIZES: [u32; 2] = [512, 4096];

/// What a run measures, and what it holds beside the platform.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    args: &'a Args,
    lab: &'a Lab,
    bare: OnceCell<Bare>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(args: &'a Args, lab: &'a Lab) -> Self {
        Self { args, lab, bare: OnceCell::new() }
    }

    /// Measures all that is wanted.
    pub(crate) async fn all(&self, lines: &mut Vec<Line>) -> anyhow::Result<()> {
        self.cold(lines).await?;
        self.warm(lines).await?;
        self.pooled(lines).await
    }

    /// Removes the bare machines, also those of a part that was interrupted.
    pub(crate) async fn close(&self) -> anyhow::Result<()> {
        match self.bare.get() {
            Some(bare) => bare.close().await,
            None => Ok(()),
        }
    }

    /// Brings the platform into the state that these parts want, unless none of them is wanted.
    async fn set_up(&self, setup: Setup, parts: &[Part]) -> anyhow::Result<bool> {
        if !parts.iter().any(|&part| self.args.wants(part)) {
            return Ok(false);
        }
        eprintln!("the platform restarts: {}", setup.text());
        self.lab.set_up(setup).await?;
        Ok(true)
    }

    fn begins(&self, part: Part, what: &str) -> bool {
        let wanted = self.args.wants(part);
        if wanted {
            eprintln!("{what}");
        }
        wanted
    }

    async fn bare(&self, template: &Path) -> anyhow::Result<&Bare> {
        let open = || Bare::open(&self.lab.dir, template, self.lab.dir.join("bench"));
        self.bare.get_or_try_init(open).await
    }

    /// The warm templates of both sizes, and what restores them without the platform.
    async fn restores(&self) -> anyhow::Result<([Warm; 2], &Bare)> {
        let [small, large] = self.lab.warm(SIZES).await?;
        let bare = self.bare(&small.template).await?;
        Ok(([bare.keep(small).await?, bare.keep(large).await?], bare))
    }

    async fn cold(&self, lines: &mut Vec<Line>) -> anyhow::Result<()> {
        let (args, lab) = (self.args, self.lab);
        let parts = [Part::Memory, Part::Exec, Part::Terminal, Part::Transfer, Part::Boot];
        if !self.set_up(Setup::Cold, &parts).await? {
            return Ok(());
        }
        if self.begins(Part::Memory, &format!("memory of the agent with {} idle capsules", args.idle)) {
            lines.extend(memory::run(lab, args.idle).await?);
        }
        let subject = lab.subject(SUBJECT_MEMORY_MB).await?;
        if self.begins(Part::Exec, "round trip of a command") {
            lines.extend(exec::run(lab, &subject).await?);
        }
        if self.begins(Part::Terminal, "echo of a keystroke") {
            lines.extend(terminal::run(lab, &subject).await?);
        }
        if self.begins(Part::Transfer, &format!("transfers of {} MiB", args.mib)) {
            lines.extend(transfer::run(lab, &subject, args.mib, args.transfers).await?);
        }
        lab.destroy(subject.id).await?;
        if self.begins(Part::Boot, "boots") {
            let bare = self.bare(&subject.record.spec.template_path).await?;
            lines.extend(boot::run(lab, bare, args.boots).await?);
        }
        Ok(())
    }

    async fn warm(&self, lines: &mut Vec<Line>) -> anyhow::Result<()> {
        let (args, lab) = (self.args, self.lab);
        let parts = [Part::Create, Part::Resume, Part::Pause, Part::Burst, Part::Fork, Part::Clones];
        if !self.set_up(Setup::Warm, &parts).await? {
            return Ok(());
        }
        let (templates, bare) = self.restores().await?;
        for warm in &templates {
            if self.begins(Part::Create, &format!("creates of {} MiB", warm.memory_mb)) {
                lines.push(create::creates(lab, bare, warm, args.restores).await?);
            }
            if self.begins(Part::Resume, &format!("resumes of {} MiB", warm.memory_mb)) {
                lines.push(create::resumes(lab, bare, warm, args.restores).await?);
            }
            if self.begins(Part::Pause, &format!("pauses of {} MiB", warm.memory_mb)) {
                lines.extend(pause::run(lab, warm.memory_mb, args.pauses).await?);
            }
            if self.begins(Part::Fork, &format!("forks of {} MiB", warm.memory_mb)) {
                lines.push(fork::run(lab, bare, warm, args.forks).await?);
            }
        }
        if self.begins(Part::Burst, &format!("{} creates at once", args.burst)) {
            lines.extend(burst::run(lab, bare, &templates[0], args.burst, args.bursts).await?);
        }
        if self.begins(Part::Clones, &format!("memory of {} idle clones", args.clones)) {
            lines.extend(clones::run(lab, bare, &templates[0], args.clones).await?);
        }
        Ok(())
    }

    async fn pooled(&self, lines: &mut Vec<Line>) -> anyhow::Result<()> {
        if !self.set_up(Setup::Pool, &[Part::Pool]).await? {
            return Ok(());
        }
        let (templates, bare) = self.restores().await?;
        for warm in &templates {
            eprintln!("creates and resumes of {} MiB with the pool", warm.memory_mb);
            lines.extend(create::pooled(self.lab, bare, warm, self.args.restores).await?);
        }
        Ok(())
    }
}
