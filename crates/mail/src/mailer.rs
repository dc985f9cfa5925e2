//! From a letter to a message on its way.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use lettre::message::header::{Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use lettre::transport::smtp::client::{Certificate, TlsParameters};
use lettre::{Address, Message};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use url::Host;
use uuid::Uuid;

use crate::config::{Security, Server, SmtpConfig};
use crate::error::MailError;
use crate::letter::Letter;
use crate::relay::Relay;
use crate::render::{Bodies, Templates};

/// For a whole conversation. Some servers look at a message for long before they accept it, and giving up then means
/// sending it twice.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Sends letters through one mail server.
pub struct Mailer {
    relay: Relay,
    from: Mailbox,
    templates: Templates,
    limit: Duration,
}

impl fmt::Debug for Mailer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailer")
            .field("server", self.relay.server())
            .field("from", &self.from.to_string())
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Mailer {
    /// A mailer for a server, which is not spoken to yet.
    ///
    /// # Errors
    ///
    /// The URL, the sender or the CA file is not usable.
    pub fn new(config: &SmtpConfig) -> Result<Self, MailError> {
        let server = config.url.parse()?;
        let from = sender(&config.from)?;
        if server.security == Security::None && server.login.is_some() {
            tracing::warn!(%server, "the password of the mail server is sent without encryption");
        }
        let tls = match server.security {
            Security::None => None,
            Security::StartTls | Security::Tls => Some(tls(&server, config.ca_file.as_deref())?),
        };
        Ok(Self { relay: Relay::new(server, tls), from, templates: Templates::new()?, limit: TIME_LIMIT })
    }

    /// Gives up on a letter after `limit` instead of a minute.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Sends a letter to one address; done when the server has taken it. It ends in any case, after a minute if the
    /// server does not answer. Dropping the future gives the letter up, unless the server has already taken it.
    ///
    /// # Errors
    ///
    /// [`MailError::is_permanent`] tells whether trying again can help.
    pub async fn send(&self, to: &str, letter: &Letter) -> Result<(), MailError> {
        let message = self.message(recipient(to)?, letter)?;
        self.relay.deliver(message.envelope(), &message.formatted(), &letter.secrets(), self.limit).await?;
        tracing::debug!(kind = letter.kind(), server = %self.relay.server(), "the mail server took a letter");
        Ok(())
    }

    fn message(&self, to: Address, letter: &Letter) -> Result<Message, MailError> {
        let Bodies { text, html } = self.templates.render(letter)?;
        Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(letter.subject())
            .date_now()
            // The sender's domain, because the name of this machine is nobody's business.
            .message_id(Some(format!("<{}@{}>", Uuid::new_v4(), self.from.email.domain())))
            .header(AutoSubmitted)
            .multipart(MultiPart::alternative_plain_html(text, html))
            .map_err(|error| MailError::Writing(Box::new(error)))
    }
}

/// Keeps absence notes from being sent in answer, RFC 3834.
#[derive(Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

fn sender(from: &str) -> Result<Mailbox, MailError> {
    let refused = |source| MailError::Sender { from: from.to_owned(), source };
    let mailbox: Mailbox = from.parse().map_err(|source| refused(Some(source)))?;
    // Otherwise every letter would need a server with SMTPUTF8.
    if AsRef::<str>::as_ref(&mailbox.email).is_ascii() { Ok(mailbox) } else { Err(refused(None)) }
}

/// The address, an international domain in the form that every server understands.
fn recipient(to: &str) -> Result<Address, MailError> {
    let refused = || MailError::Recipient(to.to_owned());
    let address: Address = to.parse().map_err(|_| refused())?;
    if address.domain().is_ascii() {
        return Ok(address);
    }
    let domain = Host::parse(address.domain()).map_err(|_| refused())?.to_string();
    Address::new(address.user(), domain).map_err(|_| refused())
}

fn tls(server: &Server, ca_file: Option<&Path>) -> Result<TlsParameters, MailError> {
    let mut builder = TlsParameters::builder(server.host.clone());
    for certificate in ca_file.map(authorities).transpose()?.unwrap_or_default() {
        builder = builder.add_root_certificate(certificate);
    }
    builder.build_rustls().map_err(|error| MailError::Tls { reason: error.to_string() })
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, MailError> {
    let unusable = |reason: String| MailError::CaContent { path: path.to_owned(), reason };
    let pem = std::fs::read(path).map_err(|source| MailError::CaFile { path: path.to_owned(), source })?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(error.to_string()))?;
    if certificates.is_empty() {
        return Err(unusable("no BEGIN CERTIFICATE in it".to_owned()));
    }
    let mut roots = rustls::RootCertStore::empty();
    let usable = |certificate: CertificateDer<'static>| {
        roots.add(certificate.clone()).map_err(|error| unusable(error.to_string()))?;
        Certificate::from_der(certificate.to_vec()).map_err(|error| unusable(error.to_string()))
    };
    certificates.into_iter().map(usable).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::letter::tests::every;

    fn config(url: &str, from: &str) -> SmtpConfig {
        SmtpConfig { url: url.into(), from: from.into(), ca_file: None }
    }

    fn mailer() -> Mailer {
        Mailer::new(&config("smtp://user:hunter2@mail?tls=none", "Wrenn <no-reply@example.com>")).unwrap()
    }

    #[test]
    fn messages_have_the_headers_of_automatic_mail() {
        let mailer = mailer();
        let mut seen = std::collections::HashSet::new();
        for letter in every("Ann") {
            let message = mailer.message(recipient("ann@example.org").unwrap(), &letter).unwrap();
            let headers = message.headers();
            assert_eq!(headers.get_raw("From"), Some("Wrenn <no-reply@example.com>"));
            assert_eq!(headers.get_raw("To"), Some("ann@example.org"));
            assert_eq!(headers.get_raw("Auto-Submitted"), Some("auto-generated"));
            assert!(headers.get_raw("Date").is_some());
            let id = headers.get_raw("Message-ID").unwrap().to_owned();
            assert!(id.starts_with('<') && id.ends_with("@example.com>"), "{id}");
            assert!(seen.insert(id));
        }
    }

    #[test]
    fn a_message_is_ascii_and_has_no_header_from_a_name() {
        for letter in every("Jürgen\r\nBcc: all@example.com\r\n\r\nHello") {
            let message = mailer().message(recipient("ann@example.org").unwrap(), &letter).unwrap();
            let bytes = message.formatted();
            assert!(bytes.is_ascii());
            let text = String::from_utf8(bytes).unwrap();
            assert!(!text.lines().any(|line| line.starts_with("Bcc:")), "{text}");
            assert_eq!(message.envelope().to().len(), 1);
        }
    }

    #[test]
    fn senders() {
        for good in [
            "no-reply@example.com",
            "Wrenn <no-reply@example.com>",
            "\"Größe, AG\" <a@xn--bcher-kva.example>",
        ] {
            sender(good).unwrap();
        }
        for bad in ["", "Wrenn", "Wrenn <>", "a@b\r\nBcc: c@d", "a@bücher.example", "ä@example.com"] {
            let error = sender(bad).unwrap_err();
            assert!(matches!(error, MailError::Sender { .. }) && !error.is_permanent(), "{bad:?}: {error}");
        }
    }

    #[test]
    fn recipients() {
        assert_eq!(recipient("ann@bücher.example").unwrap().to_string(), "ann@xn--bcher-kva.example");
        assert_eq!(recipient("änn@example.org").unwrap().to_string(), "änn@example.org");
        for bad in [
            "",
            "@",
            "ann",
            "ann@",
            "@example.org",
            "ann@example..org",
            "ann @example.org",
            "Ann <ann@example.org>",
            "ann@example.org, bob@example.org",
            "ann@example.org\r\nRCPT TO:<bob@example.org>",
            "\"ann\r\nDATA\"@example.org",
            "ann>@example.org",
            "ann@exa mple.org",
            &format!("{}@example.org", "a".repeat(300)),
        ] {
            let error = recipient(bad).unwrap_err();
            assert!(matches!(error, MailError::Recipient(_)) && error.is_permanent(), "{bad:?}");
        }
    }

    #[test]
    fn bad_configuration_is_told() {
        let url = Mailer::new(&config("smtp://mail?tls=maybe", "a@b.c")).unwrap_err();
        assert!(url.to_string().contains("tls=none"), "{url}");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let with = |path: &Path| {
            let config = SmtpConfig { ca_file: Some(path.to_owned()), ..config("smtp://mail", "a@b.c") };
            Mailer::new(&config).unwrap_err()
        };
        assert!(matches!(with(Path::new("/nonexistent/ca.pem")), MailError::CaFile { .. }));
        assert!(matches!(with(file.path()), MailError::CaContent { .. }));
        file.write_all(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let error = with(file.path());
        assert!(matches!(error, MailError::CaContent { .. }) && error.to_string().contains("PEM"), "{error}");
    }

    #[test]
    fn debug_shows_the_server_and_no_login() {
        let debug = format!("{:?}", mailer());
        assert!(debug.contains("smtp://mail:25?tls=none"), "{debug}");
        assert!(!debug.contains("user") && !debug.contains("hunter2"), "{debug}");
    }
}
