//! What the devices of an owner are called.
//!
//! ```text
//!   <prefix>-<owner>                               the device that the VMM has open
//!   <prefix>-<owner>-<16 digits of the layer>      a layer over what is below it
//!   <prefix>-<owner>-<16 digits>+<sectors, hex>    what is below that layer, made longer
//! ```
//!
//! Prefix and owner may both have hyphens, so a name alone does not say where one ends. The device's other name, the
//! UUID that the kernel keeps of it, does: nothing is taken for ours that does not carry it.

use super::DeviceNumber;
use crate::{DiskError, chain};

/// Characters of a prefix. With those of an owner, names stay below the kernel's limit of 127, UUIDs below 128.
const MOST_PREFIX: usize = 32;
const MOST_OWNER: usize = 60;

/// What a device is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// What the VMM has open.
    Top,
    /// The layer with this id over what is below it.
    Layer(String),
    /// What is below the layer with this id, made longer.
    Extension(String, u64),
}

impl Role {
    /// What comes behind the owner, without the hyphen.
    fn suffix(&self) -> String {
        match self {
            Self::Top => String::new(),
            Self::Layer(id) => id.clone(),
            Self::Extension(id, sectors) => format!("{id}+{sectors:x}"),
        }
    }

    fn parse(suffix: &str) -> Option<Self> {
        match suffix.split_once('+') {
            None if suffix.is_empty() => Some(Self::Top),
            None => chain::is_id(suffix).then(|| Self::Layer(suffix.to_owned())),
            Some((id, sectors)) => {
                let sectors = u64::from_str_radix(sectors, 16).ok()?;
                chain::is_id(id).then(|| Self::Extension(id.to_owned(), sectors))
            }
        }
    }
}

/// A device of this installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) number: DeviceNumber,
    pub(super) owner: String,
    pub(super) role: Role,
    pub(super) suspended: bool,
}

/// The device-mapper's name of a device.
pub(super) fn name(prefix: &str, owner: &str, role: &Role) -> String {
    match role {
        Role::Top => format!("{prefix}-{owner}"),
        _ => format!("{prefix}-{owner}-{}", role.suffix()),
    }
}

/// The UUID of a device, of characters that `dmsetup` takes as they are.
pub(super) fn uuid(prefix: &str, owner: &str, role: &Role) -> String {
    format!("wrenn:{prefix}:{owner}:{}", role.suffix())
}

/// Owner and role, where a UUID is one of this prefix.
pub(super) fn parse_uuid(prefix: &str, uuid: &str) -> Option<(String, Role)> {
    let rest = uuid.strip_prefix("wrenn:")?.strip_prefix(prefix)?.strip_prefix(':')?;
    let (owner, suffix) = rest.split_once(':')?;
    Some((owner.to_owned(), Role::parse(suffix)?))
}

/// Refuses a prefix that cannot be one.
pub(super) fn check_prefix(prefix: &str) -> Result<(), DiskError> {
    check(prefix, MOST_PREFIX)
}

/// Refuses an owner's name that cannot be one, or could be mistaken for that of a layer of another owner.
pub(super) fn check_owner(owner: &str) -> Result<(), DiskError> {
    check(owner, MOST_OWNER)?;
    match owner.rsplit_once('-') {
        Some((_, end)) if chain::is_id(end) => {
            Err(DiskError::BadName { name: owner.to_owned(), most: MOST_OWNER })
        }
        _ => Ok(()),
    }
}

fn check(name: &str, most: usize) -> Result<(), DiskError> {
    let fits = (1..=most).contains(&name.len());
    match fits && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        true => Ok(()),
        false => Err(DiskError::BadName { name: name.to_owned(), most }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef";

    #[test]
    fn a_uuid_tells_whose_a_device_is_and_what_it_is_for() {
        let roles = [Role::Top, Role::Layer(ID.to_owned()), Role::Extension(ID.to_owned(), 1 << 34)];
        for role in roles {
            let uuid = uuid("wrenn-a", "b-c", &role);
            assert_eq!(parse_uuid("wrenn-a", &uuid), Some(("b-c".to_owned(), role)));
            assert_eq!(parse_uuid("wrenn", &uuid), None);
        }
        for other in
            ["", "LVM-abc", "wrenn:wrenn-a:b", "wrenn:wrenn-a:b:x", "wrenn:wrenn-a:b:0123456789abcdef+"]
        {
            assert_eq!(parse_uuid("wrenn-a", other), None, "{other}");
        }
    }

    #[test]
    fn the_longest_names_fit_into_what_the_kernel_has_for_them() {
        let (prefix, owner) = ("p".repeat(MOST_PREFIX), "o".repeat(MOST_OWNER));
        assert!(check_prefix(&prefix).is_ok() && check_owner(&owner).is_ok());
        let role = Role::Extension(ID.to_owned(), 8 << 40 >> 9);
        assert!(name(&prefix, &owner, &role).len() <= 127 && uuid(&prefix, &owner, &role).len() <= 128);
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for bad in ["", "a/b", "a b", "ä", &"a".repeat(61), "a-0123456789abcdef"] {
            assert!(check_owner(bad).is_err(), "{bad}");
        }
        assert!(check_owner("0123456789abcdef").is_ok() && check_owner("019a-7c").is_ok());
    }
}
