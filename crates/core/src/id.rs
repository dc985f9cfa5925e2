//! Public identifiers: a prefix that names the kind, then the UUID in base 36.
//!
//! The 25 characters are the UUID's 16 bytes read as one big-endian unsigned integer, written with the
//! digits `0-9a-z` and left-padded with `0`. An id therefore sorts, copies with a double click, and is a valid
//! DNS label together with its prefix.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Characters of the base-36 part: the smallest count that holds 2^128 - 1.
pub const ENCODED_LEN: usize = 25;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Why a string is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The prefix belongs to another kind, or is missing.
    #[error("an id of this kind begins with `{expected}`")]
    Prefix {
        /// The prefix this kind has.
        expected: &'static str,
    },
    /// The part after the prefix is not 25 characters long.
    #[error("an id has {ENCODED_LEN} characters after `{prefix}`, this one has {found}")]
    Length {
        /// The prefix this kind has.
        prefix: &'static str,
        /// How many characters were there.
        found: usize,
    },
    /// A character outside `0-9a-z`, or a value of 2^128 or more.
    #[error("an id holds only the characters 0-9 and a-z, and stands for a 128-bit number")]
    Value,
}

/// Digits of a part of an id that fits into 64 bits: 36^12 < 2^64.
const PART: usize = 12;

/// Writes a UUID as 25 base-36 digits.
pub fn encode(uuid: Uuid) -> String {
    // Three divisions of 128 bits in place of one for each digit: a page of a list has hundreds of ids.
    let part = 36u128.pow(12);
    let mut value = uuid.as_u128();
    let mut out = [b'0'; ENCODED_LEN];
    for digits in out.rchunks_mut(PART) {
        let mut low = u64::try_from(value % part).unwrap_or_default();
        value /= part;
        for slot in digits.iter_mut().rev() {
            *slot = DIGITS[usize::try_from(low % 36).unwrap_or_default()];
            low /= 36;
        }
    }
    String::from_utf8(out.to_vec()).unwrap_or_default()
}

/// Reads 25 base-36 digits back into a UUID; `None` where they are not the encoding of one.
pub fn decode(text: &str) -> Option<Uuid> {
    if text.len() != ENCODED_LEN {
        return None;
    }
    text.bytes()
        .try_fold(0u128, |value, byte| {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'z' => byte - b'a' + 10,
                _ => return None,
            };
            value.checked_mul(36)?.checked_add(u128::from(digit))
        })
        .map(Uuid::from_u128)
}

macro_rules! id_types {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// What every id of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// A new random (version 4) id.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The id that stands for this UUID.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID as the database stores it.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let rest = text.strip_prefix($prefix).ok_or(IdError::Prefix { expected: $prefix })?;
                let found = rest.chars().count();
                if found != ENCODED_LEN {
                    return Err(IdError::Length { prefix: $prefix, found });
                }
                decode(rest).map(Self).ok_or(IdError::Value)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

id_types! {
    /// A capsule: one microVM and what belongs to it.
    CapsuleId = "cl-";
    /// A person's account.
    UserId = "usr-";
    /// A team, which owns capsules, templates and keys.
    TeamId = "team-";
    /// An API key (its row, not its secret).
    ApiKeyId = "key-";
    /// A machine that runs capsules.
    HostId = "host-";
    /// A one-use token with which a machine registers as a host.
    HostTokenId = "htok-";
    /// A token with which a host renews its credentials.
    HostRefreshTokenId = "hrt-";
    /// An entry of the audit log.
    AuditId = "log-";
}

impl TeamId {
    /// The platform's own team, which nobody is a member of.
    pub const PLATFORM: Self = Self(Uuid::nil());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn encodes_the_published_vectors() {
        let mid: Uuid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8".parse().unwrap();
        assert_eq!(encode(Uuid::nil()), "0".repeat(25));
        assert_eq!(encode(mid), "6dfzh5ik5vyvhrb0t267ptnew");
        assert_eq!(encode(Uuid::max()), "f5lxx1zz5pnorynqglhzmsp33");
    }

    #[test]
    fn refuses_what_is_not_an_id() {
        let good = CapsuleId::random().to_string();
        assert_eq!(good.parse::<TeamId>(), Err(IdError::Prefix { expected: "team-" }));
        assert_eq!("cl-abc".parse::<CapsuleId>(), Err(IdError::Length { prefix: "cl-", found: 3 }));
        assert_eq!(good.to_uppercase().replace("CL-", "cl-").parse::<CapsuleId>(), Err(IdError::Value));
        assert_eq!("cl-f5lxx1zz5pnorynqglhzmsp34".parse::<CapsuleId>(), Err(IdError::Value));
        assert_eq!(format!("cl-{}", "z".repeat(25)).parse::<CapsuleId>(), Err(IdError::Value));
        assert_eq!(format!("cl-{}", "é".repeat(25)).parse::<CapsuleId>(), Err(IdError::Value));
    }

    proptest! {
        #[test]
        fn every_uuid_survives_the_round_trip(value: u128) {
            let uuid = Uuid::from_u128(value);
            prop_assert_eq!(decode(&encode(uuid)), Some(uuid));
        }

        #[test]
        fn decoding_never_panics_and_is_canonical(text in "\\PC{0,40}") {
            if let Some(uuid) = decode(&text) {
                prop_assert_eq!(encode(uuid), text);
            }
        }
    }
}
