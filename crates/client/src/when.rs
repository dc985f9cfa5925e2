//! Serde adaptor for the times of the API: `#[serde(with = "when")]`, and `when::option` for those that may be absent.

use serde::{Deserializer, Serializer};
use time::OffsetDateTime;
use wrenn_core::timestamp;

pub(crate) fn serialize<S: Serializer>(time: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    timestamp::serialize(time, serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OffsetDateTime, D::Error> {
    time::serde::rfc3339::deserialize(deserializer)
}

pub(crate) mod option {
    use super::{Deserializer, OffsetDateTime, Serializer, timestamp};

    pub(crate) fn serialize<S: Serializer>(
        time: &Option<OffsetDateTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        timestamp::serialize_option(time, serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<OffsetDateTime>, D::Error> {
        time::serde::rfc3339::option::deserialize(deserializer)
    }
}
