//! A person's own account.

use http::StatusCode;

use super::session::{Issued, reissue};
use crate::api::ApiError;
use crate::auth::SignedIn;
use crate::capsules;
use crate::state::App;
use crate::store::{Profile, UserChange};

/// What a person sees of their account.
#[derive(Debug)]
pub(crate) struct Me {
    pub(crate) person: SignedIn,
    pub(crate) profile: Profile,
}

pub(crate) async fn me(app: &App, person: SignedIn) -> Result<Me, ApiError> {
    let profile = app.store.profile(person.user).await?.ok_or_else(ApiError::account_deactivated)?;
    Ok(Me { person, profile })
}

/// Renames a person; their new token says so.
pub(crate) async fn rename(app: &App, person: &SignedIn, name: &str) -> Result<Issued, ApiError> {
    app.store.rename_user(person.user, name).await?;
    reissue(app, person).await
}

/// Ends an account, with all that only its person has.
pub(crate) async fn delete(app: &App, person: &SignedIn) -> Result<(), ApiError> {
    let stopped = match app.store.delete_user(person.user, &person.actor()).await? {
        UserChange::Done(stopped) => stopped,
        UserChange::OwnsTeam => {
            return Err(ApiError::special(
                StatusCode::CONFLICT,
                "owns_team_with_members",
                "you own a team that others are in; remove them or delete the team first",
            ));
        }
        UserChange::LastAdmin => {
            return Err(ApiError::conflict(
                "you are the last administrator of the platform; make somebody else one first",
            ));
        }
        UserChange::Unknown | UserChange::NotActive => return Err(ApiError::account_deactivated()),
    };
    capsules::let_go(app, stopped);
    tracing::info!(user.id = %person.user, "account {} was deleted by its person", person.user);
    Ok(())
}
