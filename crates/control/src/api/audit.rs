//! `/v1/audit-logs`

use axum::extract::State;
use http::Uri;
use serde::Serialize;
use serde_json::value::RawValue;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use utoipa::ToSchema;
use wrenn_core::{ApiKeyId, AuditId, TeamId, UserId, timestamp};

use super::ApiError;
use super::docs::Failures;
use crate::audit::Scope;
use crate::auth::{Administrator, SignedIn};
use crate::state::App;
use crate::store::{AuditFilter, AuditRow, Role};

const DEFAULT_LIMIT: i64 = 50;
const MAX_LIMIT: i64 = 200;

/// Something that was done.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditEntry {
    /// `log-` and 25 characters.
    #[schema(value_type = String)]
    id: AuditId,
    /// `user`, `api_key` or `system`.
    actor_type: String,
    /// The account or the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    actor_id: Option<String>,
    /// Its name at the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    actor_name: Option<String>,
    /// What was acted on, such as `sandbox`.
    resource_type: String,
    /// Its id or name.
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_id: Option<String>,
    /// What was done, such as `create`.
    action: String,
    /// `team` or `admin`.
    scope: String,
    /// `success`, `info`, `warning` or `error`.
    status: String,
    /// What else is worth knowing.
    #[serde(skip_serializing_if = "is_empty")]
    #[schema(value_type = Object)]
    metadata: Box<RawValue>,
    #[serde(serialize_with = "timestamp::serialize")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
}

fn is_empty(object: &RawValue) -> bool {
    object.get() == "{}"
}

impl From<AuditRow> for AuditEntry {
    fn from(row: AuditRow) -> Self {
        let actor_id = row.actor_id.map(|id| match row.actor_type.as_str() {
            "api_key" => ApiKeyId::from_uuid(id).to_string(),
            _ => UserId::from_uuid(id).to_string(),
        });
        Self {
            id: row.id,
            actor_type: row.actor_type,
            actor_id,
            actor_name: row.actor_name,
            resource_type: row.resource_type,
            resource_id: row.resource_id,
            action: row.action,
            scope: row.scope,
            status: row.status,
            metadata: row.metadata,
            created_at: row.created_at,
        }
    }
}

/// A page of a log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditPage {
    /// Newest first.
    items: Vec<AuditEntry>,
    /// `before` of the next page; absent where this one is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_before: Option<String>,
    /// `before_id` of the next page; absent where this one is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    next_before_id: Option<AuditId>,
}

/// Parameters of both logs, for the description.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "the query is read by hand, because its filters may repeat")]
pub(super) struct AuditQuery {
    /// 1 to 200; default 50.
    limit: Option<i64>,
    /// Entries older than this time (RFC 3339).
    before: Option<String>,
    /// And those of that very time with a smaller id (`log-…`).
    before_id: Option<String>,
    /// Kinds of resources, repeated or separated by commas.
    resource_type: Option<String>,
    /// Actions, repeated or separated by commas.
    action: Option<String>,
}

#[derive(Debug, Default)]
struct Query {
    limit: i64,
    before: Option<(OffsetDateTime, Option<AuditId>)>,
    resources: Vec<String>,
    actions: Vec<String>,
}

impl Query {
    fn parse(query: &str) -> Result<Self, ApiError> {
        let mut read = Self { limit: DEFAULT_LIMIT, ..Self::default() };
        let (mut before, mut before_id) = (None, None);
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let words = || value.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned);
            match &*name {
                "limit" => read.limit = limit(&value)?,
                "before" if !value.is_empty() => before = Some(time(&value)?),
                "before_id" if !value.is_empty() => before_id = Some(entry(&value)?),
                "resource_type" => read.resources.extend(words()),
                "action" => read.actions.extend(words()),
                _ => {}
            }
        }
        read.before = match (before, before_id) {
            (None, Some(_)) => {
                return Err(ApiError::invalid("before_id needs before, the time of that entry"));
            }
            (before, id) => before.map(|time| (time, id)),
        };
        Ok(read)
    }

    async fn page(&self, app: &App, team: TeamId, scope: Scope) -> Result<axum::Json<AuditPage>, ApiError> {
        let filter = AuditFilter {
            team,
            scope,
            resources: &self.resources,
            actions: &self.actions,
            before: self.before,
            limit: self.limit,
        };
        let rows = app.store.audit_log(&filter).await?;
        let last = rows.last();
        // To the microsecond, as the database has it: entries of one second stay apart.
        let next_before = last.and_then(|row| row.created_at.format(&Rfc3339).ok());
        let next_before_id = last.map(|row| row.id);
        let items = rows.into_iter().map(AuditEntry::from).collect();
        Ok(axum::Json(AuditPage { items, next_before, next_before_id }))
    }
}

fn limit(value: &str) -> Result<i64, ApiError> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    // More digits than fit are still a positive integer.
    let number = if digits { value.parse::<u64>().unwrap_or(u64::MAX) } else { 0 };
    if number == 0 {
        return Err(ApiError::invalid("limit must be a positive integer"));
    }
    Ok(i64::try_from(number).unwrap_or(i64::MAX).min(MAX_LIMIT))
}

fn time(value: &str) -> Result<OffsetDateTime, ApiError> {
    let bad = || ApiError::invalid("before must be an RFC 3339 time, such as 2026-01-02T03:04:05Z");
    // A plus that was not escaped arrives as a blank.
    let time = OffsetDateTime::parse(&value.replace(' ', "+"), &Rfc3339).map_err(|_| bad())?;
    // Years that are beyond all dates in another zone are none to ask for.
    time.checked_to_offset(UtcOffset::UTC).filter(|time| (0..=9999).contains(&time.year())).ok_or_else(bad)
}

fn entry(value: &str) -> Result<AuditId, ApiError> {
    value.parse().map_err(|error| ApiError::invalid(format!("before_id: {error}")))
}

/// Read the team's audit log
///
/// Newest first. Entries of the scope `admin` are shown to the owner and the admins of the team only.
#[utoipa::path(get, path = "/v1/audit-logs", tag = "audit", security(("token" = [])), params(AuditQuery),
    responses((status = 200, body = AuditPage), Failures))]
pub(super) async fn of_team(
    State(app): State<App>,
    person: SignedIn,
    uri: Uri,
) -> Result<axum::Json<AuditPage>, ApiError> {
    let scope = match person.role {
        Some(Role::Owner | Role::Admin) => Scope::Admin,
        Some(Role::Member) => Scope::Team,
        None => return Err(ApiError::no_team()),
    };
    Query::parse(uri.query().unwrap_or_default())?.page(&app, person.team, scope).await
}

/// Read the platform's audit log
#[utoipa::path(get, path = "/v1/admin/audit-logs", tag = "administration", security(("token" = [])),
    params(AuditQuery), responses((status = 200, body = AuditPage), Failures))]
pub(super) async fn of_platform(
    State(app): State<App>,
    admin: Administrator,
    uri: Uri,
) -> Result<axum::Json<AuditPage>, ApiError> {
    let team = admin.caller().team;
    Query::parse(uri.query().unwrap_or_default())?.page(&app, team, Scope::Admin).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_repeated_or_separated_by_commas() {
        let query =
            Query::parse("resource_type=sandbox,api_key&resource_type=team&action=create&x=1").unwrap();
        assert_eq!(query.resources, ["sandbox", "api_key", "team"]);
        assert_eq!((query.actions, query.limit, query.before), (vec!["create".to_owned()], 50, None));
    }

    #[test]
    fn limits_are_clamped_and_bad_values_name_their_field() {
        assert_eq!(Query::parse("limit=1000").unwrap().limit, 200);
        assert_eq!(Query::parse("limit=99999999999999999999999").unwrap().limit, 200);
        for (bad, field) in [
            ("limit=0", "limit"),
            ("limit=-1", "limit"),
            ("limit=", "limit"),
            ("limit=1.5", "limit"),
            ("before=yesterday", "before"),
            ("before=2026-01-02T03:04:05", "before"),
            ("before=9999-12-31T23:59:59-01:00", "before"),
            ("before_id=log-1", "before_id"),
            ("before_id=log-0000000000000000000000000", "before_id"),
        ] {
            assert!(Query::parse(bad).unwrap_err().message.contains(field), "{bad}");
        }
    }

    #[test]
    fn a_cursor_keeps_its_microseconds_and_takes_any_zone() {
        let query =
            Query::parse("before=2026-01-02T03:04:05.123456Z&before_id=log-0000000000000000000000001");
        let (time, id) = query.unwrap().before.unwrap();
        assert_eq!((time.microsecond(), id.map(|id| id.uuid().as_u128())), (123_456, Some(1)));
        let zoned = Query::parse("before=2026-01-02T05:04:05+02:00").unwrap().before.unwrap().0;
        assert_eq!(timestamp::format(zoned), "2026-01-02T03:04:05Z");
    }
}
