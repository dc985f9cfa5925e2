//! Speaking to people and to programs: tables, JSON, errors with hints.
//!
//! Results go to standard output, everything else to standard error. Text that a capsule chose (names, command
//! lines) passes through [`clean`] before it reaches a terminal, because a terminal obeys control characters.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};

use comfy_table::{Cell, Table, presets};
use serde::Serialize;
use wrenn_client::Error as ClientError;

/// The reader of standard output has gone away (`wrenn … | head`), which is no failure.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct StdoutClosed;

/// An error that brings its own hint.
#[derive(Debug)]
pub struct Hinted {
    message: String,
    hint: &'static str,
}

impl Hinted {
    /// An error with what to do about it.
    pub fn new(message: String, hint: &'static str) -> Self {
        Self { message, hint }
    }
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// Colours of a terminal (SGR codes).
#[derive(Debug, Clone, Copy)]
pub enum Colour {
    /// Something is wrong.
    Red,
    /// All is well.
    Green,
    /// Attention.
    Yellow,
    /// Less important.
    Dim,
    /// More important.
    Bold,
}

/// `text` in a colour, or as it is where colours are off.
pub fn paint(text: &str, colour: Colour, on: bool) -> String {
    let code = match colour {
        Colour::Red => 31,
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Dim => 2,
        Colour::Bold => 1,
    };
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Whether a stream may be coloured: a terminal that is not dumb, unless `NO_COLOR` says otherwise.
pub fn may_colour(terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    terminal && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// Writes bytes to standard output and flushes it.
///
/// # Errors
/// [`StdoutClosed`] where nobody reads any more, else what the system says.
pub fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(stdout_error)
}

/// Sorts a failure of standard output: [`StdoutClosed`], or a real one.
pub fn stdout_error(error: io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::BrokenPipe {
        StdoutClosed.into()
    } else {
        anyhow::Error::new(error).context("cannot write to standard output")
    }
}

/// Writes a line to standard output.
///
/// # Errors
/// As [`write()`].
pub fn line(text: &str) -> anyhow::Result<()> {
    write(format!("{text}\n").as_bytes())
}

/// Writes a value as indented JSON to standard output.
///
/// # Errors
/// As [`write()`].
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// A table without borders, as tools in pipelines like it.
pub fn table(header: &[&str], rows: Vec<Vec<String>>, colour: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let bold =
        |name: &&str| Cell::new(paint(name, Colour::Bold, false)).add_attribute(comfy_table::Attribute::Bold);
    table.set_header(header.iter().map(bold).collect::<Vec<_>>());
    for row in rows {
        table.add_row(row.into_iter().map(status_cell).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt()
}

/// Cells that hold a capsule status get its colour.
fn status_cell(text: String) -> Cell {
    let colour = match text.as_str() {
        "running" => Some(comfy_table::Color::Green),
        "error" | "missing" => Some(comfy_table::Color::Red),
        "starting" | "stopping" | "pausing" | "resuming" | "snapshotting" => Some(comfy_table::Color::Yellow),
        _ => None,
    };
    let cell = Cell::new(text);
    match colour {
        Some(colour) => cell.fg(colour),
        None => cell,
    }
}

/// `text` without anything that a terminal would obey.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A warning on standard error.
pub fn warn(text: &str) {
    let on = may_colour(io::stderr().is_terminal());
    say(&format!("{} {}", paint("warning:", Colour::Yellow, on), clean(text)));
}

/// A line on standard error. Whoever closed it does not want to hear.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Reports a failed command on standard error: its causes on one line, then a hint where there is one.
pub fn report(error: &anyhow::Error) {
    let on = may_colour(io::stderr().is_terminal());
    say(&format!("{} {}", paint("error:", Colour::Red, on), clean(&chain(error))));
    if let Some(hint) = hint(error) {
        say(&format!("{} {}", paint("hint:", Colour::Dim, on), clean(&hint)));
    }
}

/// Layers of the HTTP stack that say nothing but that there is a cause.
const HOLLOW: [&str; 3] = ["error sending request", "client error (Connect)", "client error (SendRequest)"];

/// The causes, outermost first; a cause that repeats the end of what was said is left out.
fn chain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |mut said, cause| {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if HOLLOW.contains(&text.as_str()) {
            return said;
        }
        if said.is_empty() {
            return text;
        }
        if !said.ends_with(&text) {
            said.push_str(": ");
            said.push_str(&text);
        }
        said
    })
}

/// What to do about an error, where this program knows.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(hinted) = error.chain().find_map(|cause| cause.downcast_ref::<Hinted>()) {
        return Some(hinted.hint.to_owned());
    }
    let client = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>())?;
    let text = match (client, client.code()) {
        (ClientError::Unreachable { .. }, _) => "is the platform running? start it with `wrenn up`",
        (_, Some("unauthorized")) => {
            "sign in again with `wrenn login`, or check the API key: --api-key, WRENN_API_KEY, or the `env` file of the data directory"
        }
        (_, Some("host_unavailable")) => {
            "no host has room or is online; `wrenn doctor` and `wrenn capsule ls` show what is in use"
        }
        (_, Some("invalid_state")) => "`wrenn capsule info ID` shows the state that the capsule is in",
        (_, Some("not_found")) => "`wrenn capsule ls` shows the capsules that exist",
        (_, Some("timeout")) => "give the command more time with --timeout",
        _ => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_are_plain_without_colours() {
        let rows = vec![vec!["cl-1".into(), "running".into()], vec!["cl-long".into(), "error".into()]];
        let text = table(&["ID", "STATUS"], rows.clone(), false);
        assert_eq!(text, "ID        STATUS\ncl-1      running\ncl-long   error");
        assert!(table(&["ID", "STATUS"], rows, true).contains("\x1b["));
    }

    #[test]
    fn an_error_is_one_line_of_distinct_causes() {
        let inner = anyhow::anyhow!("connection\nrefused").context("cannot connect: connection refused");
        assert_eq!(chain(&inner.context("outer")), "outer: cannot connect: connection refused");
    }

    #[tokio::test]
    async fn an_unreachable_platform_brings_the_command_that_starts_it() {
        let client = wrenn_client::Client::new("http://127.0.0.1:1", "k").unwrap();
        let error = anyhow::Error::new(client.list().await.unwrap_err()).context("cannot list");
        assert!(hint(&error).unwrap().contains("wrenn up"));
        assert!(hint(&anyhow::anyhow!("other")).is_none());
    }

    #[test]
    fn text_from_a_capsule_cannot_drive_the_terminal() {
        assert_eq!(clean("a\x1b[31mb\u{9b}\n"), "a\u{fffd}[31mb\u{fffd}\u{fffd}");
    }

    #[test]
    fn a_closed_pipe_is_told_from_a_full_disk() {
        assert!(stdout_error(ErrorKind::BrokenPipe.into()).is::<StdoutClosed>());
        assert!(!stdout_error(ErrorKind::StorageFull.into()).is::<StdoutClosed>());
    }
}
