//! `/auth/oauth`: signing in with a provider. A browser walks here, so every answer but one is a redirect.

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{CACHE_CONTROL, LOCATION};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::ApiError;
use super::docs::Failures;
use super::extract::{InProvider, Parameters};
use crate::accounts::{self, Callback, Intent, Landing};
use crate::auth::{CookieJar, Unhurried, is_https};
use crate::state::App;

/// The second addresses of what is here.
pub(super) const PATHS: &[&str] = &["/v1/auth/oauth/{provider}", "/v1/auth/oauth/{provider}/callback"];

pub(super) fn second_addresses() -> Router<App> {
    Router::new().route(PATHS[0], get(begin)).route(PATHS[1], get(callback))
}

fn redirect(landing: Landing) -> Response {
    let headers = [(LOCATION, landing.location), (CACHE_CONTROL, "no-store".to_owned())];
    (StatusCode::FOUND, landing.cookies, headers).into_response()
}

/// What the sign-in is for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Begin {
    /// `login` (the default) or `signup`.
    intent: Option<String>,
}

/// Sign in with a provider
///
/// Sends a browser to the provider.
#[utoipa::path(get, path = "/auth/oauth/{provider}", tag = "accounts", security(()),
    params(("provider" = String, Path, description = "Such as `github`"), Begin),
    responses((status = 302, description = "To the provider"), Failures))]
pub(super) async fn begin(
    State(app): State<App>,
    InProvider(provider): InProvider,
    Parameters(query): Parameters<Begin>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let intent = Intent::parse(query.intent.as_deref())
        .ok_or_else(|| ApiError::invalid("intent must be login or signup"))?;
    Ok(redirect(accounts::begin(&app, &provider, intent, is_https(&headers)).await?))
}

/// Come back from a provider
///
/// Sends the browser to the dashboard, with the sign-in in short-lived cookies, or with `error` in the address.
#[utoipa::path(get, path = "/auth/oauth/{provider}/callback", tag = "accounts", security(()),
    params(("provider" = String, Path, description = "Such as `github`"),
        ("code" = Option<String>, Query, description = "From the provider"),
        ("state" = Option<String>, Query, description = "From the provider"),
        ("error" = Option<String>, Query, description = "From the provider")),
    responses((status = 302, description = "To the dashboard"), Failures))]
pub(super) async fn callback(
    State(app): State<App>,
    Unhurried(client): Unhurried,
    InProvider(provider): InProvider,
    query: Result<Query<Callback>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let query = query.map(|Query(query)| query).unwrap_or_default();
    let secure = is_https(&headers);
    redirect(accounts::callback(&app, &provider, CookieJar(&headers), query, client, secure).await)
}
