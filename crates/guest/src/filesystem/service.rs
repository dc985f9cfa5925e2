//! `filesystem.Filesystem` on the wire.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use connectrpc::{ConnectError, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use futures::StreamExt as _;
use tokio_util::sync::{CancellationToken, DropGuard};
use wrenn_protocol::filesystem::__buffa::oneof::watch_dir_response::Event;
use wrenn_protocol::filesystem::watch_dir_response::{KeepAlive, StartEvent};
use wrenn_protocol::filesystem::{
    CreateWatcherRequest, CreateWatcherResponse, Filesystem, FilesystemEvent, GetWatcherEventsRequest,
    GetWatcherEventsResponse, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse, MoveRequest,
    MoveResponse, RemoveRequest, RemoveResponse, RemoveWatcherRequest, RemoveWatcherResponse, StatRequest,
    StatResponse, WatchDirRequest, WatchDirResponse,
};

use super::credentials::ActingAs;
use super::operations;
use super::watch::{Options, Watch};
use crate::accounts::User;
use crate::auth;
use crate::error::{Error, Kind, Result};
use crate::paths;
use crate::process::keepalive;
use crate::settings::Settings;

/// The service.
#[derive(Debug)]
pub(crate) struct Files {
    settings: Settings,
    watchers: Watchers,
}

/// Watches that outlive the request that made them, by id.
#[derive(Debug, Default)]
struct Watchers {
    by_id: Mutex<HashMap<String, Watcher>>,
    made: AtomicU64,
}

#[derive(Debug)]
struct Watcher {
    watch: Arc<Mutex<Watch>>,
    _stops_reading: DropGuard,
}

impl Files {
    /// A service without watchers.
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, watchers: Watchers::default() }
    }

    /// Runs `call` with the resolved path, on a thread that acts as the requesting user.
    async fn run<T: Send + 'static>(
        &self,
        ctx: &RequestContext,
        path: &str,
        call: impl FnOnce(&str, &User) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let values = self.settings.get();
        let user = auth::rpc_user(ctx.headers(), &values)?;
        let path = paths::resolve(path, &user, values.default_workdir.as_deref())?;
        tokio::task::spawn_blocking(move || {
            let _acting = ActingAs::user(&user);
            call(&path, &user)
        })
        .await
        .map_err(|e| Error::new(Kind::Internal, format!("the call was interrupted: {e}")))?
    }

    async fn watch(&self, ctx: &RequestContext, request: WatchDirRequest) -> Result<Watch> {
        self.run(ctx, &request.path.clone(), move |path, _user| {
            Watch::new(Options {
                path: path.to_owned(),
                recursive: request.recursive,
                include_entry: request.include_entry,
                allow_network_mounts: request.allow_network_mounts,
            })
        })
        .await
    }
}

impl Watchers {
    /// Keeps a watch, and keeps its kernel queue short by reading it as events come.
    fn keep(&self, watch: Watch) -> String {
        let readiness = watch.readiness();
        let watch = Arc::new(Mutex::new(watch));
        let stop = CancellationToken::new();
        let read = Arc::clone(&watch);
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok(mut ready) = readiness.readable().await {
                ready.clear_ready();
                lock(&read).drain();
            }
        }));
        let id = format!("watcher-{}", self.made.fetch_add(1, Ordering::Relaxed));
        lock(&self.by_id).insert(id.clone(), Watcher { watch, _stops_reading: stop.drop_guard() });
        id
    }

    fn take_events(&self, id: &str) -> Result<Vec<FilesystemEvent>> {
        let watch = lock(&self.by_id).get(id).map(|w| Arc::clone(&w.watch)).ok_or_else(|| unknown(id))?;
        Ok(lock(&watch).take())
    }

    fn remove(&self, id: &str) -> Result<()> {
        lock(&self.by_id).remove(id).map(drop).ok_or_else(|| unknown(id))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unknown(id: &str) -> Error {
    Error::not_found(format!("watcher {id} not found"))
}

/// One watch stream: `start`, then events, with signs of life in between.
struct Feed {
    watch: Watch,
    keepalive: Duration,
    started: bool,
}

impl Feed {
    async fn event(&mut self) -> Result<Event> {
        if !self.started {
            self.started = true;
            return Ok(StartEvent::default().into());
        }
        match tokio::time::timeout(self.keepalive, self.watch.next()).await {
            Ok(Ok(event)) => Ok(event.into()),
            Ok(Err(error)) => Err(Error::new(Kind::Internal, format!("the watch broke: {error}"))),
            Err(_elapsed) => Ok(KeepAlive::default().into()),
        }
    }
}

#[expect(refining_impl_trait, reason = "the plain types say what the generated `impl Encodable` hides")]
impl Filesystem for Files {
    async fn stat(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StatRequest>,
    ) -> ServiceResult<StatResponse> {
        let request = request.to_owned_message();
        let entry = self.run(&ctx, &request.path, |path, _user| operations::stat(path)).await?;
        Response::ok(StatResponse { entry: Some(entry).into(), ..StatResponse::default() })
    }

    async fn make_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MakeDirRequest>,
    ) -> ServiceResult<MakeDirResponse> {
        let request = request.to_owned_message();
        let entry = self.run(&ctx, &request.path, operations::make_dir).await?;
        Response::ok(MakeDirResponse { entry: Some(entry).into(), ..MakeDirResponse::default() })
    }

    async fn r#move(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MoveRequest>,
    ) -> ServiceResult<MoveResponse> {
        let request = request.to_owned_message();
        let workdir = self.settings.get().default_workdir.clone();
        let entry = self
            .run(&ctx, &request.source, move |source, user| {
                let destination = paths::resolve(&request.destination, user, workdir.as_deref())?;
                operations::rename(source, &destination, user)
            })
            .await?;
        Response::ok(MoveResponse { entry: Some(entry).into(), ..MoveResponse::default() })
    }

    async fn list_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ListDirRequest>,
    ) -> ServiceResult<ListDirResponse> {
        let request = request.to_owned_message();
        let depth = request.depth;
        let entries = self.run(&ctx, &request.path, move |path, _user| operations::list(path, depth)).await?;
        Response::ok(ListDirResponse { entries, ..ListDirResponse::default() })
    }

    async fn remove(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, RemoveRequest>,
    ) -> ServiceResult<RemoveResponse> {
        let request = request.to_owned_message();
        self.run(&ctx, &request.path, |path, _user| operations::remove(path)).await?;
        Response::ok(RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<WatchDirResponse>> {
        let watch = self.watch(&ctx, request.to_owned_message()).await?;
        let feed = Feed { watch, keepalive: keepalive(&ctx), started: false };
        let events = futures::stream::unfold(Some(feed), |feed| async {
            let mut feed = feed?;
            let event = feed.event().await;
            let rest = event.is_ok().then_some(feed);
            Some((event, rest))
        });
        let wrap = |event| WatchDirResponse { event: Some(event), ..WatchDirResponse::default() };
        Response::ok(Box::pin(events.map(move |event| event.map(wrap).map_err(ConnectError::from))))
    }

    async fn create_watcher(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, CreateWatcherRequest>,
    ) -> ServiceResult<CreateWatcherResponse> {
        let request = request.to_owned_message();
        let request = WatchDirRequest {
            path: request.path,
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
            ..WatchDirRequest::default()
        };
        let watcher_id = self.watchers.keep(self.watch(&ctx, request).await?);
        Response::ok(CreateWatcherResponse { watcher_id, ..CreateWatcherResponse::default() })
    }

    async fn get_watcher_events(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, GetWatcherEventsRequest>,
    ) -> ServiceResult<GetWatcherEventsResponse> {
        let events = self.watchers.take_events(&request.to_owned_message().watcher_id)?;
        Response::ok(GetWatcherEventsResponse { events, ..GetWatcherEventsResponse::default() })
    }

    async fn remove_watcher(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, RemoveWatcherRequest>,
    ) -> ServiceResult<RemoveWatcherResponse> {
        self.watchers.remove(&request.to_owned_message().watcher_id)?;
        Response::ok(RemoveWatcherResponse::default())
    }
}
