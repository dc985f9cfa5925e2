//! `/v1/users`: finding people.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wrenn_core::UserId;

use super::ApiError;
use super::docs::Failures;
use super::extract::Parameters;
use crate::auth::SignedIn;
use crate::state::App;

const LEAST: usize = 3;
const MOST_FOUND: i64 = 10;

/// Whom to look for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Search {
    /// How the address begins: at least 3 characters, with the `@`.
    #[param(required, nullable = false, min_length = 3)]
    email: Option<String>,
}

/// Somebody who was found.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FoundUser {
    #[schema(value_type = String)]
    user_id: UserId,
    email: String,
}

/// Search people by address
///
/// Active accounts whose address begins so, in the order of their addresses, at most 10.
#[utoipa::path(get, path = "/v1/users/search", tag = "teams", security(("token" = [])), params(Search),
    responses((status = 200, body = Vec<FoundUser>), Failures))]
pub(super) async fn search(
    State(app): State<App>,
    _: SignedIn,
    Parameters(query): Parameters<Search>,
) -> Result<axum::Json<Vec<FoundUser>>, ApiError> {
    let prefix = query.email.unwrap_or_default().trim().to_lowercase();
    if prefix.chars().count() < LEAST || !prefix.contains('@') || prefix.contains('\0') {
        return Err(ApiError::invalid("email must have at least 3 characters and hold the @"));
    }
    let found = app.store.search_users(&prefix, MOST_FOUND).await?;
    let users = found.into_iter().map(|user| FoundUser { user_id: user.id, email: user.email });
    Ok(axum::Json(users.collect()))
}
