//! A whole control plane in the test process: real PostgreSQL, real sockets, real mutual TLS. Only what a host does with
//! a capsule is acted out, by [`agent::FakeAgent`].

pub mod acts;
pub mod agent;
pub mod cluster;
mod guest;
pub mod mail;
pub mod people;

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wrenn_control::vault::SecretKeys;
use wrenn_control::{ControlConfig, ControlPlane, Store, admin, hosts};

use agent::{FakeAgent, World};
use cluster::Cluster;

/// Long enough for any machine; only hangs run into it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Signs the tokens of every server here.
pub const JWT_SECRET: &str = "the-secret-of-every-test-server-here";

/// A running control plane.
pub struct Server {
    pub base: String,
    pub key: String,
    pub store: Store,
    pub http: reqwest::Client,
    pub database: Option<Cluster>,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<wrenn_control::Result<()>>,
    database_url: String,
    _pki: TempDir,
}

impl Server {
    /// A control plane that waits `settle` for creates and destroys.
    pub async fn start(settle: Duration) -> Self {
        Self::configured(settle, |_| {}).await
    }

    /// A control plane with a configuration of its own.
    pub async fn configured(settle: Duration, configure: impl FnOnce(&mut ControlConfig)) -> Self {
        match std::env::var("WRENN_TEST_DATABASE_URL") {
            Ok(url) => Self::start_on(fresh_database(&url).await, None, settle, configure).await,
            Err(_) => {
                let cluster = Cluster::start().await;
                Self::start_on(cluster.url(), Some(cluster), settle, configure).await
            }
        }
    }

    /// A control plane with a database server of its own.
    pub async fn start_alone(settle: Duration) -> Self {
        let cluster = Cluster::start().await;
        Self::start_on(cluster.url(), Some(cluster), settle, |_| {}).await
    }

    async fn start_on(
        url: String,
        database: Option<Cluster>,
        settle: Duration,
        configure: impl FnOnce(&mut ControlConfig),
    ) -> Self {
        let pki = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let database_url = url;
        let store = Store::connect(&database_url).await.unwrap();
        store.migrate().await.unwrap();
        let key = admin::ensure_default_team_and_key(&store).await.unwrap().unwrap().key;
        let secrets = SecretKeys { current: "07".repeat(32).parse().unwrap(), old: Vec::new() };
        let mut config = ControlConfig::new(
            database_url.clone(),
            address,
            JWT_SECRET.to_owned(),
            secrets,
            pki.path().to_owned(),
        );
        config.settle = settle;
        configure(&mut config);
        let shutdown = CancellationToken::new();
        let serving = ControlPlane::new(config).serve_on(listener, shutdown.clone());
        let served = tokio::spawn(async move {
            serving.await.inspect_err(|error| eprintln!("the server ended: {error:?}"))
        });
        let http = reqwest::Client::new();
        let base = format!("http://{address}");
        Self { base, key, store, http, database, shutdown, served, database_url, _pki: pki }
    }

    /// A control plane with a configuration of its own and one online host.
    pub async fn configured_with_agent(
        settle: Duration,
        configure: impl FnOnce(&mut ControlConfig),
    ) -> (Self, FakeAgent) {
        let server = Self::configured(settle, configure).await;
        let agent = server.add_agent().await;
        (server, agent)
    }

    /// A control plane and one online host.
    pub async fn with_agent(settle: Duration) -> (Self, FakeAgent) {
        let server = Self::start(settle).await;
        let agent = server.add_agent().await;
        (server, agent)
    }

    /// Registers a machine and starts its agent.
    pub async fn add_agent(&self) -> FakeAgent {
        self.add_agent_with(World::new()).await
    }

    /// Registers a machine that has all this already, and starts its agent.
    pub async fn add_agent_with(&self, world: Arc<World>) -> FakeAgent {
        let token = hosts::ensure_local_host(&self.store).await.unwrap().token;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let body = json!({
            "token": token, "address": listener.local_addr().unwrap(), "arch": "x86_64",
            "cpu_cores": 16, "memory_mb": 64_000, "disk_gb": 1000,
        });
        let answer = self.http.post(self.url("/v1/hosts/register")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        FakeAgent::start(listener, &answer.json::<Value>().await.unwrap(), world)
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// A request with the team's key.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path)).header("x-api-key", &self.key).timeout(PATIENCE)
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> StatusCode {
        answer(self.request(Method::DELETE, path)).await.0
    }

    /// POST without a body.
    pub async fn act(&self, id: &str, call: &str) -> (StatusCode, Value) {
        answer(self.request(Method::POST, &format!("/v1/capsules/{id}/{call}"))).await
    }

    /// Changes the database behind the server's back.
    pub async fn sql(&self, statements: impl Into<String>) {
        self.try_sql(&statements.into()).await.unwrap();
    }

    /// Changes the database behind the server's back, where it lets that be done.
    pub async fn try_sql(&self, statements: &str) -> Result<(), sqlx::Error> {
        execute(&self.database_url, statements).await
    }

    /// Does something in another database of the server's own cluster.
    pub async fn sql_in(&self, database: &str, statements: &str) {
        let slash = self.database_url.rfind('/').unwrap();
        execute(&format!("{}/{database}", &self.database_url[..slash]), statements).await.unwrap();
    }

    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// A number that the database finds.
    pub async fn number(&self, query: &str) -> i64 {
        use sqlx::Connection;
        let mut connection = sqlx::PgConnection::connect(&self.database_url).await.unwrap();
        let query = sqlx::AssertSqlSafe(query.to_owned());
        sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap()
    }

    /// A running capsule.
    pub async fn capsule(&self) -> String {
        let (status, body) = self.post("/v1/capsules", &json!({})).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    /// Waits until the capsule has the status.
    pub async fn wait_status(&self, id: &str, wanted: &str) -> Value {
        let poll = async {
            loop {
                let (status, body) = self.get(&format!("/v1/capsules/{id}")).await;
                if status.is_success() && body["status"] == wanted {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, poll).await.unwrap_or_else(|_| panic!("{id} never became {wanted}"))
    }
}

async fn execute(url: &str, statements: &str) -> Result<(), sqlx::Error> {
    use sqlx::Connection;
    let mut connection = sqlx::PgConnection::connect(url).await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned())).execute(&mut connection).await?;
    Ok(())
}

/// Status and JSON body, `null` where there is none.
pub async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let body = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

/// The message of a refusal that has this status and code.
pub fn refused((status, body): (StatusCode, Value), as_status: u16, code: &str) -> String {
    assert_eq!((status.as_u16(), &body["error"]["code"]), (as_status, &json!(code)), "{body}");
    body["error"]["message"].as_str().unwrap().to_owned()
}

/// Status and error code.
pub async fn refusal(request: RequestBuilder) -> (u16, String) {
    let (status, body) = answer(request).await;
    assert!(body["error"]["message"].is_string(), "{status} without an error message: {body}");
    (status.as_u16(), body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

/// A new database on the server that the environment names.
async fn fresh_database(url: &str) -> String {
    use sqlx::Connection;
    let name = format!("wrenn_test_{}", uuid::Uuid::new_v4().simple());
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("create database {name}")))
        .execute(&mut connection)
        .await
        .unwrap();
    let slash = url.rfind('/').unwrap();
    format!("{}/{name}", &url[..slash])
}
