//! Times as the API writes them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339 in UTC with second precision and a `Z`, for example `2026-01-02T03:04:05Z`.
pub fn format(time: OffsetDateTime) -> String {
    let utc = time.to_offset(time::UtcOffset::UTC);
    let whole = utc.replace_nanosecond(0).unwrap_or(utc);
    whole.format(&Rfc3339).unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
}

/// Serde adaptor for [`OffsetDateTime`] fields: `#[serde(serialize_with = "wrenn_core::timestamp::serialize")]`.
///
/// # Errors
/// What the serializer says.
pub fn serialize<S: serde::Serializer>(time: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*time))
}

/// [`serialize`] for optional fields; an absent time is written as `null`, so skip it where it should be absent.
///
/// # Errors
/// What the serializer says.
pub fn serialize_option<S: serde::Serializer>(
    time: &Option<OffsetDateTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serialize(time, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_utc_with_zone_and_whole_seconds() {
        let time = time::macros::datetime!(2026-01-02 05:04:05.678 +02:00);
        assert_eq!(format(time), "2026-01-02T03:04:05Z");
    }
}
