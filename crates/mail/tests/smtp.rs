//! Letters to a mail server: aiosmtpd, which `smtp_server.py` runs.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tempfile::TempDir;
use wrenn_mail::{Letter, MailError, Mailer, SmtpConfig};

const LINK: &str = "https://wrenn.example.com/reset?token=s3cret-0123456789abcdef0123456789abcdef&next=%2F";
const FROM: &str = "Wrenn <no-reply@example.com>";
const LOGIN: [&str; 4] = ["--user", "wrenn@example.com", "--password", "pä ss/w:rd"];
/// [`LOGIN`] as it stands in a URL.
const USERINFO: &str = "wrenn%40example.com:p%C3%A4%20ss%2Fw%3Ard";

/// An authority and the certificate for `localhost` that it issued.
struct Authority {
    dir: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let leaf =
            CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for (name, pem) in [("ca.pem", ca.pem()), ("cert.pem", leaf.pem()), ("key.pem", key.serialize_pem())]
        {
            std::fs::write(dir.path().join(name), pem).unwrap();
        }
        Self { dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A running mail server; dropping it ends it.
struct Server {
    authority: Authority,
    child: Child,
    output: BufReader<ChildStdout>,
    port: u16,
}

impl Server {
    fn start(args: &[&str]) -> Self {
        let authority = Authority::new();
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.ancestors().nth(2).unwrap();
        let mut child = Command::new(python(root))
            // The interpreter may live in a root of its own that sees only what is below its working directory.
            .current_dir(root)
            .arg(manifest.join("tests/smtp_server.py"))
            .args([authority.file("cert.pem"), authority.file("key.pem")])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut server = Self { authority, child, output, port: 0 };
        let line = server.line();
        server.port = line.trim().parse().unwrap_or_else(|_| {
            panic!("the mail server did not start (see above); is aiosmtpd in its Python? scripts/python-env.sh installs it")
        });
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    /// The next message that the server took.
    fn message(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// Fills in `PORT` and trusts the server's authority.
    fn mailer(&self, url: &str) -> Mailer {
        mailer(&url.replace("PORT", &self.port.to_string()), Some(self.authority.file("ca.pem")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python(root: &Path) -> PathBuf {
    let python = std::env::var_os("WRENN_TEST_PYTHON")
        .map_or_else(|| root.join("target/e2e/python/bin/python"), PathBuf::from);
    assert!(
        python.exists(),
        "there is no {}: run `scripts/python-env.sh \"$PWD/target/e2e/python\"` in {}, or name a Python that has \
         aiosmtpd in WRENN_TEST_PYTHON",
        python.display(),
        root.display()
    );
    python
}

fn mailer(url: &str, ca_file: Option<PathBuf>) -> Mailer {
    Mailer::new(&SmtpConfig { url: url.into(), from: FROM.into(), ca_file }).unwrap()
}

fn reset() -> Letter {
    Letter::PasswordReset { name: "Jürgen <Müller>".into(), link: LINK.into(), minutes: 30 }
}

async fn failure(mailer: &Mailer, to: &str) -> MailError {
    let error = mailer.send(to, &reset()).await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("ss/w:rd") && !shown.contains("s3cret"), "{shown}");
    error
}

fn assert_whole(message: &Value) {
    assert_eq!(message["from"], "no-reply@example.com");
    assert_eq!(message["to"], serde_json::json!(["ann@example.org"]));
    assert_eq!(message["type"], "multipart/alternative");
    let headers = &message["headers"];
    assert_eq!(headers["from"], FROM);
    assert_eq!(headers["to"], "ann@example.org");
    assert_eq!(headers["auto-submitted"], "auto-generated");
    assert!(
        headers["date"].is_string() && headers["message-id"].as_str().unwrap().ends_with("@example.com>")
    );
    let text = message["text"].as_str().unwrap();
    assert!(text.lines().any(|line| line == LINK) && text.contains("Jürgen <Müller>"), "{text}");
    let html = message["html"].as_str().unwrap();
    assert!(html.contains("Jürgen &lt;Müller&gt;") && html.trim_end().ends_with("</html>"), "{html}");
    assert!(message["data"].as_str().unwrap().is_ascii());
}

#[tokio::test]
async fn starttls_with_either_login() {
    for mechanism in ["PLAIN", "LOGIN"] {
        let mut server = Server::start(&[&LOGIN[..], &["--mechanism", mechanism]].concat());
        let mailer = server.mailer(&format!("smtp://{USERINFO}@localhost:PORT"));
        mailer.send("ann@example.org", &reset()).await.unwrap();
        let message = server.message();
        assert_whole(&message);
        assert_eq!(message["tls"], true);
        assert_eq!(message["user"], "wrenn@example.com");
    }
}

#[tokio::test]
async fn implicit_tls() {
    let mut server = Server::start(&[&LOGIN[..], &["--mode", "tls"]].concat());
    let mailer = server.mailer(&format!("smtps://{USERINFO}@localhost:PORT"));
    mailer.send("ann@example.org", &reset()).await.unwrap();
    let message = server.message();
    assert_whole(&message);
    assert_eq!(message["tls"], true);
    assert_eq!(message["user"], "wrenn@example.com");
}

#[tokio::test]
async fn a_plain_relay_when_asked_for() {
    let mut server = Server::start(&["--mode", "plain"]);
    let mailer = server.mailer("smtp://localhost:PORT?tls=none");
    mailer.send("ann@example.org", &reset()).await.unwrap();
    let message = server.message();
    assert_whole(&message);
    assert_eq!(message["tls"], false);
    assert_eq!(message["user"], Value::Null);
}

#[tokio::test]
async fn several_letters_at_once_stay_apart() {
    let mut server = Server::start(&[]);
    let mailer = server.mailer("smtp://localhost:PORT");
    let team = |name: &str| Letter::AddedToTeam {
        name: name.into(),
        team: "Größe & Süßes".into(),
        by: "Zoë\r\nBcc: all@example.com".into(),
        link: format!("https://wrenn.example.com/teams/{name}"),
    };
    let (first, second) = (team("one"), team("two"));
    let (one, two) =
        tokio::join!(mailer.send("one@example.org", &first), mailer.send("two@example.org", &second));
    one.unwrap();
    two.unwrap();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let message = server.message();
        let headers = &message["headers"];
        assert_eq!(
            headers["subject"],
            "Zoë Bcc: all@example.com added you to the team Größe & Süßes on Wrenn"
        );
        assert_eq!(headers["bcc"], Value::Null);
        let to = message["to"][0].as_str().unwrap();
        let (name, _) = to.split_once('@').unwrap();
        assert_eq!(message["to"].as_array().unwrap().len(), 1);
        let text = message["text"].as_str().unwrap();
        assert!(text.lines().any(|line| line.ends_with(&format!("/teams/{name}"))), "{text}");
        ids.push(headers["message-id"].clone());
    }
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_wrong_password_is_not_the_letters_fault() {
    let server = Server::start(&LOGIN);
    let mailer = server.mailer("smtp://wrenn%40example.com:not-the%2Fpassword@localhost:PORT");
    let error = failure(&mailer, "ann@example.org").await;
    assert!(
        matches!(&error, MailError::Login { reply, .. } if reply.starts_with("535 its answer is not shown")),
        "{error:?}"
    );
    assert!(!error.is_permanent());
    // The server's answer repeats the password.
    assert!(!format!("{error} {error:?}").contains("not-the/password"), "{error:?}");
}

#[tokio::test]
async fn a_missing_login_is_told_as_such() {
    let server = Server::start(&LOGIN);
    let error = failure(&server.mailer("smtp://localhost:PORT"), "ann@example.org").await;
    assert!(matches!(&error, MailError::Login { reply, .. } if reply.starts_with("530")), "{error:?}");
    assert!(!error.is_permanent());
}

#[tokio::test]
async fn a_login_that_the_server_does_not_offer() {
    let server = Server::start(&["--mode", "plain"]);
    let error =
        failure(&server.mailer(&format!("smtp://{USERINFO}@localhost:PORT?tls=none")), "ann@example.org")
            .await;
    assert!(matches!(error, MailError::NoLogin { .. }) && !error.is_permanent(), "{error:?}");
}

#[tokio::test]
async fn certificates_are_checked() {
    for (mode, scheme) in [("starttls", "smtp"), ("tls", "smtps")] {
        let mut server = Server::start(&["--mode", mode]);
        let port = server.port;
        let unknown = mailer(&format!("{scheme}://localhost:{port}"), None);
        let other = mailer(&format!("{scheme}://localhost:{port}"), Some(Authority::new().file("ca.pem")));
        let name = server.mailer(&format!("{scheme}://127.0.0.1:PORT"));
        for mailer in [unknown, other, name] {
            let error = failure(&mailer, "ann@example.org").await;
            assert!(matches!(error, MailError::Certificate { .. }) && !error.is_permanent(), "{error:?}");
            assert!(error.to_string().contains("CA file"), "{error}");
        }
        // None of them left anything behind: the first message is the one sent now.
        server.mailer(&format!("{scheme}://localhost:PORT")).send("ann@example.org", &reset()).await.unwrap();
        assert_whole(&server.message());
    }
}

#[tokio::test]
async fn no_letter_without_encryption() {
    let mut server = Server::start(&["--mode", "plain"]);
    let error = failure(&server.mailer("smtp://localhost:PORT"), "ann@example.org").await;
    assert!(matches!(error, MailError::NoStartTls { .. }) && !error.is_permanent(), "{error:?}");
    let error = failure(&server.mailer("smtps://localhost:PORT"), "ann@example.org").await;
    assert!(!error.is_permanent(), "{error:?}");
    server.mailer("smtp://localhost:PORT?tls=none").send("ann@example.org", &reset()).await.unwrap();
    assert_whole(&server.message());
}

#[tokio::test]
async fn refused_for_good_or_for_now() {
    let mut server = Server::start(&[]);
    let mailer = server.mailer("smtp://localhost:PORT");
    let error = failure(&mailer, "unknown@example.org").await;
    assert!(
        matches!(&error, MailError::Refused { reply } if reply.starts_with("550 5.1.1 there")),
        "{error:?}"
    );
    assert!(error.is_permanent());
    let error = failure(&mailer, "busy@example.org").await;
    assert!(
        matches!(&error, MailError::Deferred { reply } if reply.starts_with("451 4.7.1 grey")),
        "{error:?}"
    );
    assert!(!error.is_permanent());
    // The answer quotes the whole text, and with it the link.
    let error = failure(&mailer, "spam@example.org").await;
    assert!(
        matches!(&error, MailError::Refused { reply } if reply.starts_with("554 its answer is not shown")),
        "{error:?}"
    );
    assert!(error.is_permanent());
    let error = failure(&mailer, "änn@example.org").await;
    assert!(matches!(error, MailError::RecipientEncoding { .. }) && error.is_permanent(), "{error:?}");
    let error = failure(&mailer, "ann@example.org\r\nRCPT TO:<bob@example.org>").await;
    assert!(matches!(error, MailError::Recipient(_)) && error.is_permanent(), "{error:?}");
    mailer.send("ann@example.org", &reset()).await.unwrap();
    assert_whole(&server.message());
}

#[tokio::test]
async fn a_server_that_is_gone() {
    let server = Server::start(&[]);
    let mailer = server.mailer("smtp://localhost:PORT");
    drop(server);
    let error = failure(&mailer, "ann@example.org").await;
    assert!(matches!(error, MailError::Unreachable { .. }) && !error.is_permanent(), "{error:?}");
}

#[tokio::test]
async fn a_server_that_says_nothing() {
    // The kernel takes the connection; nobody answers on it.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    for url in [format!("smtp://127.0.0.1:{port}"), format!("smtps://127.0.0.1:{port}")] {
        let mailer = mailer(&url, None).with_limit(Duration::from_millis(100));
        let error = failure(&mailer, "ann@example.org").await;
        assert!(matches!(error, MailError::TimedOut { .. }) && !error.is_permanent(), "{error:?}");
    }
}

/// Stands for servers that no library plays: says `greeting` to one client and hangs up.
fn fake_server_that_hangs_up(greeting: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        client.write_all(greeting.as_bytes()).unwrap();
    });
    port
}

#[tokio::test]
async fn a_server_that_wants_no_connection() {
    let port = fake_server_that_hangs_up("554 5.7.1 your address is on a list\r\n");
    let error = failure(&mailer(&format!("smtp://127.0.0.1:{port}"), None), "ann@example.org").await;
    assert!(matches!(&error, MailError::TurnedAway { reply, .. } if reply.starts_with("554")), "{error:?}");
    assert!(!error.is_permanent());
}

#[tokio::test]
async fn a_server_that_speaks_something_else() {
    for greeting in ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "", "220 ready\r\n"] {
        let port = fake_server_that_hangs_up(greeting);
        let error = failure(&mailer(&format!("smtp://127.0.0.1:{port}"), None), "ann@example.org").await;
        assert!(!error.is_permanent(), "{greeting:?}: {error:?}");
    }
}
