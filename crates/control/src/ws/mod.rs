//! WebSockets: what all of them share.
//!
//! A socket is split. One task writes, fed through a short queue, so that a slow reader holds up the process whose output
//! it reads and nobody else. The session reads: it goes on answering Pings while a write waits.

mod exec;
mod pty;
mod utf8;

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::StatusCode;
use http::request::Parts;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_util::sync::CancellationToken;
use wrenn_core::limits::MAX_WS_MESSAGE;
use wrenn_core::{CapsuleId, TeamId};

use crate::api::ApiError;
use crate::auth::{self, Caller, SignedIn};
use crate::guest::Guest;
use crate::state::App;

pub(crate) use exec::{attach, exec};
pub(crate) use pty::pty;

const BEAT_EVERY: Duration = Duration::from_secs(30);
/// A peer that sends nothing at all for this long, not even Pongs, is gone.
const IDLE: Duration = Duration::from_secs(120);
/// How long a client may take to say the first thing.
const FIRST_MESSAGE: Duration = Duration::from_secs(5);
/// How long the last messages may take to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages waiting to be written.
const QUEUE: usize = 4;
/// Largest piece of output in one message, in bytes; small, so that a Pong never waits long.
const PIECE: usize = 32 * 1024;

/// Up to this size, in bytes, a message that is too long is read to its end before it is refused: a connection closed on
/// unread data is reset, and a client that is still sending may then never see why.
const MAX_READ: usize = 2 * MAX_WS_MESSAGE;

const AUTH_FAILED: &str = "authentication failed";

/// For whom a route acts, and so who may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Realm {
    /// For the caller's team.
    Team,
    /// For the platform's own team, by its administrators.
    Platform,
}

impl Realm {
    fn admit(self, person: SignedIn) -> Result<Caller, ApiError> {
        match self {
            Self::Team => person.caller(),
            Self::Platform => Ok(auth::ranked(person)?.caller()),
        }
    }

    async fn by_headers(self, app: &App, parts: &Parts) -> Result<Caller, ApiError> {
        match self {
            Self::Team => auth::authenticate(app, parts).await,
            Self::Platform => Ok(auth::administrator(app, parts).await?.caller()),
        }
    }

    async fn by_token(self, app: &App, parts: &Parts, token: &str) -> Result<Caller, ApiError> {
        self.admit(auth::by_token(app, parts, token).await?)
    }
}

/// The token in the address, for browsers, whose sockets cannot send headers.
fn query_token(parts: &Parts) -> Option<String> {
    let query = parts.uri.query()?;
    let (_, token) = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "token")?;
    Some(token.into_owned())
}

/// A WebSocket handshake: the upgrade, and whom it proves.
pub(crate) struct Handshake {
    upgrade: WebSocketUpgrade,
    realm: Realm,
    caller: Result<Caller, ApiError>,
    /// Of the handshake, for what is logged of a later refusal.
    parts: Parts,
}

impl Handshake {
    async fn read(parts: &mut Parts, app: &App, realm: Realm) -> Result<Self, ApiError> {
        let mut caller = realm.by_headers(app, parts).await;
        let upgrade = match WebSocketUpgrade::from_request_parts(parts, app).await {
            Ok(upgrade) => upgrade,
            // A plain request gets a plain answer.
            Err(_) => {
                let told = || ApiError::invalid("this path takes WebSocket connections");
                return Err(caller.err().unwrap_or_else(told));
            }
        };
        if caller.as_ref().is_err_and(is_refusal)
            && let Some(token) = query_token(parts)
        {
            caller = realm.by_token(app, parts, &token).await;
        }
        let mut parts = parts.clone();
        parts.uri = http::Uri::default();
        Ok(Self { upgrade, realm, caller, parts })
    }
}

/// Whether a credential was refused, so that another one may do.
fn is_refusal(error: &ApiError) -> bool {
    matches!(error.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

impl FromRequestParts<App> for Handshake {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        Self::read(parts, app, Realm::Team).await
    }
}

/// A handshake of an administrator, on capsules of the platform's own team.
pub(crate) struct PlatformHandshake(pub(crate) Handshake);

impl FromRequestParts<App> for PlatformHandshake {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        Handshake::read(parts, app, Realm::Platform).await.map(Self)
    }
}

/// How a route speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// A stream that the client begins; kept alive by Ping frames.
    Exec,
    /// A stream that is followed in silence; kept alive by Ping frames.
    Follow,
    /// Terminals; kept alive by `ping` messages, failures carry `fatal`.
    Terminal,
}

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ending {
    /// All was said.
    Done,
    /// Said to the client, then closed.
    Failed(String),
    /// The client did not prove who it is.
    Unauthorized,
    /// A message of the client was longer than [`MAX_WS_MESSAGE`].
    TooLarge,
    /// The client said nothing for too long.
    Idle,
    /// The server ends.
    Shutdown,
    /// The client is gone.
    Gone,
}

impl From<ApiError> for Ending {
    fn from(error: ApiError) -> Self {
        Self::Failed(error.message)
    }
}

/// One thing that a client sent.
#[derive(Debug)]
enum Inbound {
    Text(Value),
    Binary(Bytes),
}

/// A socket in use: where messages go and come from.
struct Session {
    app: App,
    team: Option<TeamId>,
    capsule: CapsuleId,
    dialect: Dialect,
    out: mpsc::Sender<Message>,
    inbound: SplitStream<WebSocket>,
    /// Cancelled when the caller may not use the capsule any more.
    lapsed: CancellationToken,
}

impl Handshake {
    /// Accepts the socket and runs `body` on it.
    pub(crate) fn serve<F, Fut>(self, app: App, capsule: CapsuleId, dialect: Dialect, body: F) -> Response
    where
        F: FnOnce(SocketTask) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let tracked = app.tasks.clone();
        let Self { upgrade, realm, caller, parts } = self;
        let proof = Proof { realm, caller, parts };
        upgrade.max_message_size(MAX_READ).max_frame_size(MAX_READ).write_buffer_size(PIECE).on_upgrade(
            move |socket| tracked.track_future(body(SocketTask { app, capsule, dialect, proof, socket })),
        )
    }
}

/// Whom a handshake proves, and what the first message may still prove.
struct Proof {
    realm: Realm,
    caller: Result<Caller, ApiError>,
    parts: Parts,
}

/// An accepted socket, not yet authenticated.
pub(crate) struct SocketTask {
    app: App,
    capsule: CapsuleId,
    dialect: Dialect,
    proof: Proof,
    socket: WebSocket,
}

impl SocketTask {
    /// Authenticates, finds the capsule, runs `body`, and says goodbye as its ending demands.
    async fn run<F>(self, body: F)
    where
        F: AsyncFnOnce(&mut Session, Guest) -> Ending,
    {
        let Self { app, capsule, dialect, proof, socket } = self;
        let (sink, inbound) = socket.split();
        let (out, queue) = mpsc::channel(QUEUE);
        let writer = app.tasks.spawn(write(sink, queue, dialect.beat()));
        let lapsed = CancellationToken::new();
        // Ends the watch with the session, however that ends.
        let _watched = lapsed.clone().drop_guard();
        let mut session = Session { app: app.clone(), team: None, capsule, dialect, out, inbound, lapsed };
        let ending = match session.admit(proof).await {
            Ok(guest) => body(&mut session, guest).await,
            Err(ending) => ending,
        };
        session.finish(ending, writer).await;
    }
}

/// Looks every [`BEAT_EVERY`] whether the caller may still use the socket, and says where they may not.
async fn watch(app: App, realm: Realm, caller: Caller, lapsed: CancellationToken) {
    loop {
        tokio::select! {
            () = lapsed.cancelled() => return,
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(BEAT_EVERY) => {}
        }
        match auth::may_go_on(&app, &caller, realm == Realm::Platform).await {
            // A database that is away ends nobody's terminal.
            Ok(true) | Err(_) => {}
            Ok(false) => {
                tracing::info!(team.id = %caller.team, "a socket ends: its caller may not use it any more");
                return lapsed.cancel();
            }
        }
    }
}

impl Dialect {
    fn beat(self) -> Message {
        match self {
            Self::Exec | Self::Follow => Message::Ping(Bytes::new()),
            Self::Terminal => Message::Text(Utf8Bytes::from_static(r#"{"type":"ping"}"#)),
        }
    }

    fn error(self, text: &str) -> Value {
        match self {
            Self::Exec | Self::Follow => serde_json::json!({"type": "error", "data": text}),
            Self::Terminal => serde_json::json!({"type": "error", "data": text, "fatal": true}),
        }
    }
}

impl Session {
    async fn admit(&mut self, proof: Proof) -> Result<Guest, Ending> {
        let caller = match proof.caller {
            Ok(caller) => caller,
            Err(error) if is_refusal(&error) => self.first_message(proof.realm, &proof.parts).await?,
            Err(error) => return Err(self.refuse(error).await),
        };
        self.team = Some(caller.team);
        self.app.tasks.spawn(watch(self.app.clone(), proof.realm, caller.clone(), self.lapsed.clone()));
        match crate::capsules::guest(&self.app, caller.team, self.capsule).await {
            Ok(guest) => Ok(guest),
            Err(error) => Err(self.refuse(error).await),
        }
    }

    /// Whom the first message proves.
    async fn first_message(&mut self, realm: Realm, parts: &Parts) -> Result<Caller, Ending> {
        let Ok(first) = timeout(FIRST_MESSAGE, self.receive()).await else {
            return Err(Ending::Unauthorized);
        };
        let Inbound::Text(message) = first? else { return Err(Ending::Unauthorized) };
        let token = text(&message["token"]).filter(|_| message["type"] == "auth");
        let Some(token) = token else { return Err(Ending::Unauthorized) };
        match realm.by_token(&self.app, parts, &token).await {
            Ok(caller) => Ok(caller),
            Err(error) if is_refusal(&error) => Err(Ending::Unauthorized),
            Err(error) => Err(error.into()),
        }
    }

    /// A client that speaks first would fail to, and never read why, if the socket were closed before it did.
    async fn refuse(&mut self, error: ApiError) -> Ending {
        if self.dialect != Dialect::Follow
            && let Ok(Err(ending)) = timeout(FIRST_MESSAGE, self.receive()).await
        {
            return ending;
        }
        error.into()
    }

    /// The next message with content. JSON that is none is reported as `null`, which no message is.
    async fn receive(&mut self) -> Result<Inbound, Ending> {
        loop {
            let next = tokio::select! {
                next = timeout(IDLE, self.inbound.next()) => next.map_err(|_| Ending::Idle)?,
                () = self.app.shutdown.cancelled() => return Err(Ending::Shutdown),
                () = self.lapsed.cancelled() => return Err(Ending::Unauthorized),
            };
            match next {
                Some(Ok(Message::Text(text))) => {
                    check_size(text.as_bytes())?;
                    return Ok(Inbound::Text(serde_json::from_str(&text).unwrap_or_default()));
                }
                Some(Ok(Message::Binary(data))) => {
                    check_size(&data)?;
                    return Ok(Inbound::Binary(data));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Err(error)) => return Err(broken(error)),
                Some(Ok(Message::Close(_))) | None => return Err(Ending::Gone),
            }
        }
    }

    /// The first message that is not a repeated `auth`.
    async fn first(&mut self) -> Result<Value, Ending> {
        loop {
            match self.receive().await? {
                Inbound::Text(message) if message["type"] == "auth" => {}
                Inbound::Text(message) => return Ok(message),
                Inbound::Binary(_) => {
                    return Err(Ending::Failed("the first message must be JSON text".into()));
                }
            }
        }
    }

    async fn send(&self, message: &impl Serialize) -> Result<(), Ending> {
        send(&self.out, message).await
    }

    async fn finish(self, ending: Ending, mut writer: JoinHandle<()>) {
        let error = match &ending {
            Ending::Failed(text) => Some(self.dialect.error(text)),
            Ending::Unauthorized => Some(self.dialect.error(AUTH_FAILED)),
            Ending::TooLarge => Some(self.dialect.error(&too_large())),
            Ending::Done | Ending::Idle | Ending::Shutdown | Ending::Gone => None,
        };
        let code = match ending {
            Ending::Done | Ending::Failed(_) => Some(close_code::NORMAL),
            Ending::Unauthorized => Some(close_code::POLICY),
            Ending::TooLarge => Some(close_code::SIZE),
            Ending::Idle | Ending::Shutdown => Some(close_code::AWAY),
            Ending::Gone => None,
        };
        let Self { app, capsule, out, mut inbound, team, .. } = self;
        let farewell = async {
            if let Some(error) = error {
                let _ = send(&out, &error).await;
            }
            if let Some(code) = code {
                let frame = CloseFrame { code, reason: Utf8Bytes::default() };
                let _ = out.send(Message::Close(Some(frame))).await;
                drop(out);
                // After a message beyond all limits there is no peer to hear from; what was said must leave all the same.
                let _ = (&mut writer).await;
                // The peer's own close, after which the connection ends in order.
                while let Some(Ok(_)) = inbound.next().await {}
            }
        };
        // Whoever reads nothing any more gets no farewell.
        let _ = timeout(CLOSE_TIMEOUT, farewell).await;
        writer.abort();
        if team.is_some() {
            let now = time::OffsetDateTime::now_utc();
            if let Err(error) = app.store.capsules_active(&[(capsule, now)]).await {
                tracing::warn!(%error, "cannot record the use of capsule {capsule}");
            }
        }
    }
}

async fn send(out: &mpsc::Sender<Message>, message: &impl Serialize) -> Result<(), Ending> {
    let text = serde_json::to_string(message)
        .map_err(|_| Ending::Failed("a message could not be written".into()))?;
    out.send(Message::Text(text.into())).await.map_err(|_| Ending::Gone)
}

fn check_size(message: &[u8]) -> Result<(), Ending> {
    if message.len() > MAX_WS_MESSAGE { Err(Ending::TooLarge) } else { Ok(()) }
}

fn too_large() -> String {
    format!("a message may have {MAX_WS_MESSAGE} bytes at most; send more in several messages")
}

/// Why nothing can be read any more. After a message beyond [`MAX_READ`] the connection still takes a farewell.
fn broken(error: axum::Error) -> Ending {
    match error.into_inner().downcast_ref() {
        Some(tungstenite::Error::Capacity(CapacityError::MessageTooLong { .. })) => Ending::TooLarge,
        _ => Ending::Gone,
    }
}

/// Writes what comes through the queue, and a beat every [`BEAT_EVERY`], until the queue or the connection ends.
async fn write(mut sink: SplitSink<WebSocket, Message>, mut queue: mpsc::Receiver<Message>, beat: Message) {
    let mut beats = interval_at(Instant::now() + BEAT_EVERY, BEAT_EVERY);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            message = queue.recv() => message,
            _ = beats.tick() => Some(beat.clone()),
        };
        let Some(message) = message else { return };
        let last = matches!(message, Message::Close(_));
        if sink.send(message).await.is_err() || last {
            return;
        }
    }
}

/// Strings of an optional JSON array; `None` where it is something else.
fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// Strings of an optional JSON object; `None` where it is something else.
fn string_map(value: &Value) -> Option<std::collections::BTreeMap<String, String>> {
    match value {
        Value::Null => Some(std::collections::BTreeMap::new()),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        }
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}
