//! One conversation with the mail server per letter.
//!
//! Letters are rare, and a connection of its own for each keeps them apart: a connection from a pool that was given up
//! in the middle of a letter would take the beginning of the next one for the rest of it. Dropping the future closes
//! the connection, and a server throws away what did not end.

use std::error::Error;
use std::io;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use lettre::address::Envelope;
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::extension::{ClientId, Extension};

use crate::config::{Login, Security, Server};
use crate::error::MailError;
use crate::letter::one_line;

/// For each address that the host name stands for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// For the farewell, on which nothing depends.
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest part of a server's answer that an error repeats, in characters.
const MAX_REPLY: usize = 300;
/// A login is missing, too weak, wrong or must be encrypted (RFC 4954). Some servers say so only to the first letter.
const LOGIN_CODES: [u16; 4] = [530, 534, 535, 538];

/// A mail server and all that is needed to speak with it.
pub(crate) struct Relay {
    server: Server,
    /// Unless the connection is not encrypted.
    tls: Option<TlsParameters>,
    hello: ClientId,
}

/// How far the conversation came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Login,
    Letter,
}

impl Relay {
    pub(crate) fn new(server: Server, tls: Option<TlsParameters>) -> Self {
        Self { server, tls, hello: ClientId::default() }
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Delivers a message within `limit`. Where an answer repeats one of the message's `secrets`, the error does not.
    pub(crate) async fn deliver(
        &self,
        envelope: &Envelope,
        message: &[u8],
        secrets: &[&str],
        limit: Duration,
    ) -> Result<(), MailError> {
        let conversation = async {
            let mut connection = self.connect().await?;
            self.transfer(&mut connection, envelope, message, secrets).await?;
            Ok::<_, MailError>(connection)
        };
        let late = |_| MailError::TimedOut { server: self.server.to_string(), after: limit };
        let mut connection = tokio::time::timeout(limit, conversation).await.map_err(late)??;
        // The letter is the server's now, however it takes the farewell.
        let _ = tokio::time::timeout(QUIT_TIMEOUT, connection.abort()).await;
        Ok(())
    }

    /// A connection on which letters can be sent: encrypted and logged in as the URL wants it.
    async fn connect(&self) -> Result<AsyncSmtpConnection, MailError> {
        let greeting = |error| self.explain(Stage::Greeting, &error, &[]);
        let at_once = self.tls.clone().filter(|_| self.server.security == Security::Tls);
        let address = (self.server.host.as_str(), self.server.port);
        let connecting =
            AsyncSmtpConnection::connect_tokio1(address, Some(CONNECT_TIMEOUT), &self.hello, at_once, None);
        let mut connection = connecting.await.map_err(greeting)?;
        if let (Security::StartTls, Some(tls)) = (self.server.security, &self.tls) {
            if !connection.can_starttls() {
                return Err(MailError::NoStartTls { server: self.server.to_string() });
            }
            connection.starttls(tls.clone(), &self.hello).await.map_err(greeting)?;
        }
        if let Some(login) = &self.server.login {
            self.log_in(&mut connection, login).await?;
        }
        Ok(connection)
    }

    async fn log_in(&self, connection: &mut AsyncSmtpConnection, login: &Login) -> Result<(), MailError> {
        if connection.server_info().get_auth_mechanism(DEFAULT_MECHANISMS).is_none() {
            return Err(MailError::NoLogin { server: self.server.to_string() });
        }
        let Login { user, password } = login;
        let credentials = Credentials::new(user.clone(), password.clone());
        connection.auth(DEFAULT_MECHANISMS, &credentials).await.map_err(|error| {
            let plain = BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
            self.explain(Stage::Login, &error, &[password, &BASE64_STANDARD.encode(password), &plain])
        })?;
        Ok(())
    }

    async fn transfer(
        &self,
        connection: &mut AsyncSmtpConnection,
        envelope: &Envelope,
        message: &[u8],
        secrets: &[&str],
    ) -> Result<(), MailError> {
        let is_ascii = envelope.to().iter().all(|address| AsRef::<str>::as_ref(address).is_ascii());
        if !is_ascii && !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
            return Err(MailError::RecipientEncoding { server: self.server.to_string() });
        }
        let sent = connection.send(envelope, message).await;
        sent.map_err(|error| self.explain(Stage::Letter, &error, secrets))?;
        Ok(())
    }

    fn explain(&self, stage: Stage, error: &SmtpError, secrets: &[&str]) -> MailError {
        let server = self.server.to_string();
        let reason = reason(error, secrets);
        if let Some(code) = error.status().map(u16::from) {
            let reply = format!("{code} {reason}").trim_end().to_owned();
            return match stage {
                Stage::Greeting => MailError::TurnedAway { server, reply },
                Stage::Login => MailError::Login { server, reply },
                Stage::Letter if LOGIN_CODES.contains(&code) => MailError::Login { server, reply },
                Stage::Letter if error.is_permanent() => MailError::Refused { reply },
                Stage::Letter => MailError::Deferred { reply },
            };
        }
        if let Some(rejected) = certificate_error(error) {
            return MailError::Certificate { server, reason: rejected };
        }
        let is_answered = stage != Stage::Greeting || error.is_response() || error.is_client();
        if is_answered {
            MailError::BrokenOff { server, reason }
        } else {
            MailError::Unreachable { server, reason }
        }
    }
}

/// What lies behind lettre's error, on one line and without secrets.
fn reason(error: &SmtpError, secrets: &[&str]) -> String {
    let text = error.source().map_or_else(String::new, ToString::to_string);
    if secrets.iter().any(|secret| text.contains(secret)) {
        return "its answer is not shown, because it repeats a secret".to_owned();
    }
    one_line(&text, MAX_REPLY)
}

/// Why the TLS library did not accept the server's certificate, if that is what happened.
fn certificate_error(error: &SmtpError) -> Option<String> {
    let mut cause = error.source();
    while let Some(found) = cause {
        // An `io::Error` is transparent: its source is that of the error it holds.
        let held = found.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = held.and_then(|held| held.downcast_ref()).or_else(|| found.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(why)) = tls {
            return Some(why.to_string());
        }
        cause = found.source();
    }
    None
}
