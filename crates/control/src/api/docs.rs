//! The API's own description: the OpenAPI document, and a page that renders it with nothing fetched from elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use http::Method;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi as OpenApiDocument, RefOr, Response as ResponseObject, ResponseBuilder};
use utoipa::{IntoResponses, Modify, OpenApi, PartialSchema};
use utoipa_swagger_ui::Config;

use super::{ApiError, ErrorBody, ErrorDetail};
use crate::state::App;

/// What the document says beside its routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Wrenn",
        description = "Runs untrusted code in microVMs. Every path answers under `/api` as well.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&Shared),
    security(("api_key" = []), ("token" = [])),
    tags(
        (name = "system", description = "The server itself"),
        (name = "capsules", description = "MicroVMs and their life"),
        (name = "processes", description = "Commands inside capsules"),
        (name = "files", description = "Files inside capsules"),
        (name = "templates", description = "What capsules are made from"),
        (name = "accounts", description = "People and how they sign in"),
        (name = "teams", description = "Teams and who is in them"),
        (name = "keys", description = "Credentials of programs"),
        (name = "audit", description = "What was done, and by whom"),
        (name = "administration", description = "The platform, its people and its teams"),
        (name = "hosts", description = "Machines that run capsules")
    )
)]
pub(super) struct Document;

/// The credentials, and what [`Failures`] refers to.
struct Shared;

impl Modify for Shared {
    fn modify(&self, document: &mut OpenApiDocument) {
        let components = document.components.get_or_insert_default();
        let key = ApiKey::Header(ApiKeyValue::with_description(
            "X-API-Key",
            "A team's key: `wrn_` and 32 hex digits.",
        ));
        components.schemas.insert("ErrorBody".to_owned(), ErrorBody::schema());
        components.schemas.insert("ErrorDetail".to_owned(), ErrorDetail::schema());
        components.add_security_scheme("api_key", SecurityScheme::ApiKey(key));
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
        let token = token.description(Some("The token of a person's sign-in."));
        components.add_security_scheme("token", SecurityScheme::Http(token.build()));
    }
}

/// The ways in which any call may fail.
pub(super) struct Failures;

impl IntoResponses for Failures {
    fn responses() -> BTreeMap<String, RefOr<ResponseObject>> {
        let failure = |description: &str| {
            let content = utoipa::openapi::ContentBuilder::new()
                .schema(Some(RefOr::Ref(utoipa::openapi::Ref::from_schema_name("ErrorBody"))));
            let response = ResponseBuilder::new().description(description);
            RefOr::T(response.content("application/json", content.build()).build())
        };
        BTreeMap::from([
            ("4XX".to_owned(), failure("The request is refused; `error.code` says why.")),
            ("5XX".to_owned(), failure("The platform failed; `error.code` says where.")),
        ])
    }
}

/// Schema of a file's content.
pub(super) struct Content;

impl PartialSchema for Content {
    fn schema() -> RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
            .into()
    }
}

impl utoipa::ToSchema for Content {}

/// Shows every operation of a document.
pub(super) fn each_operation(
    mut document: OpenApiDocument,
    mut show: impl FnMut(Method, &str, &mut Operation),
) -> OpenApiDocument {
    for (path, item) in &mut document.paths.paths {
        let methods = [
            (Method::GET, &mut item.get),
            (Method::POST, &mut item.post),
            (Method::PUT, &mut item.put),
            (Method::PATCH, &mut item.patch),
            (Method::DELETE, &mut item.delete),
        ];
        for (method, operation) in methods {
            if let Some(operation) = operation {
                show(method, path, operation);
            }
        }
    }
    document
}

/// The document as it is served: every operation with an id of its own, made of its method and path.
pub(super) fn finished(document: OpenApiDocument) -> OpenApiDocument {
    each_operation(document, |method, path, operation| {
        let mut id = method.as_str().to_lowercase();
        for segment in path.split('/').filter(|segment| !segment.is_empty() && *segment != "v1") {
            let name = segment.strip_prefix('{').and_then(|segment| segment.strip_suffix('}'));
            id.push_str(if name.is_some() { "_by_" } else { "_" });
            id.push_str(&name.unwrap_or(segment).replace('-', "_"));
        }
        operation.operation_id = Some(id);
    })
}

pub(super) fn yaml(document: &OpenApiDocument) -> String {
    document.to_yaml().unwrap_or_default()
}

/// What is served here.
pub(super) const PATHS: &[&str] = &["/openapi.yaml", "/docs", "/docs/{file}"];

pub(super) fn router(document: &OpenApiDocument) -> Router<App> {
    let yaml: Arc<str> = yaml(document).into();
    Router::new()
        .route(
            PATHS[0],
            get(async move || ([(CONTENT_TYPE, "application/yaml")], yaml.to_string()).into_response()),
        )
        .route(PATHS[1], get(page))
        .route(PATHS[2], get(asset))
}

/// The page's own links are relative; the base makes them so from `/docs` without a trailing slash, and behind a
/// prefix as well.
async fn page() -> Result<Html<String>, ApiError> {
    let file = file("index.html")?.ok_or_else(ApiError::internal)?;
    let html =
        String::from_utf8_lossy(&file.bytes).replacen("<head>", "<head>\n    <base href=\"docs/\">", 1);
    Ok(Html(html))
}

async fn asset(Path(name): Path<String>) -> Result<Response, ApiError> {
    let file = file(&name)?.ok_or_else(|| ApiError::not_found("there is nothing at this path"))?;
    let mut response = ([(CONTENT_TYPE, file.content_type.clone())], file.bytes.into_owned()).into_response();
    if file.gzpipped {
        response.headers_mut().insert(CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
    }
    Ok(response)
}

fn file(name: &str) -> Result<Option<utoipa_swagger_ui::SwaggerFile<'static>>, ApiError> {
    let config = Arc::new(Config::from("../openapi.yaml"));
    utoipa_swagger_ui::serve(name, config).map_err(|error| {
        tracing::error!(%error, "cannot render the documentation page");
        ApiError::internal()
    })
}
