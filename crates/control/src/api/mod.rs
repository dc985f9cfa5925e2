//! The public HTTP API: what is served where, and in which layers.
//!
//! A handler extracts, authorises through [`crate::auth::Caller`] in its signature, calls a service and maps the result.
//! Paths, bodies and answers are described where they are handled; the OpenAPI document is made of that.

mod admin;
mod audit;
mod auth;
mod capsules;
mod docs;
mod error;
mod exec;
mod extract;
mod files;
mod hosts;
mod keys;
mod layers;
mod me;
mod oauth;
mod snapshots;
mod sockets;
mod system;
mod teams;
mod users;
mod wording;

use axum::Router;
use http::HeaderValue;
use http::header::CACHE_CONTROL;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::state::App;

pub use error::{ApiError, ErrorBody, ErrorDetail};
pub(crate) use layers::{Service, service};

fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(docs::Document::openapi())
        .routes(routes!(system::health))
        .routes(routes!(capsules::list, capsules::create))
        .routes(routes!(capsules::get, capsules::destroy))
        .routes(routes!(capsules::ping))
        .routes(routes!(capsules::pause))
        .routes(routes!(capsules::resume))
        .routes(routes!(capsules::fork))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::delete))
        .routes(routes!(exec::exec))
        .routes(routes!(exec::processes))
        .routes(routes!(exec::kill))
        .routes(routes!(sockets::exec_stream))
        .routes(routes!(sockets::process_stream))
        .routes(routes!(sockets::pty))
        .merge(files::routes())
        .routes(routes!(hosts::register))
        .routes(routes!(hosts::refresh))
        .merge(people())
        .merge(admin::routes())
}

/// What people need to be people here.
fn people() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(auth::signup))
        .routes(routes!(auth::activate))
        .routes(routes!(auth::login))
        .routes(routes!(auth::switch_team))
        .routes(routes!(oauth::begin))
        .routes(routes!(oauth::callback))
        .routes(routes!(me::get, me::rename, me::delete))
        .routes(routes!(me::password))
        .routes(routes!(me::reset))
        .routes(routes!(me::confirm_reset))
        .routes(routes!(me::connect))
        .routes(routes!(me::disconnect))
        .routes(routes!(teams::list, teams::create))
        .routes(routes!(teams::get, teams::rename, teams::delete))
        .routes(routes!(teams::members, teams::add))
        .routes(routes!(teams::set_role, teams::remove))
        .routes(routes!(teams::leave))
        .routes(routes!(users::search))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::revoke))
        .routes(routes!(audit::of_team))
}

/// The OpenAPI document, in YAML.
pub fn openapi_yaml() -> String {
    docs::yaml(&docs::finished(routes().into_openapi()))
}

/// Method and path of every route that the OpenAPI document describes, with the parameters in braces.
pub fn described_routes() -> Vec<(http::Method, String)> {
    let document = routes().into_openapi();
    let mut all = Vec::new();
    docs::each_operation(document, |method, path, _| all.push((method, path.to_owned())));
    all
}

/// Method and path of every route, with those that the OpenAPI document leaves out: itself, its page, and second addresses.
pub fn all_routes() -> Vec<(http::Method, String)> {
    let mut all = described_routes();
    all.extend(docs::PATHS.iter().chain(oauth::PATHS).map(|path| (http::Method::GET, (*path).to_owned())));
    all
}

/// The API, and whatever is added to it.
pub(crate) fn router(app: App, added: Router<App>) -> Router {
    let (router, document) = routes().split_for_parts();
    // Answers may hold tokens, and none is worth keeping.
    router
        .layer(SetResponseHeaderLayer::if_not_present(CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .merge(docs::router(&docs::finished(document)))
        // The contract has the walk through a provider under both addresses.
        .merge(oauth::second_addresses())
        .merge(added)
        .fallback(async || ApiError::not_found("there is nothing at this path"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .with_state(app)
}
