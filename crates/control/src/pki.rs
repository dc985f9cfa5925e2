//! The internal certificate authority.
//!
//! Hosts and control plane know each other by certificates of one private authority and by the name in them:
//! a host serves as `<host id>.hosts.wrenn.internal`, the control plane calls as `control-plane.wrenn.internal`. Host
//! certificates live seven days and are handed out at registration and refresh. The control plane's own client
//! certificate exists only in memory and is made anew before it runs out.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use wrenn_core::HostId;
use wrenn_protocol::identity;

/// How long a host certificate is valid.
pub const HOST_VALIDITY: Duration = Duration::days(7);

const CA_VALIDITY: Duration = Duration::days(3650);
const CONTROL_VALIDITY: Duration = Duration::days(2);
/// Clocks of two machines may differ by this much.
const CLOCK_SKEW: Duration = Duration::minutes(10);

/// Why certificates could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The directory or a file in it cannot be used.
    #[error("cannot use {path}; check the owner and mode of the PKI directory")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A stored file is not what it should be.
    #[error(
        "{path} holds no usable PEM; restore it from a backup, or remove the directory and register hosts anew"
    )]
    Pem {
        /// The file.
        path: PathBuf,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// A made certificate could not be loaded.
    #[error("cannot use a certificate")]
    Load(#[from] rustls::Error),
}

/// Certificate and key in PEM form.
#[derive(Clone)]
pub struct PemPair {
    /// The certificate.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

impl std::fmt::Debug for PemPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PemPair").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// The authority: signs for hosts and for the control plane itself.
pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    control: ArcSwapOption<ControlCert>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct ControlCert {
    key: Arc<CertifiedKey>,
    renew_at: OffsetDateTime,
}

impl Pki {
    /// Opens the authority in `dir`, making directory, key and certificate on the first call. When several
    /// replicas make them at once, one wins and the others take its result.
    ///
    /// # Errors
    /// [`PkiError`] where files cannot be read or written, or are damaged.
    pub fn open_or_create(dir: &Path) -> Result<Self, PkiError> {
        let in_dir = |source| PkiError::File { path: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(in_dir)?;
        let path = dir.join("ca.pem");
        if !path.exists() {
            create_ca(dir, &path)?;
        }
        Self::open(&path)
    }

    fn open(path: &Path) -> Result<Self, PkiError> {
        let text =
            fs::read_to_string(path).map_err(|source| PkiError::File { path: path.to_owned(), source })?;
        let damaged = || PkiError::Pem { path: path.to_owned() };
        let ca_der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| damaged())?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| damaged())?;
        let key = KeyPair::try_from(&key).map_err(|_| damaged())?;
        let ca_pem = cert_part(&text).ok_or_else(damaged)?;
        let issuer = Issuer::from_ca_cert_der(&ca_der, key).map_err(|_| damaged())?;
        Ok(Self { issuer, ca_pem, ca_der, control: ArcSwapOption::empty() })
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The authority's certificate, in binary form.
    pub fn ca_der(&self) -> &CertificateDer<'static> {
        &self.ca_der
    }

    /// A fresh server certificate for a host.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn issue_host(&self, host: HostId) -> Result<PemPair, PkiError> {
        self.issue(&identity::host_name(host), ExtendedKeyUsagePurpose::ServerAuth, HOST_VALIDITY)
    }

    /// A client certificate with which to call hosts as the control plane.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn issue_control(&self) -> Result<PemPair, PkiError> {
        self.issue(identity::CONTROL_PLANE, ExtendedKeyUsagePurpose::ClientAuth, CONTROL_VALIDITY)
    }

    fn issue(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        valid: Duration,
    ) -> Result<PemPair, PkiError> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name = named(name);
        (params.not_before, params.not_after) = validity(valid);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(PemPair { cert: cert.pem(), key: key.serialize_pem() })
    }

    fn control_cert(&self) -> Result<Arc<CertifiedKey>, PkiError> {
        let now = OffsetDateTime::now_utc();
        if let Some(held) = self.control.load_full().filter(|held| now < held.renew_at) {
            return Ok(held.key.clone());
        }
        let pair = self.issue_control()?;
        let key = Arc::new(certified_key(&pair)?);
        self.control
            .store(Some(Arc::new(ControlCert { key: key.clone(), renew_at: now + CONTROL_VALIDITY / 2 })));
        Ok(key)
    }
}

/// Hands the control plane's current client certificate to TLS, renewing it when half of its life is over.
#[derive(Debug)]
pub(crate) struct ControlIdentity(pub(crate) Arc<Pki>);

impl ResolvesClientCert for ControlIdentity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0
            .control_cert()
            .inspect_err(|error| tracing::error!(%error, "no client certificate for the links to hosts"))
            .ok()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified_key(pair: &PemPair) -> Result<CertifiedKey, PkiError> {
    let unusable = |_| rustls::Error::General("unreadable PEM".to_owned());
    let cert = CertificateDer::from_pem_slice(pair.cert.as_bytes()).map_err(unusable)?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).map_err(unusable)?;
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    Ok(CertifiedKey::new(vec![cert], signer))
}

fn named(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Wrenn");
    subject.push(DnType::CommonName, name);
    subject
}

fn validity(valid: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - CLOCK_SKEW, now + valid)
}

fn cert_part(text: &str) -> Option<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let begin = text.find("-----BEGIN CERTIFICATE-----")?;
    let end = begin + text[begin..].find(END)? + END.len();
    Some(format!("{}\n", &text[begin..end]))
}

/// Certificate and key go into one file, so that the pair appears at once, and by a link that fails when
/// another replica was faster.
fn create_ca(dir: &Path, path: &Path) -> Result<(), PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Wrenn internal authority");
    (params.not_before, params.not_after) = validity(CA_VALIDITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    let draft = dir.join(format!("ca.pem.{}", crate::secret::random_hex::<8>()));
    let written = write_private(&draft, &format!("{}{}", cert.pem(), key.serialize_pem())).and_then(|()| {
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    });
    let removed = fs::remove_file(&draft);
    written.and(removed).map_err(|source| PkiError::File { path: path.to_owned(), source })
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use x509_parser::prelude::*;

    use super::*;

    #[test]
    fn the_authority_survives_a_restart_and_keeps_its_key_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open_or_create(&dir.path().join("pki")).unwrap();
        let again = Pki::open_or_create(&dir.path().join("pki")).unwrap();
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert!(!first.ca_pem().contains("PRIVATE"));
        let mode = fs::metadata(dir.path().join("pki/ca.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path().join("pki")).unwrap().count(), 1);
    }

    #[test]
    fn a_host_certificate_names_the_host_and_serves_only() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open_or_create(dir.path()).unwrap();
        let host = HostId::random();
        let der = CertificateDer::from_pem_slice(pki.issue_host(host).unwrap().cert.as_bytes()).unwrap();
        let (_, cert) = X509Certificate::from_der(&der).unwrap();
        let names = cert.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names, [GeneralName::DNSName(&identity::host_name(host))]);
        let usage = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth);
        let days = (cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp()) / 86_400;
        assert_eq!(days, 7);
        assert!(cert.validity().is_valid());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), "nonsense").unwrap();
        assert!(matches!(Pki::open_or_create(dir.path()), Err(PkiError::Pem { .. })));
    }
}
