//! A real mail server, as a child process.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use wrenn_mail::SmtpConfig;

use super::PATIENCE;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mail/tests/smtp_server.py");

/// A mail server with STARTTLS and a login, and what it has taken.
pub struct MailServer {
    port: u16,
    dir: TempDir,
    taken: Arc<Mutex<Vec<Value>>>,
    process: Child,
}

/// The interpreter that has the mail server.
fn python() -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let python = std::env::var_os("WRENN_TEST_PYTHON")
        .map_or_else(|| PathBuf::from(format!("{root}/target/e2e/python/bin/python")), PathBuf::from);
    assert!(
        python.exists(),
        "{} is missing; make it: scripts/python-env.sh target/e2e/python",
        python.display()
    );
    python
}

impl MailServer {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let mut process = Command::new(python())
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .arg(SCRIPT)
            .args([&cert, &key])
            .args(["--user", "wrenn", "--password", "s3cret"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = lines.next_line().await.unwrap().unwrap().parse().unwrap();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let into = taken.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                into.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { port, dir, taken, process }
    }

    pub fn config(&self) -> SmtpConfig {
        SmtpConfig {
            url: format!("smtp://wrenn:s3cret@localhost:{}", self.port).into(),
            from: "Wrenn <wrenn@example.com>".to_owned(),
            ca_file: Some(self.dir.path().join("cert.pem")),
        }
    }

    /// Ends the server, as an outage would.
    pub async fn stop(&mut self) {
        self.process.kill().await.unwrap();
    }

    /// How many letters it has taken.
    pub fn count(&self) -> usize {
        self.taken.lock().unwrap().len()
    }

    /// The newest letter to an address with this in its subject, as soon as there is one.
    pub async fn letter(&self, to: &str, subject: &str) -> Value {
        let fits = |letter: &&Value| {
            letter["to"][0] == to && letter["headers"]["subject"].as_str().unwrap().contains(subject)
        };
        let wait = async {
            loop {
                if let Some(found) = self.taken.lock().unwrap().iter().rev().find(fits) {
                    return found.clone();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no letter {subject} to {to}"))
    }

    /// The token of the link in such a letter.
    pub async fn token(&self, to: &str, subject: &str) -> String {
        let letter = self.letter(to, subject).await;
        assert_eq!((&letter["tls"], &letter["user"]), (&Value::Bool(true), &Value::from("wrenn")));
        let text = letter["text"].as_str().unwrap();
        let link = text.lines().find(|line| line.contains("?token=")).unwrap();
        let token = link.trim().rsplit('=').next().unwrap();
        assert!(token.len() == 32 && letter["html"].as_str().unwrap().contains(token), "{letter}");
        token.to_owned()
    }
}
