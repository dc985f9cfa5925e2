//! Accounts: signing up, signing in, and ending it.

mod fields;
mod password;
mod profile;
mod provider;
mod session;
mod signup;
mod sweep;

pub(crate) use fields::{email, password as password_field, person_name, required, team_name};
pub(crate) use password::{change, confirm_reset, request_reset};
pub(crate) use profile::{Me, delete, me, rename};
pub(crate) use provider::{Callback, Intent, Landing, begin, callback, connect, disconnect};
pub(crate) use session::{Issued, login, switch};
pub(crate) use signup::{activate, sign_up};
pub(crate) use sweep::sweep;

use wrenn_core::TeamId;

use crate::secret;

/// What a new team is made of; borrowed as [`crate::store::NewTeam`].
#[derive(Debug)]
pub(crate) struct TeamSeed {
    id: TeamId,
    name: String,
    slug: String,
}

impl TeamSeed {
    pub(crate) fn named(name: impl Into<String>) -> Self {
        let slug = format!("{}-{}", secret::random_hex::<3>(), secret::random_hex::<3>());
        Self { id: TeamId::random(), name: name.into(), slug }
    }

    /// The first team of a person.
    pub(crate) fn of(person: &str) -> Self {
        Self::named(format!("{person}'s Team"))
    }

    pub(crate) fn as_new(&self) -> crate::store::NewTeam<'_> {
        crate::store::NewTeam { id: self.id, name: &self.name, slug: &self.slug }
    }
}
