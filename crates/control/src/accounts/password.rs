//! Changing a password, and choosing a new one for a forgotten one.

use http::StatusCode;
use time::{Duration, OffsetDateTime};
use wrenn_mail::Letter;

use crate::api::ApiError;
use crate::auth::{ClientAddress, SignedIn};
use crate::post::SealedLetter;
use crate::secret;
use crate::state::App;
use crate::store::{NewToken, StoreError, UserStatus};

/// Of a reset link.
const LIFE: Duration = Duration::minutes(15);
/// Of a letter that only tells of something.
const NOTICE_LIFE: Duration = Duration::days(1);
/// Reset links of one person that are in force at a time.
const MOST_RESETS: i64 = 3;

/// Replaces the password. Who has one proves that they know it, who has none types the new one twice.
pub(crate) async fn change(
    app: &App,
    person: &SignedIn,
    client: ClientAddress,
    current: Option<String>,
    confirmation: Option<String>,
    new: String,
) -> Result<(), ApiError> {
    let old = app.store.password_hash(person.user).await?;
    if old.is_some() {
        let current = super::required(current, "current_password")?;
        app.limits.account(&person.email, client)?;
        if !app.passwords.matches(current, old.clone()).await.map_err(ApiError::from_hash)? {
            tracing::warn!(user.id = %person.user, "refused to change a password: the current one is wrong");
            let message = "the current password is wrong";
            return Err(ApiError::special(StatusCode::UNAUTHORIZED, "wrong_password", message));
        }
        app.limits.forgive(&person.email, client);
    } else if super::required(confirmation, "confirm_password")? != new {
        return Err(ApiError::invalid("confirm_password differs from new_password"));
    }
    let hash = app.passwords.hash(new).await.map_err(ApiError::from_hash)?;
    let notice = notice(app, &person.email, &person.name);
    let mail = notice.as_ref().map(|letter| letter.as_new());
    if !app.store.set_password(person.user, old.as_deref(), &hash, mail.as_ref()).await? {
        return Err(ApiError::conflict("the password was changed by another request meanwhile; try again"));
    }
    app.post.nudge();
    Ok(())
}

fn notice(app: &App, email: &str, name: &str) -> Option<SealedLetter> {
    app.post.seal(&app.vault, email, &Letter::PasswordChanged { name: name.to_owned() }, NOTICE_LIFE)
}

/// Mails a reset link where the address has an active account. Runs by itself: the answer is there before it is known
/// whether there is such an account.
pub(crate) fn request_reset(app: &App, email: String) {
    let work = app.clone();
    app.tasks.spawn(async move {
        if let Err(error) = post_reset(&work, &email).await {
            tracing::warn!(%error, "a password reset could not be prepared");
        }
    });
}

async fn post_reset(app: &App, email: &str) -> Result<(), StoreError> {
    let Some(login) = app.store.login(email).await? else { return Ok(()) };
    if login.status != UserStatus::Active {
        return Ok(());
    }
    let token = secret::random_hex::<16>();
    let letter = Letter::PasswordReset {
        name: login.name,
        link: format!("{}/reset-password?token={token}", app.config.dashboard_url),
        minutes: u32::try_from(LIFE.whole_minutes()).unwrap_or_default(),
    };
    let Some(sealed) = app.post.seal(&app.vault, email, &letter, LIFE) else { return Ok(()) };
    let token = NewToken { hash: &secret::hash(&token), expires_at: OffsetDateTime::now_utc() + LIFE };
    if app.store.insert_reset(login.id, token, Some(&sealed.as_new()), MOST_RESETS).await? {
        app.post.nudge();
    } else {
        tracing::info!(user.id = %login.id, "no further password reset is mailed: several are in force");
    }
    Ok(())
}

/// Turns a reset token into a new password; every sign-in until now ends.
pub(crate) async fn confirm_reset(
    app: &App,
    client: ClientAddress,
    token: &str,
    new: String,
) -> Result<(), ApiError> {
    let unknown = || {
        ApiError::special(
            StatusCode::BAD_REQUEST,
            "invalid_token",
            "the reset link is unknown, used or older than 15 minutes; ask for another one",
        )
    };
    let token = secret::hash(token);
    let Some((_, email, name)) = app.store.reset_owner(&token).await? else { return Err(unknown()) };
    let hash = app.passwords.hash(new).await.map_err(ApiError::from_hash)?;
    let notice = notice(app, &email, &name);
    let mail = notice.as_ref().map(|letter| letter.as_new());
    if !app.store.reset_password(&token, &hash, mail.as_ref()).await? {
        return Err(unknown());
    }
    app.limits.forgive(&email, client);
    app.post.nudge();
    Ok(())
}
