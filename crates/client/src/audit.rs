//! The audit log: who did what.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::client::{Client, segment};
use crate::error::Error;
use crate::types::null_as_default;
use crate::when;

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Its id (`log-…`).
    pub id: String,
    /// `user`, `api_key` or `system`.
    pub actor_type: String,
    /// Id of the user or key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_id: Option<String>,
    /// Name of the user or key at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_name: Option<String>,
    /// Kind of the thing that it was done to, for example `sandbox`.
    pub resource_type: String,
    /// Id or name of the thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
    /// What was done, for example `create`.
    pub action: String,
    /// `team` or `admin`: who may read it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub scope: String,
    /// `success`, `info`, `warning` or `error`.
    pub status: String,
    /// What more is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// When.
    #[serde(with = "when")]
    pub created_at: OffsetDateTime,
}

/// Which entries are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditQuery {
    /// How many, at most 200; the server's default is 50.
    pub limit: Option<u32>,
    /// Only those older than this RFC 3339 time.
    pub before: Option<String>,
    /// With `before`: of the same time, those with a smaller id too.
    pub before_id: Option<String>,
    /// Only about these kinds of things; empty for all.
    pub resource_types: Vec<String>,
    /// Only these actions; empty for all.
    pub actions: Vec<String>,
}

/// Some entries, newest first, and where the next ones begin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditPage {
    /// The entries.
    #[serde(default, deserialize_with = "null_as_default")]
    pub items: Vec<AuditEntry>,
    /// `before` of the next page, as precise as the server keeps time. Absent on an empty page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_before: Option<String>,
    /// `before_id` of the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_before_id: Option<String>,
}

impl AuditQuery {
    /// The query for what follows a page; `None` where nothing can follow.
    pub fn after(&self, page: &AuditPage) -> Option<Self> {
        let before = page.next_before.clone().filter(|_| !page.items.is_empty())?;
        Some(Self { before: Some(before), before_id: page.next_before_id.clone(), ..self.clone() })
    }

    fn to_query(&self) -> String {
        let one = |name: &'static str, value: &Option<String>| value.clone().map(|value| (name, value));
        let many =
            |name: &'static str, values: &[String]| values.iter().cloned().map(move |v| (name, v)).collect();
        let types: Vec<_> = many("resource_type", &self.resource_types);
        let actions: Vec<_> = many("action", &self.actions);
        let pairs = one("limit", &self.limit.map(|limit| limit.to_string()))
            .into_iter()
            .chain(one("before", &self.before))
            .chain(one("before_id", &self.before_id))
            .chain(types)
            .chain(actions);
        let query: Vec<String> = pairs.map(|(name, value)| format!("{name}={}", segment(&value))).collect();
        if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) }
    }
}

impl Client {
    /// The log of the team that the person's token speaks for.
    ///
    /// # Errors
    /// `unauthorized` for an API key, and for a token that has ended.
    pub async fn audit_log(&self, query: &AuditQuery) -> Result<AuditPage, Error> {
        self.get_json(&self.url(&format!("/v1/audit-logs{}", query.to_query()))).await
    }

    /// The log of the platform.
    ///
    /// # Errors
    /// `forbidden` for everybody but those who run the platform.
    pub async fn admin_audit_log(&self, query: &AuditQuery) -> Result<AuditPage, Error> {
        self.get_json(&self.url(&format!("/v1/admin/audit-logs{}", query.to_query()))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_repeat_and_the_cursor_follows_the_last_entry() {
        let query = AuditQuery {
            limit: Some(2),
            resource_types: vec!["team".into(), "a&b".into()],
            actions: vec!["create".into()],
            ..AuditQuery::default()
        };
        assert_eq!(query.to_query(), "?limit=2&resource_type=team&resource_type=a%26b&action=create");
        assert_eq!(AuditQuery::default().to_query(), "");

        let page: AuditPage = serde_json::from_value(serde_json::json!({
            "items": [{"id": "log-1", "actor_type": "system", "actor_id": null, "resource_type": "team",
                "action": "create", "status": "info", "metadata": null, "created_at": "2026-01-02T03:04:05Z"}],
            "next_before": "2026-01-02T03:04:05.123456Z", "next_before_id": "log-1",
        }))
        .unwrap();
        let next = query.after(&page).unwrap();
        assert_eq!(
            next.to_query(),
            "?limit=2&before=2026-01-02T03%3A04%3A05.123456Z&before_id=log-1&resource_type=team&resource_type=a%26b&action=create"
        );
        let last: AuditPage = serde_json::from_str(r#"{"items": null}"#).unwrap();
        assert_eq!(next.after(&last), None);
    }
}
