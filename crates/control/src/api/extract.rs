//! What handlers take out of a request, with refusals in the API's own form.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use wrenn_core::CapsuleId;

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

/// The capsule in the path.
#[derive(Debug, Clone, Copy)]
pub(super) struct InCapsule(pub(super) CapsuleId);

impl<S: Send + Sync> FromRequestParts<S> for InCapsule {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(path) = Path::<IdPath>::from_request_parts(parts, state).await.map_err(|e| bad_path(&e))?;
        Ok(Self(path.id.parse()?))
    }
}

/// The template in the path, unchecked.
#[derive(Debug, Clone)]
pub(super) struct InTemplate(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for InTemplate {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(path) =
            Path::<NamePath>::from_request_parts(parts, state).await.map_err(|e| bad_path(&e))?;
        Ok(Self(path.name))
    }
}

/// The process in the path.
#[derive(Debug, Clone)]
pub(super) struct InProcess(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for InProcess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(path) =
            Path::<SelectorPath>::from_request_parts(parts, state).await.map_err(|e| bad_path(&e))?;
        Ok(Self(path.selector))
    }
}

#[derive(Debug, serde::Deserialize)]
struct IdPath {
    id: String,
}

#[derive(Debug, serde::Deserialize)]
struct NamePath {
    name: String,
}

#[derive(Debug, serde::Deserialize)]
struct SelectorPath {
    selector: String,
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
