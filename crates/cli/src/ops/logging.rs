//! Structured logs: JSON lines in `WRENN_DIR/logs/wrenn.log`, and the same on standard error, where they are text if a
//! person reads them.
//!
//! All processes of the platform write to one file. Each opens it with `O_APPEND` and writes a line with one call, so
//! that lines of different processes never mix. After a SIGHUP the file is opened anew, which is how programs such as
//! logrotate take the old one away.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{Event, Subscriber, error, info};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{LogFormat, Settings};
use crate::output;

/// Sends what is logged from now on to standard error and, for a process of the platform, to the log file. `role` is
/// what its lines say of where they come from. Must be called inside the runtime.
///
/// # Errors
/// Where the filter makes no sense. A log file that cannot be opened is told on standard error and done without.
pub fn start(settings: &Settings, role: Option<&'static str>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log.value)?;
    // The handler comes before the file: a signal in between must neither end the process nor be missed.
    let hangup = role.map(|_| signal(SignalKind::hangup())).transpose()?;
    let file = role.and_then(|_| LogFile::open_or_tell(&settings.dir.value));
    let on_stderr = file.as_ref().is_none_or(|file| !same_file(io::stderr(), &**file.current.load()));
    let terminal = io::stderr().is_terminal();
    let json = match settings.log_format.value {
        LogFormat::Auto => !terminal,
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    let stderr = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let registry = registry.with(file.clone().map(|file| as_json(role, file)));
    if json {
        registry.with(on_stderr.then(|| as_json(role, io::stderr))).try_init()?;
    } else {
        registry.with(on_stderr.then(|| stderr.with_ansi(terminal).with_target(false))).try_init()?;
    }
    if let Some(hangup) = hangup {
        tokio::spawn(follow(hangup, file));
    }
    Ok(())
}

/// Writes JSON lines, each with one call.
fn as_json<S, W>(role: Option<&'static str>, writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer);
    layer.map_event_format(|inner| Named { role, inner })
}

/// Opens the log file of a data directory for appending, made with its directory where it is missing.
///
/// # Errors
/// Where it cannot be made or opened.
pub fn open(dir: &Path) -> anyhow::Result<(PathBuf, File)> {
    let logs = dir.join("logs");
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let path = std::path::absolute(logs.join("wrenn.log"))?;
    let file = open_file(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok((path, file))
}

fn open_file(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o640).open(path)
}

/// Whether two descriptors lead to the same file.
fn same_file(one: impl AsFd, other: impl AsFd) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

/// Opens the log file anew at every SIGHUP.
async fn follow(mut hangup: Signal, file: Option<LogFile>) {
    while hangup.recv().await.is_some() {
        let Some(file) = &file else { continue };
        match file.reopen() {
            Ok(()) => info!("opened the log file anew"),
            Err(error) => error!(%error, "cannot open {} anew; the old file goes on", file.path.display()),
        }
    }
}

/// The open log file; clones share it.
#[derive(Debug, Clone)]
struct LogFile {
    path: PathBuf,
    current: Arc<ArcSwap<File>>,
}

impl LogFile {
    fn open_or_tell(dir: &Path) -> Option<Self> {
        match open(dir) {
            Ok((path, file)) => Some(Self { path, current: Arc::new(ArcSwap::from_pointee(file)) }),
            Err(error) => {
                output::warn(&format!("{error:#}; the log goes to standard error alone"));
                None
            }
        }
    }

    /// Goes on in the file that has the name now. Standard output and error go along where they led to the old one.
    fn reopen(&self) -> io::Result<()> {
        let new = open_file(&self.path)?;
        let old = self.current.load_full();
        if same_file(io::stdout(), &*old) {
            rustix::stdio::dup2_stdout(&new)?;
        }
        if same_file(io::stderr(), &*old) {
            rustix::stdio::dup2_stderr(&new)?;
        }
        self.current.store(Arc::new(new));
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.current.load_full())
    }
}

/// Takes one whole line.
struct Line(Arc<File>);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        (&*self.0).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON lines that begin with the role they come from.
struct Named<E> {
    role: Option<&'static str>,
    inner: E,
}

impl<S, N, E> FormatEvent<S, N> for Named<E>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    E: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        match (self.role, line.strip_prefix('{')) {
            (Some(role), Some(rest)) => write!(writer, "{{\"role\":\"{role}\",{rest}"),
            _ => writer.write_str(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_made_for_its_owner_and_group_and_reopened_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogFile::open_or_tell(&dir.path().join("new")).unwrap();
        assert_eq!(std::fs::metadata(&log.path).unwrap().permissions().mode() & 0o037, 0);
        log.make_writer().write_all(b"one\n").unwrap();
        let old = log.path.with_extension("old");
        std::fs::rename(&log.path, &old).unwrap();
        log.make_writer().write_all(b"two\n").unwrap();
        log.reopen().unwrap();
        log.make_writer().write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(old).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&log.path).unwrap(), "three\n");
    }

    #[test]
    fn a_directory_that_cannot_be_made_leaves_standard_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(LogFile::open_or_tell(file.path()).is_none());
    }
}
