//! The operator's commands: running the platform and its roles, and looking after it.

pub mod children;
pub mod doctor;
pub mod down;
pub mod keys;
pub mod logging;
pub mod people;
pub mod postgres;
pub mod process;
pub mod roles;
pub mod secrets;
pub mod up;

use crate::config::Settings;
use crate::output::{self, Colour};

/// Prints a doctor's report: for people as a list, for programs as JSON.
pub fn print_report(report: &doctor::Report, settings: &Settings, json: bool) -> bool {
    if json {
        let value = serde_json::json!({ "checks": report.checks, "settings": settings.entries() });
        println!("{value:#}");
        return !report.is_fatal();
    }
    let colour = output::may_colour(std::io::IsTerminal::is_terminal(&std::io::stdout()));
    for check in &report.checks {
        let (mark, paint) = match check.level {
            doctor::Level::Ok => ("ok     ", Colour::Green),
            doctor::Level::Warning => ("warning", Colour::Yellow),
            doctor::Level::Missing => ("MISSING", Colour::Red),
        };
        println!("{}  {:<15} {}", output::paint(mark, paint, colour), check.name, check.detail);
        if let Some(cure) = &check.cure {
            println!("{:26}mend it with: {cure}", "");
        }
    }
    println!("\nSettings in force:");
    for entry in settings.entries() {
        println!("  {:<24} {:<36} ({})", entry.name, entry.value, entry.source);
    }
    !report.is_fatal()
}
