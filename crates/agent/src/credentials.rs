//! How a host comes to be trusted: it registers with a one-use token, is given a certificate, and renews it before it
//! runs out.
//!
//! `agent/credentials.json` in the data directory (mode 0600) holds what the control plane gave. It is replaced
//! as a whole, so that a crash during a renewal leaves a usable pair: the control plane takes the old refresh token until
//! the new one is used, so a renewal whose answer got lost, or was not stored, is simply repeated.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use wrenn_core::HostId;

use crate::config::AgentConfig;
use crate::host::Capacity;
use crate::record::write_atomically;

/// File name of the credentials.
const FILE: &str = "credentials.json";
/// Limit of one call to the control plane.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// Pause between attempts to reach a control plane that does not answer.
const RETRY: Duration = Duration::from_millis(250);

/// What the control plane gave this host.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// The host's id, which its certificate carries too.
    pub host_id: HostId,
    /// Host token for calls to the control plane.
    pub token: String,
    /// Token for the next renewal; it may be used again until the one that it buys is used.
    pub refresh_token: String,
    /// The host's certificate chain.
    pub cert_pem: String,
    /// The certificate's private key.
    pub key_pem: String,
    /// The internal CA.
    pub ca_cert_pem: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("host_id", &self.host_id).finish_non_exhaustive()
    }
}

/// Why a host has no usable credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// There are none and no token to get them with.
    #[error(
        "this host is not registered: create a host in the control plane and start the agent with its registration token"
    )]
    Unregistered,
    /// The control plane said no.
    #[error(
        "the control plane refused this host ({status}): {message}; create a new registration token and start the agent with it"
    )]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its message.
        message: String,
    },
    /// The control plane's answer makes no sense.
    #[error("the control plane at {url} does not speak this agent's protocol: {message}")]
    Protocol {
        /// What was called.
        url: String,
        /// What was wrong.
        message: String,
    },
    /// The control plane could not be reached.
    #[error("the control plane at {url} could not be reached")]
    Unreachable {
        /// What was called.
        url: String,
        /// The transport's words.
        source: reqwest::Error,
    },
    /// The credentials cannot be stored or read.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate cannot be read.
    #[error("the host's certificate cannot be read: {0}")]
    Certificate(String),
}

#[derive(Deserialize)]
struct Answer {
    host: AnswerHost,
    token: String,
    refresh_token: String,
    cert_pem: String,
    key_pem: String,
    ca_cert_pem: String,
}

#[derive(Deserialize)]
struct AnswerHost {
    id: HostId,
}

#[derive(Deserialize)]
struct Refusal {
    error: RefusalBody,
}

#[derive(Deserialize)]
struct RefusalBody {
    message: String,
}

impl From<Answer> for Credentials {
    fn from(answer: Answer) -> Self {
        let Answer { host, token, refresh_token, cert_pem, key_pem, ca_cert_pem } = answer;
        Self { host_id: host.id, token, refresh_token, cert_pem, key_pem, ca_cert_pem }
    }
}

impl Credentials {
    /// Reads the stored credentials; `None` where there are none.
    ///
    /// # Errors
    /// Where the file is there but cannot be used.
    pub fn load(dir: &Path) -> Result<Option<Self>, CredentialsError> {
        let path = dir.join(FILE);
        let file_error = |source| CredentialsError::File { path: path.clone(), source };
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|e| file_error(std::io::Error::other(e)))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error(error)),
        }
    }

    fn store(&self, dir: &Path) -> Result<(), CredentialsError> {
        let path = dir.join(FILE);
        let written = std::fs::create_dir_all(dir)
            .and_then(|()| serde_json::to_vec_pretty(self).map_err(std::io::Error::other))
            .and_then(|bytes| write_atomically(&path, &bytes, 0o600));
        written.map_err(|source| CredentialsError::File { path, source })
    }

    /// How long until the certificate should be renewed: half of its life before it ends; zero when that is past.
    ///
    /// # Errors
    /// Where the certificate cannot be read.
    pub fn renew_in(&self) -> Result<Duration, CredentialsError> {
        let unreadable = |error: &dyn std::fmt::Display| CredentialsError::Certificate(error.to_string());
        let der = CertificateDer::from_pem_slice(self.cert_pem.as_bytes()).map_err(|e| unreadable(&e))?;
        let (_, cert) = x509_parser::parse_x509_certificate(&der).map_err(|e| unreadable(&e))?;
        let (from, to) = (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
        let due = from + (to - from) / 2;
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        Ok(Duration::from_secs(u64::try_from(due - now).unwrap_or(0)))
    }
}

/// Speaks to the control plane on behalf of a host.
#[derive(Debug, Clone)]
pub struct Registrar {
    http: reqwest::Client,
    control_url: String,
    dir: PathBuf,
    advertise: SocketAddr,
    data_dir: PathBuf,
}

impl Registrar {
    /// The registrar of this agent.
    ///
    /// # Errors
    /// Where no TLS client can be made.
    pub fn new(config: &AgentConfig) -> Result<Self, CredentialsError> {
        let url = config.control_url.trim_end_matches('/').to_owned();
        let http = reqwest::Client::builder()
            .timeout(CALL_LIMIT)
            .build()
            .map_err(|source| CredentialsError::Unreachable { url: url.clone(), source })?;
        Ok(Self {
            http,
            control_url: url,
            dir: config.credentials_dir(),
            advertise: config.advertise,
            data_dir: config.dir.clone(),
        })
    }

    /// The stored credentials, or those that `token` buys. Waits for a control plane that is not up yet.
    ///
    /// # Errors
    /// [`CredentialsError::Unregistered`] without either, or what the control plane refused.
    pub async fn obtain(&self, token: Option<&str>) -> Result<Credentials, CredentialsError> {
        if let Some(stored) = Credentials::load(&self.dir)? {
            return Ok(stored);
        }
        let token = token.ok_or(CredentialsError::Unregistered)?;
        let capacity = Capacity::read(&self.data_dir);
        let body = serde_json::json!({
            "token": token,
            "address": self.advertise.to_string(),
            "arch": std::env::consts::ARCH,
            "cpu_cores": capacity.cpu_cores,
            "memory_mb": capacity.memory_mb,
            "disk_gb": capacity.disk_gb,
        });
        loop {
            match self.call("/v1/hosts/register", &body).await {
                Err(error) if error.may_pass() => {
                    tracing::debug!("waiting for the control plane: {error}");
                    tokio::time::sleep(RETRY).await;
                }
                answer => return answer,
            }
        }
    }

    /// Exchanges the refresh token for new credentials.
    ///
    /// # Errors
    /// Where the control plane is not reached or refuses.
    pub async fn renew(&self, current: &Credentials) -> Result<Credentials, CredentialsError> {
        let body = serde_json::json!({ "refresh_token": current.refresh_token, "repeatable": true });
        self.call("/v1/hosts/auth/refresh", &body).await
    }

    async fn call(&self, path: &str, body: &serde_json::Value) -> Result<Credentials, CredentialsError> {
        let url = format!("{}{path}", self.control_url);
        let unreachable = |source| CredentialsError::Unreachable { url: url.clone(), source };
        let answer = self.http.post(&url).json(body).send().await.map_err(unreachable)?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(unreachable)?;
        if !status.is_success() {
            let message = serde_json::from_slice::<Refusal>(&bytes).map_or_else(
                |_| String::from_utf8_lossy(&bytes).into_owned(),
                |refusal| refusal.error.message,
            );
            return Err(CredentialsError::Refused { status: status.as_u16(), message });
        }
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|error| CredentialsError::Protocol { url: url.clone(), message: error.to_string() })?;
        let credentials = Credentials::from(answer);
        credentials.store(&self.dir)?;
        Ok(credentials)
    }
}

impl CredentialsError {
    /// Whether trying again may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use wrenn_vmm::AcceleratorChoice;

    use super::*;

    fn config(dir: &Path, control: SocketAddr) -> AgentConfig {
        AgentConfig {
            dir: dir.to_owned(),
            listen: control,
            advertise: control,
            control_url: format!("http://{control}"),
            registration_token: None,
            accelerator: AcceleratorChoice::Auto,
            driver: crate::drivers::DriverChoice::Auto,
            firecracker: None,
            restore: wrenn_vmm::firecracker::Restore::Auto,
            pager: wrenn_vmm::pager::PagerProgram {
                program: PathBuf::new(),
                args: Vec::new(),
                env: Vec::new(),
            },
            egress_bytes_per_second: None,
            allow_private_networks: false,
            uid_base: 0,
            boot_timeout: Duration::ZERO,
            warm_mb: 0,
            pool_size: 0,
            image_cache: None,
            debian_mirror: None,
        }
    }

    fn credentials(refresh_token: &str) -> Credentials {
        Credentials {
            host_id: HostId::random(),
            token: "t".into(),
            refresh_token: refresh_token.into(),
            cert_pem: "c".into(),
            key_pem: "k".into(),
            ca_cert_pem: "a".into(),
        }
    }

    /// Reads a request to the end of its JSON.
    async fn request(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"}") {
            stream.read_buf(&mut text).await.unwrap();
        }
        String::from_utf8(text).unwrap()
    }

    /// A control plane whose first answer gets lost.
    async fn control_plane(listener: TcpListener, answer: String) -> [String; 2] {
        let (mut stream, _) = listener.accept().await.unwrap();
        let lost = request(&mut stream).await;
        drop(stream);
        let (mut stream, _) = listener.accept().await.unwrap();
        let answered = request(&mut stream).await;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all(format!("{head}{answer}").as_bytes()).await.unwrap();
        [lost, answered]
    }

    #[tokio::test]
    async fn a_renewal_whose_answer_is_lost_changes_nothing_and_is_repeated_with_the_same_token() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registrar = Registrar::new(&config(dir.path(), listener.local_addr().unwrap())).unwrap();
        let held = credentials("held");
        held.store(&registrar.dir).unwrap();
        let answer = serde_json::json!({
            "host": {"id": held.host_id}, "token": "t2", "refresh_token": "next",
            "cert_pem": "c2", "key_pem": "k2", "ca_cert_pem": "a",
        });
        let control = tokio::spawn(control_plane(listener, answer.to_string()));
        let stored = || Credentials::load(&registrar.dir).unwrap().unwrap().refresh_token;
        assert!(registrar.renew(&held).await.unwrap_err().may_pass());
        assert_eq!(stored(), "held");
        assert_eq!(registrar.renew(&held).await.unwrap().refresh_token, "next");
        assert_eq!(stored(), "next");
        let [lost, answered] = control.await.unwrap();
        assert!(lost.ends_with(r#"{"refresh_token":"held","repeatable":true}"#), "{lost}");
        assert!(answered.ends_with(r#"{"refresh_token":"held","repeatable":true}"#), "{answered}");
    }
}
