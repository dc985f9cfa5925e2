//! What handlers take out of a request, with refusals in the API's own form.

use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use http::StatusCode;
use http::request::Parts;
use serde::de::DeserializeOwned;
use wrenn_core::CapsuleId;

use super::ApiError;

/// A JSON body.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match axum::Json::from_request(request, state).await {
            Ok(axum::Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(refuse(&rejection)),
        }
    }
}

fn refuse(rejection: &JsonRejection) -> ApiError {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::too_large("the request body is larger than this call takes");
    }
    match rejection {
        JsonRejection::MissingJsonContentType(_) => {
            ApiError::invalid("send the body as Content-Type: application/json")
        }
        JsonRejection::JsonDataError(error) => ApiError::invalid(cause(error)),
        JsonRejection::JsonSyntaxError(error) => {
            ApiError::invalid(format!("the body is not JSON: {}", cause(error)))
        }
        other => ApiError::invalid(other.body_text()),
    }
}

/// The innermost cause begins with the path of the field.
fn cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
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
            .map_err(|rejection| ApiError::invalid(rejection.body_text()))?;
        Ok(Self(query))
    }
}
