//! The socket of a fake, and what can go wrong on it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::http::MAX_ANSWER;

/// What an endpoint does instead of its work.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answers with this status and an HTML page.
    Status(u16),
    /// Sends the client elsewhere.
    Redirect(String),
    /// Never answers.
    Stall,
    /// Answers with this instead.
    Json(Value),
    /// Answers with half a JSON document.
    Garbage,
    /// Answers with a well-formed document that is too long.
    Oversized,
}

/// A listening fake.
#[derive(Debug)]
pub(super) struct Server {
    traffic: Arc<Traffic>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Traffic {
    faults: Mutex<HashMap<String, Fault>>,
    counts: Mutex<HashMap<String, usize>>,
}

/// A free port and its address.
pub(super) async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    (listener, format!("http://{address}"))
}

impl Server {
    pub(super) fn start(listener: TcpListener, router: Router) -> Self {
        let traffic = Arc::new(Traffic::default());
        let router = router.layer(middleware::from_fn_with_state(traffic.clone(), disturb));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the fake provider has ended");
            }
        });
        Self { traffic, task }
    }

    pub(super) fn fail(&self, path: &str, fault: Fault) {
        lock(&self.traffic.faults).insert(path.to_owned(), fault);
    }

    pub(super) fn recover(&self) {
        lock(&self.traffic.faults).clear();
    }

    pub(super) fn requests(&self, path: &str) -> usize {
        lock(&self.traffic.counts).get(path).copied().unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A test that panicked with the lock held has already failed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn disturb(State(traffic): State<Arc<Traffic>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let fault = lock(&traffic.faults).get(&path).cloned();
    *lock(&traffic.counts).entry(path).or_default() += 1;
    let json = |body: String| ([(CONTENT_TYPE, "application/json")], body).into_response();
    match fault {
        None => next.run(request).await,
        Some(Fault::Status(status)) => {
            let status = StatusCode::from_u16(status).expect("a status");
            (status, [(CONTENT_TYPE, "text/html")], "<h1>Unicorn!</h1>").into_response()
        }
        Some(Fault::Redirect(target)) => (StatusCode::FOUND, [(LOCATION, target)]).into_response(),
        Some(Fault::Stall) => std::future::pending().await,
        Some(Fault::Json(value)) => json(value.to_string()),
        Some(Fault::Garbage) => json(r#"{"id": 7, "acc"#.to_owned()),
        Some(Fault::Oversized) => json(format!(r#"{{"padding": "{}"}}"#, "x".repeat(MAX_ANSWER))),
    }
}
