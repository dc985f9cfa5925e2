//! A progress bar for people who watch a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Pause between two redraws of the bar while nothing moves.
const TICK: Duration = Duration::from_millis(200);

/// Bytes moved so far. Clones share their bar; the last one clears it.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar on standard error, or nothing where `quiet` or nobody watches.
    pub(super) fn new(quiet: bool) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style("{spinner} {bytes} ({bytes_per_sec})"));
        bar.enable_steady_tick(TICK);
        Self { bar }
    }

    /// More bytes are to come. Until the first call their number is unknown.
    pub(super) fn expect(&self, bytes: u64) {
        if self.bar.length().is_none() {
            self.bar.set_length(0);
            self.bar.set_style(style("{bar:30} {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left)"));
        }
        self.bar.inc_length(bytes);
    }

    /// Bytes have moved.
    pub(super) fn advance(&self, bytes: usize) {
        self.bar.inc(bytes as u64);
    }

    /// How many bytes have moved.
    pub(super) fn moved(&self) -> u64 {
        self.bar.position()
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A template of this module, which is known to be right; the library's own bar where it is not.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
