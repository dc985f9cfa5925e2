//! From a form to an active account.

use http::StatusCode;
use time::{Duration, OffsetDateTime};
use wrenn_core::UserId;
use wrenn_mail::Letter;

use super::session::{Issued, start};
use crate::api::ApiError;
use crate::secret;
use crate::state::App;
use crate::store::{Activation, NewToken, NewUser, SignUp};

/// Of an activation link, and of an account that was not activated.
const LIFE: Duration = Duration::minutes(30);

/// Makes an account that its activation mail brings to life.
pub(crate) async fn sign_up(app: &App, email: &str, password: String, name: &str) -> Result<(), ApiError> {
    if !app.config.signup {
        return Err(ApiError::forbidden(
            "sign-up is closed here; ask an administrator of the platform for an account",
        ));
    }
    // Before anybody looks whether the address is known.
    let hash = app.passwords.hash(password).await.map_err(ApiError::from_hash)?;
    let token = secret::random_hex::<16>();
    let letter = Letter::Activation {
        name: name.to_owned(),
        link: format!("{}/activate?token={token}", app.config.dashboard_url),
        minutes: u32::try_from(LIFE.whole_minutes()).unwrap_or_default(),
    };
    let sealed = app.post.seal(&app.vault, email, &letter, LIFE);
    let new = NewUser { id: UserId::random(), email, name, password_hash: Some(&hash) };
    let token = NewToken { hash: &secret::hash(&token), expires_at: OffsetDateTime::now_utc() + LIFE };
    let mail = sealed.as_ref().map(|letter| letter.as_new());
    match app.store.sign_up(&new, token, mail.as_ref(), LIFE.as_seconds_f64()).await? {
        SignUp::Done => {
            app.post.nudge();
            Ok(())
        }
        SignUp::Taken => Err(ApiError::special(
            StatusCode::CONFLICT,
            "email_taken",
            "there is an account with this address; sign in, or reset its password",
        )),
        SignUp::Cooldown => Err(ApiError::special(
            StatusCode::CONFLICT,
            "signup_cooldown",
            "this address was signed up less than 30 minutes ago; use the link in that mail, or try again later",
        )),
    }
}

/// Turns an activation token into an active account and a sign-in.
pub(crate) async fn activate(app: &App, token: &str) -> Result<Issued, ApiError> {
    match app.store.activate(&secret::hash(token)).await? {
        Activation::Done(user) => start(app, user).await,
        Activation::Unknown => Err(ApiError::special(
            StatusCode::BAD_REQUEST,
            "invalid_token",
            "the activation link is unknown, used or older than 30 minutes; sign up again",
        )),
        Activation::NotInactive => Err(ApiError::special(
            StatusCode::BAD_REQUEST,
            "already_activated",
            "the account has been activated already; sign in",
        )),
    }
}
