//! Files of the capsule, as the user of the call sees them.

mod credentials;
mod entry;
mod operations;
mod service;
mod watch;

pub(crate) use entry::write_metadata;
pub(crate) use operations::make_parents;
pub(crate) use service::Files;

/// Prefix of the extended attributes that hold what a caller attached to a file.
pub(crate) const METADATA_PREFIX: &str = "user.e2b.";
