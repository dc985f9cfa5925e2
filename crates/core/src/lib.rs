//! The vocabulary of the platform: ids, capsule states and their legal transitions, shapes, names, limits.
//!
//! Nothing here does I/O. Every other crate may use it, and it uses none of them.

pub mod id;
pub mod limits;
pub mod metadata;
pub mod name;
pub mod shape;
pub mod state;
pub mod timestamp;

pub use id::{ApiKeyId, AuditId, CapsuleId, HostId, IdError, TeamId, UserId};
pub use metadata::{Metadata, MetadataError};
pub use name::{NameError, SafeName};
pub use shape::{Shape, ShapeError, TemplateShape};
pub use state::{CapsuleStatus, IllegalTransition};
