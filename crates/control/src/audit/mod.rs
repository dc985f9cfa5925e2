//! What is recorded of what people, programs and the platform did.
//!
//! A [`Deed`] is typed: which log it goes to, who may read it and how it is called follow from what it is. The store
//! writes it in the transaction that does it.

mod actor;
mod deed;

pub use actor::Actor;
pub(crate) use actor::StoredActor;
pub use deed::{CapsuleAct, Deed, Entry, KINDS, Kind, Scope, Status};
