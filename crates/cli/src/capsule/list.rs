//! `wrenn capsule ls` and `wrenn capsule info`.

use clap::Args;
use time::OffsetDateTime;
use wrenn_client::Capsule;
use wrenn_core::timestamp;

use super::resolve;
use crate::context::Context;
use crate::output;

/// How to list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Write the ids and nothing else
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

/// Which capsule to show.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Id of the capsule, or the beginning of one
    id: String,
}

pub(super) async fn list(args: ListArgs, ctx: &Context) -> anyhow::Result<u8> {
    let capsules = ctx.client()?.list().await?;
    if ctx.json {
        output::json(&capsules)?;
    } else if args.quiet {
        let ids: String = capsules.iter().map(|c| format!("{}\n", c.id)).collect();
        output::write(ids.as_bytes())?;
    } else if capsules.is_empty() && ctx.interactive() {
        output::say("no capsules; `wrenn capsule create` makes one");
    } else {
        output::line(&capsule_table(&capsules, ctx.colour))?;
    }
    Ok(0)
}

pub(super) async fn info(args: InfoArgs, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.client()?;
    let capsule = client.get(resolve::one(&client, &args.id).await?).await?;
    if ctx.json {
        output::json(&capsule)?;
    } else {
        output::line(&output::table(&["FIELD", "VALUE"], fields(&capsule), ctx.colour))?;
    }
    Ok(0)
}

/// One row for each capsule.
pub(super) fn capsule_table(capsules: &[Capsule], colour: bool) -> String {
    let now = OffsetDateTime::now_utc();
    let row = |capsule: &Capsule| {
        vec![
            capsule.id.to_string(),
            capsule.status.to_string(),
            output::clean(&capsule.template),
            capsule.vcpus.to_string(),
            mib(capsule.memory_mb),
            mib(capsule.disk_size_mb),
            age((now - capsule.created_at).whole_seconds()),
            labels(capsule),
        ]
    };
    let header = ["ID", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "DISK", "AGE", "LABELS"];
    output::table(&header, capsules.iter().map(row).collect(), colour)
}

fn fields(capsule: &Capsule) -> Vec<Vec<String>> {
    let timeout = match capsule.timeout_sec {
        0 => "never".to_owned(),
        seconds => format!("after {seconds} s of inactivity"),
    };
    let mut disk = mib(capsule.disk_size_mb);
    if let Some(used) = capsule.disk_used_mb {
        disk = format!("{disk}, {} used", mib(used));
    }
    let time = |at: Option<OffsetDateTime>| at.map_or_else(|| "-".to_owned(), timestamp::format);
    let mut rows = vec![
        ("id", capsule.id.to_string()),
        ("status", capsule.status.to_string()),
        ("template", output::clean(&capsule.template)),
        ("vcpus", capsule.vcpus.to_string()),
        ("memory", mib(capsule.memory_mb)),
        ("disk", disk),
        ("pauses", timeout),
        ("created", timestamp::format(capsule.created_at)),
        ("started", time(capsule.started_at)),
        ("last active", time(capsule.last_active_at)),
        ("last updated", timestamp::format(capsule.last_updated)),
    ];
    let labels = capsule.metadata.iter().map(|(key, value)| ("label", format!("{key}={value}")));
    rows.extend(labels.map(|(name, text)| (name, output::clean(&text))));
    rows.into_iter().map(|(name, text)| vec![name.to_owned(), text]).collect()
}

/// The caller's labels; those of the platform are shown by `info` only.
fn labels(capsule: &Capsule) -> String {
    let own = |(key, _): &(&String, &String)| !wrenn_core::metadata::SYSTEM_KEYS.contains(&key.as_str());
    let pairs = capsule.metadata.iter().filter(own).map(|(key, value)| format!("{key}={value}"));
    output::clean(&pairs.collect::<Vec<_>>().join(","))
}

fn mib(count: u32) -> String {
    match count {
        0 => "-".to_owned(),
        n if n % 1024 == 0 => format!("{} GiB", n / 1024),
        n => format!("{n} MiB"),
    }
}

/// A duration in its largest whole unit.
fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..86400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capsule() -> Capsule {
        serde_json::from_value(serde_json::json!({
            "id": "cl-6dfzh5ik5vyvhrb0t267ptnew", "status": "running", "template": "minimal", "vcpus": 2,
            "memory_mb": 512, "timeout_sec": 90, "disk_size_mb": 5120, "disk_used_mb": 700,
            "created_at": "2026-01-02T03:04:05Z", "last_updated": "2026-01-02T03:04:06Z",
            "metadata": {"env": "prod\u{1b}[2J", "kernel_version": "6.12"},
        }))
        .unwrap()
    }

    #[test]
    fn the_table_shows_own_labels_and_no_control_characters() {
        let text = capsule_table(&[capsule()], false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ID ") && lines[0].ends_with("LABELS"));
        let row: Vec<&str> = lines[1].split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(row[..6], ["cl-6dfzh5ik5vyvhrb0t267ptnew", "running", "minimal", "2", "512 MiB", "5 GiB"]);
        assert_eq!(row[7], "env=prod\u{fffd}[2J");
    }

    #[test]
    fn info_shows_everything_and_dashes_for_what_is_unknown() {
        let text = output::table(&["FIELD", "VALUE"], fields(&capsule()), false);
        for line in
            ["5 GiB, 700 MiB used", "after 90 s of inactivity", "started        -", "kernel_version=6.12"]
        {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn ages_use_their_largest_whole_unit() {
        assert_eq!(
            [-5, 59, 60, 7199, 7200, 86399, 172_800].map(age),
            ["0s", "59s", "1m", "1h", "2h", "23h", "2d"]
        );
    }
}
