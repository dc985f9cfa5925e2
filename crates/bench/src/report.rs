//! The table.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

use crate::stats::Summary;

/// What a ratio should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// Nothing is asked; the line shows where time goes.
    Shown,
}

impl Goal {
    fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {bound}"),
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::Shown => String::new(),
        }
    }

    fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(bound) => ratio <= bound,
            Self::AtLeast(bound) => ratio >= bound,
            Self::Shown => true,
        }
    }

    fn verdict(self, p50: f64, p99: f64) -> &'static str {
        match (self, self.is_met(p50), self.is_met(p99)) {
            (Self::Shown, ..) => "",
            (_, true, true) => "yes",
            (_, true, false) => "p50 only",
            (_, false, true) => "p99 only",
            (_, false, false) => "no",
        }
    }
}

/// One line: this against its bare part, in one unit.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// What was measured, and against what.
    pub(crate) name: String,
    /// Unit of both sides.
    pub(crate) unit: &'static str,
    /// The measured part.
    pub(crate) this: Summary,
    /// What it is measured against.
    pub(crate) bare: Summary,
    /// What the ratio of the two should be.
    pub(crate) goal: Goal,
}

impl Line {
    fn cells(&self) -> [String; 8] {
        let (p50, p99) = (self.this.p50 / self.bare.p50, self.this.p99 / self.bare.p99);
        let pair = |side: Summary| format!("{} / {} {}", digits(side.p50), digits(side.p99), self.unit);
        [
            self.name.clone(),
            pair(self.this),
            pair(self.bare),
            format!("{p50:.2}"),
            format!("{p99:.2}"),
            self.goal.text(),
            self.goal.verdict(p50, p99).to_owned(),
            self.this.count.to_string(),
        ]
    }
}

/// As many digits as mean something.
fn digits(value: f64) -> String {
    match value.abs() {
        big if big >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// All lines as a Markdown table.
pub(crate) fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let head = ["what", "this p50 / p99", "bare p50 / p99", "ratio p50", "ratio p99", "goal", "met", "n"];
    table.set_header(head);
    for line in lines {
        table.add_row(line.cells());
    }
    for column in [1, 2, 3, 4, 7] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_percentiles_must_meet_the_goal() {
        assert_eq!(Goal::AtMost(1.3).verdict(1.3, 1.2), "yes");
        assert_eq!(Goal::AtMost(1.3).verdict(1.2, 1.4), "p50 only");
        assert_eq!(Goal::AtLeast(0.9).verdict(0.8, 0.95), "p99 only");
        assert_eq!(Goal::AtLeast(0.9).verdict(0.8, 0.8), "no");
        assert_eq!(Goal::Shown.verdict(9.0, 9.0), "");
    }

    #[test]
    fn a_line_tells_both_sides_and_their_ratio() {
        let side = |p50, p99| Summary { p50, p99, count: 7 };
        let line = Line {
            name: "exec".to_owned(),
            unit: "ms",
            this: side(13.0, 150.0),
            bare: side(10.0, 100.0),
            goal: Goal::AtMost(1.3),
        };
        let expected = ["exec", "13.0 / 150 ms", "10.0 / 100 ms", "1.30", "1.50", "≤ 1.3", "p50 only", "7"];
        assert_eq!(line.cells(), expected);
    }
}
