//! What handlers take out of a request, with refusals in the API's own form.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use wrenn_core::{ApiKeyId, CapsuleId, TeamId, UserId};

use super::{ApiError, wording};

/// A JSON object as the body. Arrays are refused although they would fill the fields in order.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let said_to_be_json = is_json(request.headers());
        let body = Bytes::from_request(request, state).await.map_err(|rejection| unread(&rejection))?;
        if !said_to_be_json {
            return Err(ApiError::invalid("send the body as Content-Type: application/json"));
        }
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(ApiError::invalid("the body must be a JSON object"));
        }
        match axum::Json::from_bytes(&body) {
            Ok(axum::Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(refuse(&rejection)),
        }
    }
}

/// A body of no declared type can only be meant as JSON.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(declared) = headers.get(CONTENT_TYPE) else { return true };
    let essence = declared.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn unread(rejection: &BytesRejection) -> ApiError {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::too_large("the request body is larger than this call takes");
    }
    ApiError::invalid(rejection.body_text())
}

fn refuse(rejection: &JsonRejection) -> ApiError {
    match rejection {
        JsonRejection::JsonDataError(error) => ApiError::invalid(cause(error)),
        JsonRejection::JsonSyntaxError(error) => {
            ApiError::invalid(format!("the body is not JSON: {}", cause(error)))
        }
        other => ApiError::invalid(other.body_text()),
    }
}

/// The innermost cause begins with the path of the field.
fn cause(error: &dyn std::error::Error) -> String {
    wording::in_json(&error.source().map_or_else(|| error.to_string(), ToString::to_string))
}

/// One parameter of the path, as text.
async fn in_path<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> Result<String, ApiError> {
    let path = Path::<HashMap<String, String>>::from_request_parts(parts, state).await;
    let Path(mut path) = path.map_err(|rejection| bad_path(&rejection))?;
    path.remove(name).ok_or_else(ApiError::internal)
}

macro_rules! path_texts {
    ($($(#[$doc:meta])* $type:ident = $parameter:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub(super) struct $type(pub(super) String);

        impl<S: Send + Sync> FromRequestParts<S> for $type {
            type Rejection = ApiError;

            async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
                in_path(parts, state, $parameter).await.map(Self)
            }
        }
    )*};
}

macro_rules! path_ids {
    ($($(#[$doc:meta])* $type:ident($id:ty) = $parameter:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub(super) struct $type(pub(super) $id);

        impl<S: Send + Sync> FromRequestParts<S> for $type {
            type Rejection = ApiError;

            async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
                Ok(Self(in_path(parts, state, $parameter).await?.parse()?))
            }
        }
    )*};
}

path_texts! {
    /// The template in the path, unchecked.
    InTemplate = "name";
    /// The process in the path.
    InProcess = "selector";
    /// The sign-in provider in the path, unchecked.
    InProvider = "provider";
}

path_ids! {
    /// The capsule in the path.
    InCapsule(CapsuleId) = "id";
    /// The key in the path.
    InKey(ApiKeyId) = "id";
    /// The team in the path, of administrators who need not be in it.
    AnyTeam(TeamId) = "id";
    /// The account in the path, of administrators.
    AnyUser(UserId) = "id";
    /// The member in the path.
    InUser(UserId) = "uid";
}

fn bad_path(rejection: &PathRejection) -> ApiError {
    ApiError::invalid(rejection.body_text())
}

/// Query parameters.
#[derive(Debug)]
pub(super) struct Parameters<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(query) = Query::from_request_parts(parts, state)
            .await
            .map_err(|rejection| ApiError::invalid(wording::in_json(&rejection.body_text())))?;
        Ok(Self(query))
    }
}
