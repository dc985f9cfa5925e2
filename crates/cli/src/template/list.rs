//! `wrenn template ls`.

use clap::{Args, ValueEnum};
use wrenn_client::{Template, TemplateKind};
use wrenn_core::timestamp;

use crate::context::Context;
use crate::output;

/// What a template holds, as a flag takes it.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// A disk
    Base,
    /// A disk with the memory and the processes on it
    Snapshot,
}

/// How to list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only templates of one type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Kind>,
    /// Write the names and nothing else
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

pub(super) async fn run(args: ListArgs, ctx: &Context) -> anyhow::Result<u8> {
    let kind = args.kind.map(|kind| match kind {
        Kind::Base => TemplateKind::Base,
        Kind::Snapshot => TemplateKind::Snapshot,
    });
    let templates = ctx.client()?.list_templates(kind).await?;
    if ctx.json {
        output::json(&templates)?;
    } else if args.quiet {
        let names: String = templates.iter().map(|template| format!("{}\n", template.name)).collect();
        output::write(names.as_bytes())?;
    } else if templates.is_empty() && ctx.interactive() {
        output::say("no such templates; `wrenn template create CAPSULE` makes one");
    } else {
        output::line(&template_table(&templates, ctx.colour))?;
    }
    Ok(0)
}

/// One row for each template.
pub(super) fn template_table(templates: &[Template], colour: bool) -> String {
    let count = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let row = |template: &Template| {
        vec![
            output::clean(&template.name),
            template.kind.as_str().to_owned(),
            count(template.vcpus),
            template.memory_mb.map_or_else(|| "-".to_owned(), |mb| format!("{mb} MiB")),
            size(template.size_bytes),
            if template.platform { "platform" } else { "team" }.to_owned(),
            timestamp::format(template.created_at),
        ]
    };
    let header = ["NAME", "TYPE", "VCPUS", "MEMORY", "SIZE", "OWNER", "CREATED"];
    output::table(&header, templates.iter().map(row).collect(), colour)
}

/// Bytes as the tables show them.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        bytes => format!("{} MiB", bytes.div_ceil(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_dashes_for_what_is_not_known() {
        let templates: Vec<Template> = serde_json::from_value(serde_json::json!([
            {"name": "mine", "type": "snapshot", "vcpus": 2, "memory_mb": 768, "size_bytes": 3_000_000,
                "created_at": "2026-01-02T03:04:05Z"},
            {"name": "minimal", "type": "base", "size_bytes": 0, "created_at": "2026-01-01T03:04:05Z",
                "platform": true},
        ]))
        .unwrap();
        let text = template_table(&templates, false);
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("   ").map(str::trim).filter(|c| !c.is_empty()).collect())
            .collect();
        assert_eq!(rows[1], ["mine", "snapshot", "2", "768 MiB", "3 MiB", "team", "2026-01-02T03:04:05Z"]);
        assert_eq!(rows[2], ["minimal", "base", "-", "-", "-", "platform", "2026-01-01T03:04:05Z"]);
    }
}
