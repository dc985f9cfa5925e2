//! `wrenn capsule logs`.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use wrenn_client::CapsuleId;

use super::{attach, resolve};
use crate::context::Context;
use crate::output;

/// Pause between two looks at a console log that is followed.
const POLL: Duration = Duration::from_millis(250);

/// What to show.
#[derive(Debug, Args)]
#[command(
    after_help = "With PROCESS, the output of that process is shown from now on, until it ends or Ctrl-C; it \
    goes on running. Earlier output is not kept by the platform.\n\nWithout PROCESS, the console of the machine is \
    shown: boot messages and the guest daemon's log. The API does not carry it: it is read from \
    DIR/capsules/ID/console.log, so the command must run on the host of the capsule, as a user who may read \
    that file."
)]
pub struct LogsArgs {
    /// Id of the capsule, or the beginning of one
    id: String,
    /// Process id or tag of a background process
    process: Option<String>,
    /// Go on with what is added to the console
    #[arg(short, long, conflicts_with = "process")]
    follow: bool,
}

pub(super) async fn run(args: LogsArgs, ctx: &Context) -> anyhow::Result<u8> {
    let mut interrupts = attach::Interrupts::new()?;
    let work = async {
        match &args.process {
            Some(process) => watch(&args.id, process, ctx).await,
            None => console(&args.id, args.follow, ctx).await,
        }
    };
    tokio::select! {
        result = work => result,
        code = interrupts.next() => Ok(code),
    }
}

async fn watch(capsule: &str, process: &str, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.client()?;
    let id = resolve::one(&client, capsule).await?;
    let mut stream = client.attach(id, process).await?;
    attach::follow(&mut stream, ctx.json).await?;
    Ok(0)
}

async fn console(capsule: &str, follow: bool, ctx: &Context) -> anyhow::Result<u8> {
    let capsules = ctx.settings.dir.value.join("capsules");
    let id = match resolve::whole(capsule) {
        Some(id) => id,
        None => resolve::by_prefix(capsule, local_capsules(&capsules)?)?,
    };
    let path = capsules.join(id.to_string()).join("console.log");
    let mut file = File::open(&path).map_err(|error| explain(error, &path))?;
    copy(&mut file, ctx.json)?;
    while follow && path.exists() {
        tokio::time::sleep(POLL).await;
        if file.metadata()?.len() < file.stream_position()? {
            // The agent has cut the log down to its end.
            file.seek(SeekFrom::End(0))?;
        }
        copy(&mut file, ctx.json)?;
    }
    Ok(0)
}

fn explain(error: std::io::Error, path: &Path) -> anyhow::Error {
    let hint = match error.kind() {
        ErrorKind::NotFound => {
            "console logs exist only on the host of a capsule, while it lives; name a process to follow it through \
             the API, or set --dir if the data directory is elsewhere"
        }
        ErrorKind::PermissionDenied => {
            "run the command as root, or name a process to follow it through the API"
        }
        _ => "name a process to follow it through the API",
    };
    anyhow::Error::new(output::Hinted::new(format!("cannot read {}: {error}", path.display()), hint))
}

/// The capsules that have a directory on this machine.
fn local_capsules(dir: &Path) -> anyhow::Result<Vec<CapsuleId>> {
    let entries = std::fs::read_dir(dir).map_err(|error| explain(error, dir))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// Writes what is new in the log. A guest writes it, so a terminal gets it without control characters.
fn copy(file: &mut File, json: bool) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).context("cannot read the console log")?;
    if bytes.is_empty() {
        return Ok(());
    }
    if json {
        let text = String::from_utf8_lossy(&bytes);
        let line = serde_json::json!({"type": "console", "data": text});
        return output::line(&line.to_string());
    }
    if std::io::stdout().is_terminal() {
        return output::write(printable(&String::from_utf8_lossy(&bytes)).as_bytes());
    }
    output::write(&bytes)
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters_but_lines_and_tabs() {
        assert_eq!(printable("a\tb\r\n\x1b[2Jc\u{9b}"), "a\tb\n[2Jc");
    }

    #[test]
    fn directories_that_are_no_capsules_are_not_offered() {
        let dir = tempfile::tempdir().unwrap();
        let id = CapsuleId::random();
        for name in [id.to_string(), "lost+found".to_owned()] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(local_capsules(dir.path()).unwrap(), [id]);
    }

    #[test]
    fn a_missing_log_says_where_it_would_be_and_what_to_do() {
        let error = local_capsules(Path::new("/nonexistent/capsules")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/capsules"));
        assert!(output::hint(&error).unwrap().contains("--dir"));
    }
}
