//! A control plane with a route, a layer and background work of one's own.
use axum::{Router, routing::get};
use wrenn_control::{App, ControlConfig, ControlPlane, Result, auth::Caller};

/// Runs it until `shutdown` is cancelled.
pub async fn serve(config: ControlConfig, shutdown: tokio_util::sync::CancellationToken) -> Result<()> {
    let hello = get(async |caller: Caller| format!("{} calls for {}", caller.actor.kind(), caller.team));
    let log = |router: Router, _: &App| router.layer(tower_http::trace::TraceLayer::new_for_http());
    let plane = ControlPlane::new(config).routes(Router::new().route("/v1/hello", hello)).middleware(log);
    plane.worker(async |app: App| app.shutdown().cancelled().await).serve(shutdown).await
}
