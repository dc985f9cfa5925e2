//! A control plane in this process, on threads of its own, and one kept connection to it.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wrenn_control::admin::{LocalUser, create_user};
use wrenn_control::vault::SecretKeys;
use wrenn_control::{ControlConfig, ControlPlane, Store};
use wrenn_core::{TeamId, UserId};

use super::data::Own;

/// Of those who sign in.
const PASSWORD: &str = "correct horse battery staple";
const ADMIN: &str = "admin@wrenn.example";
const MEMBER: &str = "member@wrenn.example";

/// Makes the people who will sign in.
pub(super) async fn people(store: &Store) -> anyhow::Result<(UserId, UserId)> {
    let make = async |email: &str, admin| {
        let (email, name, password) = (email.to_owned(), "Bench".to_owned(), PASSWORD.to_owned());
        let made = create_user(store, LocalUser { email, name, password, admin }).await?;
        made.context("an account is there already")
    };
    Ok((make(ADMIN, true).await?, make(MEMBER, false).await?))
}

/// A running control plane.
#[derive(Debug)]
pub(super) struct Platform {
    address: SocketAddr,
    shutdown: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
    threads: Option<Runtime>,
    _pki: TempDir,
}

impl Platform {
    /// Starts it over a database.
    pub(super) async fn start(database_url: String) -> anyhow::Result<Self> {
        let pki = tempfile::tempdir()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let secret = || format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let secrets = SecretKeys { current: secret().parse()?, old: Vec::new() };
        let config = ControlConfig::new(database_url, address, secret(), secrets, pki.path().to_owned());
        let shutdown = CancellationToken::new();
        let threads = Builder::new_multi_thread().enable_all().build()?;
        let shutdown_too = shutdown.clone();
        let served = threads.spawn(async move {
            // A listener belongs to the threads on which it was made.
            let listener = TcpListener::from_std(listener)?;
            Ok(ControlPlane::new(config).serve_on(listener, shutdown_too).await?)
        });
        Ok(Self { address, shutdown, served, threads: Some(threads), _pki: pki })
    }

    /// A connection to it, on which both people have signed in and are in the run's own team.
    pub(super) async fn client(&self, own: Own) -> anyhow::Result<Client> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut client = Client {
            connection: Mutex::new(handshake(TokioIo::new(stream)).await?),
            host: self.address.to_string(),
            admin: String::new(),
            member: String::new(),
        };
        let team = TeamId::from_uuid(own.team).to_string();
        client.admin = client.sign_in(ADMIN, &team).await?;
        client.member = client.sign_in(MEMBER, &team).await?;
        Ok(client)
    }

    /// What some work on the control plane's threads comes to.
    pub(super) async fn on_its_threads<T: Send + 'static>(
        &self,
        work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<T> {
        self.threads.as_ref().context("the control plane has ended")?.spawn(work).await?
    }

    /// Ends it.
    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        (&mut self.served).await?
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        // A runtime must not be waited for inside another.
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// The owner of the run's own team, who administers the platform.
    Admin,
    /// A member of the team.
    Member,
}

/// Where requests go in, and what works them.
type Kept = (SendRequest<Full<Bytes>>, Connection<TokioIo<TcpStream>, Full<Bytes>>);

/// A kept connection. It is worked by whoever asks, as the one to the database is, so that neither side of a comparison
/// pays for a change of threads.
#[derive(Debug)]
pub(super) struct Client {
    connection: Mutex<Kept>,
    host: String,
    admin: String,
    member: String,
}

impl Client {
    /// The body of the answer to a GET.
    pub(super) async fn get(&self, who: Who, path: &str) -> anyhow::Result<Bytes> {
        let token = if who == Who::Admin { &self.admin } else { &self.member };
        self.send(Method::GET, path, Some(token), Bytes::new()).await
    }

    /// A token for a person in a team.
    async fn sign_in(&self, email: &str, team: &str) -> anyhow::Result<String> {
        let body = json!({ "email": email, "password": PASSWORD });
        let first = self.token("/v1/auth/login", None, &body).await?;
        self.token("/v1/auth/switch-team", Some(&first), &json!({ "team_id": team })).await
    }

    async fn token(&self, path: &str, token: Option<&str>, body: &Value) -> anyhow::Result<String> {
        let answer = self.send(Method::POST, path, token, body.to_string().into()).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        Ok(answer["token"].as_str().context("a sign-in gave no token")?.to_owned())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<Bytes> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.host);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body))?;
        let mut connection = self.connection.lock().await;
        let (sender, work) = &mut *connection;
        let exchange = async {
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        let (status, body) = tokio::select! {
            answer = exchange => answer?,
            ended = work => {
                ended?;
                bail!("the control plane has closed the connection");
            }
        };
        if !status.is_success() {
            bail!("{path} answered {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }
}

/// The ids in a list, which is the answer or in a field of it, as UUIDs.
pub(super) fn ids(answer: &[u8], list: Option<&str>, id: &str) -> anyhow::Result<Vec<Uuid>> {
    let answer: Value = serde_json::from_slice(answer)?;
    let items = list.map_or(&answer, |field| &answer[field]).as_array().context("an answer is no list")?;
    items
        .iter()
        .map(|item| {
            let text = item[id].as_str().context("an item has no id")?;
            let (_, encoded) = text.rsplit_once('-').context("an id has no prefix")?;
            let uuid = wrenn_core::id::decode(encoded);
            ensure!(uuid.is_some(), "{text} is no id");
            uuid.context("an id cannot be read")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_either_form_of_list() {
        let id = TeamId::random();
        let page = json!({ "items": [{ "id": id }] }).to_string();
        assert_eq!(ids(page.as_bytes(), Some("items"), "id").unwrap(), [id.uuid()]);
        let list = json!([{ "user_id": id }]).to_string();
        assert_eq!(ids(list.as_bytes(), None, "user_id").unwrap(), [id.uuid()]);
        assert!(ids(b"{}", None, "id").is_err());
    }
}
