//! Signing in with a provider, from the first redirect to the last.
//!
//! ```text
//! begin ─► provider ─► callback ─┬─ login   known identity ─► token
//!                                ├─ signup  account, team and identity ─► token
//! connect ─► provider ─► callback ── link  identity of an account that is there
//! ```
//!
//! The browser keeps the state in a cookie whose signature binds it to the intent; what the provider needs besides, the PKCE
//! verifier and the nonce, is derived from that state, so that no replica has to remember anything.

use std::sync::Arc;

use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use time::{Duration, OffsetDateTime};
use wrenn_core::UserId;
use wrenn_oauth::{Authorization, Exchange, Identity, Provider};

use super::TeamSeed;
use super::session::{Issued, start};
use crate::api::ApiError;
use crate::auth::{ClientAddress, CookieJar, Cookies, SignedIn};
use crate::secret;
use crate::state::App;
use crate::store::{FirstSignIn, Link, NewUser, Unlink, UserStatus};

const STATE_COOKIE: &str = "oauth_state";
const LINK_COOKIE: &str = "oauth_link_user_id";
/// How long somebody may take at the provider, in seconds.
const STATE_LIFE: u32 = 600;
const DATA_PATH: &str = "/auth/";
/// How long the dashboard may take to pick the token up, in seconds.
const DATA_LIFE: u32 = 60;

/// What somebody wants to use a provider for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    Login,
    Signup,
}

impl Intent {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Signup => "signup",
        }
    }

    /// The default where nothing is said.
    pub(crate) fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "login") => Some(Self::Login),
            Some("signup") => Some(Self::Signup),
            Some(_) => None,
        }
    }
}

/// Where a browser is sent, and with which cookies.
#[derive(Debug)]
pub(crate) struct Landing {
    pub(crate) location: String,
    pub(crate) cookies: Cookies,
}

/// What a provider sends a browser back with.
#[derive(Debug, Default, serde::Deserialize)]
pub(crate) struct Callback {
    code: Option<String>,
    state: Option<String>,
    error: Option<String>,
}

fn provider(app: &App, name: &str) -> Result<Arc<dyn Provider>, ApiError> {
    app.config.providers.get(name).ok_or_else(|| {
        ApiError::special(
            StatusCode::NOT_FOUND,
            "provider_not_found",
            format!("there is no sign-in provider {name} here; the deployment's settings name the providers"),
        )
    })
}

/// Cookies that travel encrypted wherever that is possible.
fn cookies(app: &App, secure: bool) -> Cookies {
    Cookies::new(secure || app.config.public_url.starts_with("https://"))
}

fn redirect_uri(app: &App, provider: &str) -> String {
    format!("{}/auth/oauth/{provider}/callback", app.config.public_url)
}

/// What the state is made of: the second of the departure in 8 hex digits, then 24 random ones.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Nonce(String);

impl Nonce {
    fn new() -> Self {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        Self(format!("{now:08x}{}", secret::random_hex::<12>()))
    }

    fn begun(&self) -> Option<OffsetDateTime> {
        let seconds = i64::from_str_radix(self.0.get(..8)?, 16).ok()?;
        OffsetDateTime::from_unix_timestamp(seconds).ok()
    }

    /// Whether it is not older than the cookie that carries it may be: a browser that keeps cookies for longer gains
    /// nothing.
    fn is_fresh(&self) -> bool {
        let age = self.begun().map(|begun| OffsetDateTime::now_utc() - begun);
        age.is_some_and(|age| (-Duration::MINUTE..=Duration::seconds(STATE_LIFE.into())).contains(&age))
    }

    /// The PKCE verifier and the nonce of an ID token, known to nobody who has not the deployment's secret, and different
    /// for each provider.
    fn derived(&self, app: &App, provider: &str) -> (String, String) {
        let sign = |what: &str| app.signer.sign(&format!("{what}:{provider}:{}", self.0));
        (sign("pkce"), sign("nonce"))
    }
}

/// The way to a provider, and the state cookie for it.
async fn depart(
    app: &App,
    provider: &dyn Provider,
    intent: Intent,
    cookies: &mut Cookies,
) -> Result<(String, String), ApiError> {
    let nonce = Nonce::new();
    let (verifier, token_nonce) = nonce.derived(app, provider.name());
    let nonce = nonce.0;
    let request = Authorization {
        state: &nonce,
        redirect_uri: &redirect_uri(app, provider.name()),
        pkce_verifier: &verifier,
        nonce: &token_nonce,
    };
    let url = provider.authorize_url(&request).await.map_err(|error| {
        tracing::error!(error = %error, provider = provider.name(), "a sign-in provider cannot be used");
        ApiError::agent("the sign-in provider cannot be reached; try again later")
    })?;
    let signature = app.signer.sign(&format!("{nonce}:{}", intent.as_str()));
    cookies.hidden(STATE_COOKIE, &format!("{nonce}:{signature}:{}", intent.as_str()), "/", STATE_LIFE);
    Ok((url, nonce))
}

/// Sends a browser to a provider to sign in or up.
pub(crate) async fn begin(app: &App, name: &str, intent: Intent, secure: bool) -> Result<Landing, ApiError> {
    let provider = provider(app, name)?;
    let mut cookies = cookies(app, secure);
    let (location, _) = depart(app, &*provider, intent, &mut cookies).await?;
    // Of a link that was begun and not finished.
    cookies.clear(LINK_COOKIE, "/");
    Ok(Landing { location, cookies })
}

/// The way to a provider for a person who wants to link it.
pub(crate) async fn connect(
    app: &App,
    person: &SignedIn,
    name: &str,
    secure: bool,
) -> Result<Landing, ApiError> {
    let provider = provider(app, name)?;
    let mut cookies = cookies(app, secure);
    let (location, nonce) = depart(app, &*provider, Intent::Login, &mut cookies).await?;
    let signature = app.signer.sign(&link_text(person.user, &nonce));
    cookies.hidden(LINK_COOKIE, &format!("{}:{signature}", person.user), "/", STATE_LIFE);
    Ok(Landing { location, cookies })
}

fn link_text(user: UserId, nonce: &str) -> String {
    format!("link:{user}:{nonce}")
}

/// Ends a person's way to sign in with a provider.
pub(crate) async fn disconnect(app: &App, person: &SignedIn, name: &str) -> Result<(), ApiError> {
    match app.store.unlink(person.user, name).await? {
        Unlink::Done => Ok(()),
        Unlink::Unknown => Err(ApiError::not_found(format!("{name} is not connected to your account"))),
        Unlink::LastWay => Err(ApiError::special(
            StatusCode::BAD_REQUEST,
            "last_login_method",
            format!("{name} is the only way in which you can sign in; set a password first"),
        )),
    }
}

/// The nonce and the intent of the cookie, where it is ours and the provider returned its nonce.
fn state(app: &App, jar: CookieJar<'_>, returned: Option<&str>) -> Option<(Nonce, Intent)> {
    let mut parts = jar.get(STATE_COOKIE)?.splitn(3, ':');
    let (nonce, signature, intent) = (parts.next()?, parts.next()?, parts.next()?);
    let genuine = app.signer.is_signed(&format!("{nonce}:{intent}"), signature) && returned == Some(nonce);
    let nonce = Nonce(nonce.to_owned());
    if genuine && nonce.is_fresh() { Some((nonce, Intent::parse(Some(intent))?)) } else { None }
}

/// Whose link this is, where the cookie is ours and of the same departure.
fn link_user(app: &App, cookie: &str, nonce: &str) -> Option<UserId> {
    let (user, signature) = cookie.split_once(':')?;
    let user: UserId = user.parse().ok()?;
    app.signer.is_signed(&link_text(user, nonce), signature).then_some(user)
}

/// Takes a browser back from a provider. Whatever happens, it ends in the dashboard.
pub(crate) async fn callback(
    app: &App,
    name: &str,
    jar: CookieJar<'_>,
    query: Callback,
    client: ClientAddress,
    secure: bool,
) -> Landing {
    let mut cookies = cookies(app, secure);
    cookies.clear(STATE_COOKIE, "/");
    let dashboard = &app.config.dashboard_url;
    // Anybody may have written the address.
    let shown = utf8_percent_encode(name, NON_ALPHANUMERIC);
    let location = if let Some(cookie) = jar.get(LINK_COOKIE) {
        cookies.clear(LINK_COOKIE, "/");
        let settings = format!("{dashboard}/dashboard/settings");
        match link(app, name, jar, cookie, &query).await {
            Ok(()) => format!("{settings}?connected={shown}"),
            Err(NotLinked { code, identified }) => {
                tracing::warn!(%client, provider = name, "a sign-in provider was not linked: {code}");
                if identified {
                    format!("{settings}?connect_error={code}")
                } else {
                    format!("{dashboard}/auth/{shown}/callback?error={code}")
                }
            }
        }
    } else {
        let target = format!("{dashboard}/auth/{shown}/callback");
        match sign_in(app, name, jar, &query).await {
            Ok((issued, new)) => {
                hand_over(&mut cookies, &issued, new);
                target
            }
            Err(code) => {
                tracing::warn!(%client, provider = name, "refused a sign-in with a provider: {code}");
                format!("{target}?error={code}")
            }
        }
    };
    Landing { location, cookies }
}

/// The sign-in travels in cookies that the dashboard reads and drops: an address would end in histories and logs.
fn hand_over(cookies: &mut Cookies, issued: &Issued, new: bool) {
    let data = [
        ("wrenn_oauth_token", issued.token.clone()),
        ("wrenn_oauth_user_id", issued.user.to_string()),
        ("wrenn_oauth_team_id", issued.team.to_string()),
        ("wrenn_oauth_email", issued.email.clone()),
        ("wrenn_oauth_name", issued.name.clone()),
    ];
    for (name, value) in data {
        cookies.open(name, &value, DATA_PATH, DATA_LIFE);
    }
    if new {
        cookies.open("wrenn_oauth_new_signup", "1", DATA_PATH, DATA_LIFE);
    }
}

type Code = &'static str;

/// A failure that the dashboard is told of without its cause, which goes to the log.
fn failed(code: Code) -> impl Fn(ApiError) -> Code {
    move |error| {
        if error.code == "account_deactivated" {
            return "account_deactivated";
        }
        tracing::error!(%error, "a sign-in with a provider failed");
        code
    }
}

fn store_failed(error: crate::store::StoreError) -> Code {
    failed("db_error")(error.into())
}

/// Asks the provider who came back.
async fn identify(app: &App, name: &str, nonce: &Nonce, query: &Callback) -> Result<Identity, Code> {
    if query.error.is_some() {
        return Err("access_denied");
    }
    let code = query.code.as_deref().filter(|code| !code.is_empty()).ok_or("missing_code")?;
    let provider = provider(app, name).map_err(failed("internal_error"))?;
    let (verifier, nonce) = nonce.derived(app, name);
    let exchange =
        Exchange { code, redirect_uri: &redirect_uri(app, name), pkce_verifier: &verifier, nonce: &nonce };
    provider.identify(&exchange).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        tracing::warn!(%error, cause, provider = name, "a provider did not say who signs in");
        "exchange_failed"
    })
}

/// Why an identity was not linked, and whether that is a matter of the account's settings or of the provider.
struct NotLinked {
    code: Code,
    identified: bool,
}

async fn link(
    app: &App,
    name: &str,
    jar: CookieJar<'_>,
    cookie: &str,
    query: &Callback,
) -> Result<(), NotLinked> {
    let here = |code| NotLinked { code, identified: true };
    let there = |code| NotLinked { code, identified: false };
    let (nonce, _) = state(app, jar, query.state.as_deref()).ok_or("invalid_state").map_err(here)?;
    let user = link_user(app, cookie, &nonce.0).ok_or("invalid_state").map_err(here)?;
    let identity = identify(app, name, &nonce, query).await.map_err(there)?;
    let begun = nonce.begun().ok_or("invalid_state").map_err(here)?;
    let linked = app.store.link(user, name, &identity.subject, begun).await;
    match linked.map_err(store_failed).map_err(here)? {
        Link::Done => Ok(()),
        Link::Taken => Err(here("already_linked")),
    }
}

/// A sign-in, and whether the account is new.
async fn sign_in(
    app: &App,
    name: &str,
    jar: CookieJar<'_>,
    query: &Callback,
) -> Result<(Issued, bool), Code> {
    let (nonce, intent) = state(app, jar, query.state.as_deref()).ok_or("invalid_state")?;
    let identity = identify(app, name, &nonce, query).await?;
    if let Some(issued) = known(app, name, &identity).await? {
        return Ok((issued, false));
    }
    if intent == Intent::Login || !app.config.signup {
        return Err("no_account");
    }
    let Some(email) = identity.email.as_deref() else {
        tracing::warn!(provider = name, "a provider vouches for no address of somebody who signs up");
        return Err("exchange_failed");
    };
    let id = UserId::random();
    let new = NewUser { id, email, name: &identity.name, password_hash: None };
    let team = TeamSeed::of(&identity.name);
    let first = app.store.first_sign_in(&new, name, &identity.subject, &team.as_new()).await;
    match first.map_err(store_failed)? {
        FirstSignIn::Done => Ok((start(app, id).await.map_err(failed("db_error"))?, true)),
        FirstSignIn::EmailTaken => Err("email_taken"),
        FirstSignIn::Known => Ok((known(app, name, &identity).await?.ok_or("db_error")?, false)),
    }
}

/// Signs in whose identity it is.
async fn known(app: &App, name: &str, identity: &Identity) -> Result<Option<Issued>, Code> {
    match app.store.identity(name, &identity.subject).await.map_err(store_failed)? {
        None => Ok(None),
        Some((user, UserStatus::Active)) => Ok(Some(start(app, user).await.map_err(failed("db_error"))?)),
        Some(_) => Err("account_deactivated"),
    }
}
