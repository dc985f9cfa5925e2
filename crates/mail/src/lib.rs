//! The letters that Wrenn sends, and the way they leave the machine.
//!
//! A [`Letter`] says what happened; a [`Mailer`] turns it into a message and hands that to the mail server that the
//! operator named in [`SmtpConfig`]. When to send a letter and when to try again is the caller's business:
//! [`MailError::is_permanent`] tells whether trying again can help.

mod config;
mod error;
mod letter;
mod mailer;
mod relay;
mod render;

pub use config::{SmtpConfig, SmtpUrl, UrlError};
pub use error::MailError;
pub use letter::Letter;
pub use mailer::Mailer;
