//! What a deployment may set. The CLI fills this in; nothing here reads the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use wrenn_core::shape::ShapeLimits;

use crate::capsules::Reserve;

/// Least length of [`ControlConfig::jwt_secret`] in characters.
pub const MIN_SECRET_LEN: usize = 32;

/// Everything the control plane needs to know to run.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// PostgreSQL, as a `postgres://` URL.
    pub database_url: String,
    /// Address of the public listener.
    pub listen: SocketAddr,
    /// How long calls that change a capsule's state hold their answer for the operation to settle.
    pub settle: Duration,
    /// Signs host tokens; at least [`MIN_SECRET_LEN`] characters, the same on every replica.
    pub jwt_secret: String,
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
    pub fn new(database_url: String, listen: SocketAddr, jwt_secret: String, pki_dir: PathBuf) -> Self {
        Self {
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
