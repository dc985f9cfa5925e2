//! Where mail goes and who it is from.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use url::{Host, Url};

/// Submission with STARTTLS, RFC 6409.
const SUBMISSION_PORT: u16 = 587;
/// Submission with TLS from the first byte, RFC 8314.
const SUBMISSIONS_PORT: u16 = 465;
/// Relaying, RFC 5321.
const RELAY_PORT: u16 = 25;

/// How to reach the mail server.
#[derive(Debug, Clone)]
pub struct SmtpConfig {
    /// The server, how to encrypt and how to log in.
    pub url: SmtpUrl,
    /// The sender: `Wrenn <no-reply@example.com>` or the bare address.
    pub from: String,
    /// Certificates in PEM of authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// The URL of a mail server, which [`Mailer::new`](crate::Mailer::new) checks:
///
/// - `smtp://[user:password@]host[:port]`: STARTTLS, and no mail where the server does not offer it; port 587.
/// - `smtps://[user:password@]host[:port]`: TLS from the first byte; port 465.
/// - `smtp://[user:password@]host[:port]?tls=none`: no encryption, for a relay on the same machine or network; port 25.
///
/// User and password are percent-encoded. It is text until then so that nothing which reports bad configuration repeats
/// the password: [`fmt::Debug`] shows scheme, host and port only.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SmtpUrl(String);

impl From<String> for SmtpUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl From<&str> for SmtpUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl FromStr for SmtpUrl {
    type Err = Infallible;

    fn from_str(url: &str) -> Result<Self, Infallible> {
        Ok(Self(url.to_owned()))
    }
}

impl fmt::Debug for SmtpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parse() {
            Ok(server) => write!(f, "SmtpUrl({server:?})"),
            Err(_) => f.write_str("SmtpUrl(invalid)"),
        }
    }
}

/// Why a text is not the URL of a mail server. No part of the URL is repeated, because any may hold the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL at all.
    #[error(
        "the SMTP URL cannot be read ({0}); write smtp://user:password@host:port and percent-encode \
         what is special in user and password"
    )]
    Syntax(#[source] url::ParseError),
    /// Another protocol.
    #[error("the SMTP URL must begin with smtp:// (STARTTLS) or smtps:// (TLS from the first byte)")]
    Scheme,
    /// No host.
    #[error("the SMTP URL names no host; write smtp://user:password@host:port")]
    Host,
    /// Port 0.
    #[error("port 0 in the SMTP URL is no port; leave it out for the usual one")]
    Port,
    /// Something after host and port, often the rest of a password that holds `/`, `?` or `#`.
    #[error(
        "the SMTP URL has a path or a fragment; it ends after host and port, and /, ? and # in user or password \
         are written %2F, %3F and %23"
    )]
    Path,
    /// A query other than `tls=none`.
    #[error("the only option of an SMTP URL is ?tls=none; without it smtp:// insists on STARTTLS")]
    Option,
    /// `smtps` with `tls=none`.
    #[error("smtps:// is encrypted, ?tls=none is not; write smtp://host?tls=none for an unencrypted relay")]
    Contradiction,
    /// A user without password, or the reverse.
    #[error(
        "the SMTP URL has a user or a password only; give both, or neither where the server asks for no login"
    )]
    Login,
    /// User or password cannot be sent.
    #[error(
        "user or password in the SMTP URL is not UTF-8 or holds control characters; check the percent-encoding"
    )]
    Encoding,
}

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Security {
    StartTls,
    Tls,
    None,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

/// What an [`SmtpUrl`] says.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// A name or an address, IPv6 without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) security: Security,
    pub(crate) login: Option<Login>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.security {
            Security::StartTls => write!(f, "smtp://{self}"),
            Security::Tls => write!(f, "smtps://{self}"),
            Security::None => write!(f, "smtp://{self}?tls=none"),
        }
    }
}

impl SmtpUrl {
    pub(crate) fn parse(&self) -> Result<Server, UrlError> {
        let url = Url::parse(&self.0).map_err(UrlError::Syntax)?;
        let security = security(&url)?;
        if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
            return Err(UrlError::Path);
        }
        // The host of a scheme that the URL standard does not know is taken as it stands.
        let host = match Host::parse(url.host_str().unwrap_or_default()) {
            Ok(Host::Domain(name)) => name,
            Ok(Host::Ipv4(address)) => address.to_string(),
            Ok(Host::Ipv6(address)) => address.to_string(),
            Err(_) => return Err(UrlError::Host),
        };
        let usual = match security {
            Security::StartTls => SUBMISSION_PORT,
            Security::Tls => SUBMISSIONS_PORT,
            Security::None => RELAY_PORT,
        };
        let port = url.port().unwrap_or(usual);
        if port == 0 {
            return Err(UrlError::Port);
        }
        Ok(Server { host, port, security, login: login(&url)? })
    }
}

fn security(url: &Url) -> Result<Security, UrlError> {
    match (url.scheme(), url.query()) {
        ("smtp", None) => Ok(Security::StartTls),
        ("smtps", None) => Ok(Security::Tls),
        ("smtp", Some("tls=none")) => Ok(Security::None),
        ("smtps", Some("tls=none")) => Err(UrlError::Contradiction),
        ("smtp" | "smtps", Some(_)) => Err(UrlError::Option),
        _ => Err(UrlError::Scheme),
    }
}

fn login(url: &Url) -> Result<Option<Login>, UrlError> {
    match (url.username(), url.password().unwrap_or_default()) {
        ("", "") => Ok(None),
        ("", _) | (_, "") => Err(UrlError::Login),
        (user, password) => Ok(Some(Login { user: decode(user)?, password: decode(password)? })),
    }
}

fn decode(text: &str) -> Result<String, UrlError> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| UrlError::Encoding)?;
    // AUTH PLAIN separates its fields with NUL.
    if text.chars().any(char::is_control) { Err(UrlError::Encoding) } else { Ok(text.into_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Server, UrlError> {
        SmtpUrl::from(url).parse()
    }

    #[test]
    fn the_three_forms_and_their_ports() {
        for (url, host, port, security) in [
            ("smtp://mail.example.com", "mail.example.com", 587, Security::StartTls),
            ("smtp://mail.example.com/", "mail.example.com", 587, Security::StartTls),
            ("smtps://mail.example.com", "mail.example.com", 465, Security::Tls),
            ("smtp://mail.example.com?tls=none", "mail.example.com", 25, Security::None),
            ("smtp://mail.example.com:2525/?tls=none", "mail.example.com", 2525, Security::None),
            ("SMTPS://MAIL.example.com:1465", "mail.example.com", 1465, Security::Tls),
            ("smtp://10.0.0.1:25", "10.0.0.1", 25, Security::StartTls),
            ("smtp://[fd00::1]:25", "fd00::1", 25, Security::StartTls),
        ] {
            let expected = Server { host: host.into(), port, security, login: None };
            assert_eq!(parse(url), Ok(expected), "{url}");
        }
    }

    #[test]
    fn user_and_password_are_decoded() {
        let login =
            parse("smtp://no-reply%40example.com:p%40ss%2F%3A%23w%C3%B6rd%25@mail").unwrap().login.unwrap();
        assert_eq!(login.user, "no-reply@example.com");
        assert_eq!(login.password, "p@ss/:#wörd%");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (url, error) in [
            ("http://mail", UrlError::Scheme),
            ("mail:587", UrlError::Scheme),
            ("smtp://", UrlError::Host),
            ("smtp:mail", UrlError::Path),
            ("smtp://ma il", UrlError::Syntax(url::ParseError::InvalidDomainCharacter)),
            ("smtp://mail:0", UrlError::Port),
            ("smtp://mail/inbox", UrlError::Path),
            ("smtp://mail#part", UrlError::Path),
            ("smtp://mail?tls=opportunistic", UrlError::Option),
            ("smtp://mail?", UrlError::Option),
            ("smtp://mail?tls=none&x=y", UrlError::Option),
            ("smtps://mail?tls=none", UrlError::Contradiction),
            ("smtp://user@mail", UrlError::Login),
            ("smtp://user:@mail", UrlError::Login),
            ("smtp://:password@mail", UrlError::Login),
            ("smtp://user:%00@mail", UrlError::Encoding),
            ("smtp://user:%0d%0a@mail", UrlError::Encoding),
            ("smtp://user:%ff@mail", UrlError::Encoding),
        ] {
            assert_eq!(parse(url).map(|server| server.to_string()), Err(error), "{url}");
        }
        for url in ["", "mail", "smtp://mail:port", "smtp://mail:70000", "smtp://[::1"] {
            assert!(matches!(parse(url), Err(UrlError::Syntax(_))), "{url}");
        }
    }

    #[test]
    fn nothing_shows_user_or_password() {
        let secret = |url: &str| SmtpConfig { url: url.into(), from: "a@b.c".into(), ca_file: None };
        for (url, shown) in [
            ("smtp://someone:hunter2@mail", "smtp://mail:587"),
            ("smtps://someone:hunter2@[fd00::1]", "smtps://[fd00::1]:465"),
            ("smtp://someone:hunter2@mail?tls=none", "smtp://mail:25?tls=none"),
            ("smtp://someone:hunter2@", "invalid"),
            ("smtp://someone:hunter2/@mail", "invalid"),
            ("smtp://someone:hunter2?@mail", "invalid"),
            ("someone:hunter2", "invalid"),
        ] {
            let config = secret(url);
            let debug = format!("{config:?} {:#?}", config.url);
            assert!(debug.contains(shown), "{debug}");
            let error =
                config.url.parse().err().map(|error| format!("{error} {error:?}")).unwrap_or_default();
            for text in [debug, error] {
                assert!(!text.contains("someone") && !text.contains("hunter2"), "{text}");
            }
        }
    }
}
