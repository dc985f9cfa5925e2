//! `wrenn audit`: who did what.

use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wrenn_client::{AuditEntry, AuditPage, AuditQuery, Client, Error as ClientError};
use wrenn_core::timestamp;

use crate::context::Context;
use crate::output;

/// Most entries that the API gives at a time.
const PAGE: u32 = 200;

/// Which entries to show.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// How many entries to show, the newest first
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Only about this kind of thing, such as sandbox or member (repeatable)
    #[arg(long, value_name = "TYPE")]
    resource_type: Vec<String>,
    /// Only this action, such as create or delete (repeatable)
    #[arg(long, value_name = "ACTION")]
    action: Vec<String>,
    /// Only entries older than this time (RFC 3339, such as 2026-01-02T03:04:05Z)
    #[arg(long, value_name = "TIME", value_parser = time)]
    before: Option<String>,
    /// Show all entries
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

fn time(text: &str) -> Result<String, String> {
    match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected a time with zone, such as 2026-01-02T03:04:05Z".to_owned()),
    }
}

/// Shows the log of the team that the person is signed in to.
///
/// # Errors
/// Where nobody is signed in, or the platform refuses.
pub async fn run(args: AuditArgs, ctx: &Context) -> anyhow::Result<u8> {
    let client = ctx.person()?.client;
    show(&client, args, Log::Team, ctx).await
}

/// A log.
#[derive(Debug, Clone, Copy)]
pub enum Log {
    /// That of the team that the token speaks for.
    Team,
    /// That of the platform.
    Platform,
}

/// Shows a log.
///
/// # Errors
/// Where the platform refuses.
pub async fn show(client: &Client, args: AuditArgs, log: Log, ctx: &Context) -> anyhow::Result<u8> {
    let wanted = if args.all { usize::MAX } else { usize::try_from(args.limit)? };
    let query = AuditQuery {
        limit: Some(if args.all { PAGE } else { args.limit.min(PAGE) }),
        before: args.before,
        before_id: None,
        resource_types: args.resource_type,
        actions: args.action,
    };
    let entries = collect(client, log, query, wanted).await?;
    if ctx.json {
        output::json(&entries)?;
    } else {
        output::line(&table(&entries, ctx.colour))?;
    }
    Ok(0)
}

/// The entries of as many pages as are needed.
async fn collect(
    client: &Client,
    log: Log,
    query: AuditQuery,
    wanted: usize,
) -> Result<Vec<AuditEntry>, ClientError> {
    let mut entries: Vec<AuditEntry> = Vec::new();
    let mut next = Some(query);
    while let Some(query) = next
        && entries.len() < wanted
    {
        let page: AuditPage = match log {
            Log::Team => client.audit_log(&query).await?,
            Log::Platform => client.admin_audit_log(&query).await?,
        };
        // A cursor that stands still would never come to an end.
        next = query.after(&page).filter(|following| *following != query);
        entries.extend(page.items);
    }
    entries.truncate(wanted);
    Ok(entries)
}

fn table(entries: &[AuditEntry], colour: bool) -> String {
    let row = |entry: &AuditEntry| {
        let actor = entry.actor_name.as_ref().or(entry.actor_id.as_ref()).unwrap_or(&entry.actor_type);
        vec![
            timestamp::format(entry.created_at),
            output::clean(actor),
            output::clean(&format!("{} {}", entry.resource_type, entry.action)),
            entry.resource_id.as_deref().map_or_else(|| "-".to_owned(), output::clean),
            output::clean(&entry.status),
            details(entry),
        ]
    };
    let header = ["TIME", "WHO", "WHAT", "TO WHAT", "STATUS", "DETAILS"];
    output::table(&header, entries.iter().map(row).collect(), colour)
}

/// What more is known, as `key=value`.
fn details(entry: &AuditEntry) -> String {
    let Some(metadata) = &entry.metadata else { return String::new() };
    let pair = |(key, value): (&String, &serde_json::Value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        output::clean(&format!("{key}={text}"))
    };
    metadata.iter().map(pair).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_who_did_what_to_what_and_nothing_that_a_terminal_obeys() {
        let entry = |value| serde_json::from_value::<AuditEntry>(value).unwrap();
        let entries = [
            entry(serde_json::json!({"id": "log-1", "actor_type": "user", "actor_name": "A\u{1b}[m",
                "resource_type": "member", "resource_id": "usr-1", "action": "add", "status": "success",
                "metadata": {"email": "b@c", "count": 2}, "created_at": "2026-01-02T03:04:05Z"})),
            entry(serde_json::json!({"id": "log-2", "actor_type": "system", "resource_type": "host",
                "action": "marked_up", "status": "info", "created_at": "2026-01-02T03:04:05Z"})),
        ];
        let text = table(&entries, false);
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        let wanted =
            ["2026-01-02T03:04:05Z", "A\u{fffd}[m", "member add", "usr-1", "success", "count=2 email=b@c"];
        assert_eq!(rows[1], wanted);
        assert_eq!(rows[2], ["2026-01-02T03:04:05Z", "system", "host marked_up", "-", "info"]);
        assert!(time("2026-01-02T03:04:05+01:00").is_ok() && time("yesterday").is_err());
    }
}
