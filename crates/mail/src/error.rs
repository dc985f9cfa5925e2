//! What keeps a letter from leaving.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lettre::address::AddressError;

use crate::config::UrlError;

/// Why mail cannot be sent. No text holds the password or the link of a letter, not even where the server repeats them.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// The server's URL is not usable.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The sender is not usable.
    #[error(
        "the sender {from:?} is not a mail address; write Wrenn <no-reply@example.com> or the bare address, \
         an international domain in its xn-- form"
    )]
    Sender {
        /// The text that is not an address.
        from: String,
        /// What is wrong with it, where the form is.
        source: Option<AddressError>,
    },
    /// The file of additional authorities cannot be read.
    #[error("cannot read the mail server's CA file {}; check the path and who may read it", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file of additional authorities holds something else.
    #[error("the mail server's CA file {} holds no usable certificate in PEM form ({reason})", path.display())]
    CaContent {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        reason: String,
    },
    /// TLS cannot be set up at all.
    #[error(
        "cannot prepare TLS to the mail server ({reason}); check that the host in the SMTP URL is a name or an address"
    )]
    Tls {
        /// What the TLS library says.
        reason: String,
    },
    /// A template of this crate cannot be used.
    #[error("a letter cannot be written; this is a defect of Wrenn, please report it")]
    Writing(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The recipient is not usable.
    #[error("the recipient {0:?} is not a mail address; correct it in the account")]
    Recipient(String),
    /// The server cannot carry an address with characters outside ASCII before the `@`.
    #[error(
        "the mail server {server} takes no addresses with characters outside ASCII (SMTPUTF8); use another address \
         or another mail server"
    )]
    RecipientEncoding {
        /// Host and port.
        server: String,
    },
    /// No connection.
    #[error("cannot reach the mail server {server} ({reason}); check host, port, encryption and firewall")]
    Unreachable {
        /// Host and port.
        server: String,
        /// What the system says.
        reason: String,
    },
    /// The server's certificate is not accepted.
    #[error(
        "the certificate of the mail server {server} is not accepted ({reason}); use the host name that it is for, \
         and give the certificate of your own authority as CA file"
    )]
    Certificate {
        /// Host and port.
        server: String,
        /// What the TLS library says.
        reason: String,
    },
    /// The server does not encrypt.
    #[error(
        "the mail server {server} does not offer STARTTLS, so nothing was sent; use smtps:// where it speaks TLS from \
         the first byte, or ?tls=none for a relay on the same machine or network"
    )]
    NoStartTls {
        /// Host and port.
        server: String,
    },
    /// The server turned the connection away before there was any talk of letters.
    #[error("the mail server {server} turned the connection away ({reply}); ask its operator")]
    TurnedAway {
        /// Host and port.
        server: String,
        /// Its answer.
        reply: String,
    },
    /// The server did not accept user and password, or wants some.
    #[error("the mail server {server} refused the login ({reply}); check user and password in the SMTP URL")]
    Login {
        /// Host and port.
        server: String,
        /// Its answer.
        reply: String,
    },
    /// The server knows none of our ways to log in.
    #[error(
        "the mail server {server} offers neither AUTH PLAIN nor AUTH LOGIN; leave user and password out of the SMTP \
         URL where it asks for no login, else use an encrypted connection or another server"
    )]
    NoLogin {
        /// Host and port.
        server: String,
    },
    /// The server will not take this letter (5xx).
    #[error(
        "the mail server refused the letter for good ({reply}); check the recipient, and that the server may send as \
         the configured sender"
    )]
    Refused {
        /// Its answer.
        reply: String,
    },
    /// The server cannot take this letter now (4xx).
    #[error("the mail server cannot take the letter now ({reply}); it may later")]
    Deferred {
        /// Its answer.
        reply: String,
    },
    /// The connection broke, or the server does not speak SMTP.
    #[error(
        "the conversation with the mail server {server} broke off ({reason}); check that SMTP is spoken at that port"
    )]
    BrokenOff {
        /// Host and port.
        server: String,
        /// What happened.
        reason: String,
    },
    /// The server took too long. It may have accepted the letter all the same.
    #[error("the mail server {server} was not done after {after:?}; check that it answers")]
    TimedOut {
        /// Host and port.
        server: String,
        /// The time it was given.
        after: Duration,
    },
}

impl MailError {
    /// Whether to give the letter up: the server has answered for good (5xx), or no server could deliver it. Everything
    /// else, a wrong password too, may be repaired before the next attempt.
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::Writing(_) | Self::Recipient(_) | Self::RecipientEncoding { .. } | Self::Refused { .. }
        )
    }
}
