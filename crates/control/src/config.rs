//! What a deployment may set. The CLI fills this in; nothing here reads the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use wrenn_core::shape::ShapeLimits;
use wrenn_mail::SmtpConfig;
use wrenn_oauth::Registry;

use crate::capsules::Reserve;
use crate::vault::SecretKeys;

/// Least length of [`ControlConfig::jwt_secret`] in characters.
pub const MIN_SECRET_LEN: usize = 32;

/// How often somebody may try to sign in: a number of tries at once, and one more each time that a pause has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthLimits {
    /// Requests of one address that take a password or a mailed token.
    pub address_burst: u32,
    /// Pause of an address.
    pub address_every: Duration,
    /// Wrong passwords for one account.
    pub account_burst: u32,
    /// Pause of an account.
    pub account_every: Duration,
}

impl Default for AuthLimits {
    fn default() -> Self {
        Self {
            address_burst: 60,
            address_every: Duration::from_secs(1),
            account_burst: 10,
            account_every: Duration::from_secs(30),
        }
    }
}

/// Everything the control plane needs to know to run.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// PostgreSQL, as a `postgres://` URL.
    pub database_url: String,
    /// Address of the public listener.
    pub listen: SocketAddr,
    /// How long calls that change a capsule's state hold their answer for the operation to settle.
    pub settle: Duration,
    /// Signs tokens; at least [`MIN_SECRET_LEN`] characters, the same on every replica.
    pub jwt_secret: String,
    /// Seal what is secret in the database; the same on every replica.
    pub secrets: SecretKeys,
    /// Where people and providers reach this server, without a slash at the end.
    pub public_url: String,
    /// Where the dashboard is, without a slash at the end.
    pub dashboard_url: String,
    /// How mail is sent; without it none is.
    pub smtp: Option<SmtpConfig>,
    /// With what people can sign in beside a password.
    pub providers: Registry,
    /// Whether people may sign up by themselves, with mail or a provider.
    pub signup: bool,
    /// Proxies before this server, whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// How often somebody may try to sign in.
    pub auth_limits: AuthLimits,
    /// Directory of the internal certificate authority, shared by all replicas.
    pub pki_dir: PathBuf,
    /// Largest capsules that may be asked for.
    pub shape_limits: ShapeLimits,
    /// What is kept back on every host when capsules are placed.
    pub reserve: Reserve,
    /// How long open requests and sockets may take to end after a shutdown was asked for.
    pub drain: Duration,
}

impl ControlConfig {
    /// A configuration with the documented defaults for all that has one.
    pub fn new(
        database_url: String,
        listen: SocketAddr,
        jwt_secret: String,
        secrets: SecretKeys,
        pki_dir: PathBuf,
    ) -> Self {
        let url = format!("http://{listen}");
        Self {
            secrets,
            public_url: url.clone(),
            dashboard_url: url,
            smtp: None,
            providers: Registry::default(),
            signup: true,
            trusted_proxies: Vec::new(),
            auth_limits: AuthLimits::default(),
            database_url,
            listen,
            settle: Duration::from_secs(5),
            jwt_secret,
            pki_dir,
            shape_limits: ShapeLimits::default(),
            reserve: Reserve::default(),
            drain: Duration::from_secs(10),
        }
    }
}
