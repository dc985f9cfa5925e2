//! The local terminal: its size, and raw mode for as long as a guard lives.

use std::io;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use wrenn_client::TerminalSize;

/// What a terminal is taken to be when it does not say.
const FALLBACK: TerminalSize = TerminalSize { cols: 80, rows: 24 };

/// Raw mode of standard input: every key reaches the program as it is. Dropping the guard restores what was, also
/// while a panic unwinds.
#[derive(Debug)]
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Switches to raw mode.
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone has nothing to restore.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The size of the terminal on standard output, or else on standard input.
pub(super) fn size() -> TerminalSize {
    [rustix::stdio::stdout(), rustix::stdio::stdin()]
        .into_iter()
        .filter_map(|fd| tcgetwinsize(fd).ok())
        .find(|size| size.ws_col > 0 && size.ws_row > 0)
        .map_or(FALLBACK, |size| TerminalSize { cols: size.ws_col, rows: size.ws_row })
}
