//! How a machine becomes a host and stays one: a one-use token buys credentials, a refresh token renews them.
//!
//! An agent asks for a refresh token to end only when the next one is used: an answer that got lost must not lock the
//! host out.

use std::fmt;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use time::{Duration, OffsetDateTime};
use wrenn_core::HostId;

use crate::config::MIN_SECRET_LEN;
use crate::error::{Error, Result};
use crate::pki::{PemPair, PkiError};
use crate::secret;
use crate::state::App;
use crate::store::{HostRow, Registration, Store, StoreError};

const TOKEN_LIFE: Duration = Duration::hours(1);
const REFRESH_LIFE: Duration = Duration::days(60);
const JWT_LIFE: Duration = Duration::days(7);

/// With this a machine registers, once, within an hour.
#[derive(Clone)]
pub struct RegistrationToken {
    /// The host it makes of the machine.
    pub host: HostId,
    /// The secret.
    pub token: String,
}

impl fmt::Debug for RegistrationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrationToken").field("host", &self.host).finish_non_exhaustive()
    }
}

/// A registration token for the machine that the control plane itself runs on. There is one local host: where it was
/// registered before and has lost its credentials, it becomes `pending` again and its old refresh tokens end.
///
/// # Errors
/// [`Error::Store`].
pub async fn ensure_local_host(store: &Store) -> Result<RegistrationToken> {
    let host = store.local_host().await?;
    let token = secret::random_hex::<32>();
    store.insert_host_token(host, &secret::hash(&token), OffsetDateTime::now_utc() + TOKEN_LIFE).await?;
    Ok(RegistrationToken { host, token })
}

#[derive(Debug, Serialize)]
struct HostClaims {
    typ: &'static str,
    host_id: HostId,
    sub: HostId,
    iat: i64,
    exp: i64,
}

/// Signs host tokens.
pub(crate) struct HostTokens {
    key: EncodingKey,
}

impl HostTokens {
    pub(crate) fn new(jwt_secret: &str) -> Result<Self> {
        let length = jwt_secret.chars().count();
        if length < MIN_SECRET_LEN {
            return Err(Error::WeakSecret(length));
        }
        Ok(Self { key: EncodingKey::from_secret(jwt_secret.as_bytes()) })
    }

    fn sign(&self, host: HostId) -> Result<String, jsonwebtoken::errors::Error> {
        let now = OffsetDateTime::now_utc();
        let claims = HostClaims {
            typ: "host",
            host_id: host,
            sub: host,
            iat: now.unix_timestamp(),
            exp: (now + JWT_LIFE).unix_timestamp(),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.key)
    }
}

/// What a machine gets to act as a host.
pub(crate) struct Credentials {
    pub(crate) host: HostRow,
    pub(crate) token: String,
    pub(crate) refresh_token: String,
    pub(crate) pair: PemPair,
    pub(crate) ca_cert: String,
}

/// Why a machine gets no credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("the token is unknown, used or expired")]
    Refused,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("cannot sign a host token")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// Turns a registration token into credentials.
pub(crate) async fn register(
    app: &App,
    token: &str,
    of: &Registration<'_>,
) -> Result<Credentials, RegisterError> {
    let refresh = secret::random_hex::<32>();
    let host = app
        .store
        .register_host(
            &secret::hash(token),
            &secret::hash(&refresh),
            OffsetDateTime::now_utc() + REFRESH_LIFE,
            of,
        )
        .await?
        .ok_or(RegisterError::Refused)?;
    tracing::info!(host.id = %host, "host {host} registered at {}", of.address);
    app.hosts.realign(app).await?;
    credentials(app, host, refresh).await
}

/// Turns a refresh token into new credentials. Where `repeatable`, it stays usable until one that it bought is used.
pub(crate) async fn refresh(app: &App, token: &str, repeatable: bool) -> Result<Credentials, RegisterError> {
    let refresh = secret::random_hex::<32>();
    let host = app
        .store
        .rotate_refresh(
            &secret::hash(token),
            repeatable,
            &secret::hash(&refresh),
            OffsetDateTime::now_utc() + REFRESH_LIFE,
        )
        .await?
        .ok_or(RegisterError::Refused)?;
    credentials(app, host, refresh).await
}

async fn credentials(app: &App, host: HostId, refresh_token: String) -> Result<Credentials, RegisterError> {
    Ok(Credentials {
        host: app.store.host(host).await?.ok_or(RegisterError::Refused)?,
        token: app.host_tokens.sign(host)?,
        refresh_token,
        pair: app.pki.issue_host(host)?,
        ca_cert: app.pki.ca_pem().to_owned(),
    })
}
