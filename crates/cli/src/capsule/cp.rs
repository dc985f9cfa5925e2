//! `wrenn capsule cp`.
//!
//! Every file is one streamed transfer; directories are walked. Content and directory structure are copied, and
//! nothing else: no owners, modes, times or links. What cannot be copied faithfully (a link to a directory, a
//! device, a name that is no text) is skipped with a warning, and the exit code says so.
//!
//! The capsule is not trusted: names that it lists are checked before they become local paths, and a local file
//! appears under its name only when it is complete.

mod download;
mod place;
mod progress;
mod upload;

use std::path::Path;

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use wrenn_client::{CapsuleId, Client};

use self::place::Place;
use self::progress::Progress;
use super::{attach, resolve};
use crate::context::Context;
use crate::output;

/// Transfers that run at a time.
const AT_ONCE: usize = 4;

/// From where to where.
#[derive(Debug, Args)]
#[command(
    after_help = "One side is in a capsule, written ID:PATH; a relative PATH begins at the user's home. A local \
    name with a colon is written ./a:b. - stands for standard input or output.\n\nAs with `cp -r`: an existing \
    destination directory receives the source under its own name; SOURCE/. copies the contents of a directory. \
    Directories are merged, files are replaced. Only contents are copied, not owners, modes, times or links."
)]
pub struct CpArgs {
    /// What to copy
    source: String,
    /// Where to
    destination: String,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// What was copied.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Summary {
    files: u64,
    directories: u64,
    bytes: u64,
    /// What was left out, with the reason.
    skipped: Vec<String>,
}

impl Summary {
    fn skip(&mut self, what: &str, why: &str) {
        output::warn(&format!("skipped {what}: {why}"));
        self.skipped.push(format!("{what}: {why}"));
    }
}

/// What a copy works with.
struct Copier {
    client: Client,
    id: CapsuleId,
    progress: Progress,
}

/// What is at a path in a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RemoteKind {
    Directory,
    Other,
    Missing,
}

impl Copier {
    async fn kind(&self, path: &str) -> anyhow::Result<RemoteKind> {
        match self.client.list_files(self.id, path, 1).await {
            Ok(_) => Ok(RemoteKind::Directory),
            Err(error) if error.is_not_found() => Ok(RemoteKind::Missing),
            // The API refuses to list what is not a directory.
            Err(error) if error.code() == Some("invalid_request") => Ok(RemoteKind::Other),
            Err(error) => Err(error.into()),
        }
    }
}

pub(super) async fn run(args: CpArgs, ctx: &Context) -> anyhow::Result<u8> {
    let mut interrupts = attach::Interrupts::new()?;
    tokio::select! {
        result = copy(args, ctx) => result,
        // Dropping the copy removes its unfinished local file.
        code = interrupts.next() => Ok(code),
    }
}

async fn copy(args: CpArgs, ctx: &Context) -> anyhow::Result<u8> {
    let quiet = args.quiet || ctx.json;
    let (source, destination) = (place::parse(&args.source)?, place::parse(&args.destination)?);
    let to_stdout = matches!(destination, Place::Stdio);
    let summary = match (source, destination) {
        (Place::Remote { capsule, path }, Place::Local(to)) => {
            copier(&capsule, quiet, ctx).await?.download(&path, &to).await?
        }
        (Place::Remote { capsule, path }, Place::Stdio) => {
            copier(&capsule, true, ctx).await?.download_to_stdout(&path).await?
        }
        (Place::Local(from), Place::Remote { capsule, path }) => {
            if !from.exists() {
                bail!("there is no {}", from.display());
            }
            copier(&capsule, quiet, ctx).await?.upload(&from, &path).await?
        }
        (Place::Stdio, Place::Remote { capsule, path }) => {
            copier(&capsule, quiet, ctx).await?.upload_stdin(&path).await?
        }
        (Place::Remote { .. }, Place::Remote { .. }) => {
            bail!("one side must be on this machine; copy in two steps")
        }
        _ => bail!("one side must be in a capsule, written ID:PATH"),
    };
    if ctx.json && !to_stdout {
        output::json(&summary)?;
    }
    Ok(u8::from(!summary.skipped.is_empty()))
}

async fn copier(capsule: &str, quiet: bool, ctx: &Context) -> anyhow::Result<Copier> {
    let client = ctx.client()?;
    let id = resolve::one(&client, capsule).await?;
    Ok(Copier { client, id, progress: Progress::new(quiet) })
}

/// The path as text, which the API needs.
fn text(path: &Path) -> Option<&str> {
    path.to_str()
}

#[cfg(test)]
mod tests;
