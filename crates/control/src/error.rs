//! What can keep the control plane from starting, or stop an administrative command.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure that ends a command or the server. Requests fail with [`crate::api::ApiError`] instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database refused, or is out of reach.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// Certificates could not be read, made or written.
    #[error(transparent)]
    Pki(#[from] crate::pki::PkiError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; is another server running there?")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the data directory cannot be used.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A secret is too short to sign with.
    #[error("the JWT secret has {0} characters; it needs at least 32")]
    WeakSecret(usize),
    /// The mail server cannot be used as configured.
    #[error(transparent)]
    Mail(#[from] wrenn_mail::MailError),
    /// A stored secret cannot be read.
    #[error(transparent)]
    Vault(#[from] crate::vault::VaultError),
    /// A password cannot be hashed.
    #[error("a password could not be hashed; is there memory left?")]
    Password,
    /// An administrative command was given something that it cannot use.
    #[error("{0}")]
    Invalid(String),
    /// An administrative command named something that is not there.
    #[error("there is no {0}")]
    NotFound(String),
}
