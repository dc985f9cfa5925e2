//! The authorization code flow with PKCE, which all providers have in common (RFC 6749 section 4.1, RFC 7636).

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;

use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::{
    AccessToken, AsyncHttpClient, AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret, CsrfToken,
    EndpointNotSet, EndpointSet, ExtraTokenFields, HttpRequest, HttpResponse, PkceCodeChallenge,
    PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope, StandardRevocableToken, StandardTokenResponse,
    TokenResponse, TokenUrl,
};
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::http::{Answer, Http};
use crate::{Authorization, Exchange, ProviderError};

const TOKEN: &str = "access token";

type TokenAnswer = StandardTokenResponse<WithIdToken, BasicTokenType>;
type Client = oauth2::Client<
    BasicErrorResponse,
    TokenAnswer,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// The flow at one provider.
#[derive(Debug)]
pub(crate) struct Flow {
    client: Client,
    scopes: String,
}

/// What a code was exchanged for.
pub(crate) struct Tokens {
    pub(crate) access: AccessToken,
    /// Only from OpenID Connect providers.
    pub(crate) id: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct WithIdToken {
    id_token: Option<String>,
}

impl fmt::Debug for WithIdToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithIdToken").finish_non_exhaustive()
    }
}

impl ExtraTokenFields for WithIdToken {}

#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "error")]
    _error: String,
}

impl Flow {
    /// The flow of this client between two endpoints. `scopes` are separated by spaces.
    pub(crate) fn new(
        (id, secret): (&str, &str),
        (authorize, token): (Url, Url),
        auth: AuthType,
        scopes: &str,
    ) -> Self {
        let client = oauth2::Client::new(ClientId::new(id.to_owned()))
            .set_client_secret(ClientSecret::new(secret.to_owned()))
            .set_auth_uri(AuthUrl::from_url(authorize))
            .set_token_uri(TokenUrl::from_url(token))
            .set_auth_type(auth);
        Self { client, scopes: scopes.to_owned() }
    }

    /// Where the browser goes, with further parameters.
    pub(crate) fn authorize_url(
        &self,
        request: &Authorization<'_>,
        extra: &[(&str, &str)],
    ) -> Result<String, ProviderError> {
        let challenge = PkceCodeChallenge::from_code_verifier_sha256(&verifier(request.pkce_verifier)?);
        let mut authorization = self
            .client
            .authorize_url(|| CsrfToken::new(request.state.to_owned()))
            .add_scope(Scope::new(self.scopes.clone()))
            .set_pkce_challenge(challenge)
            .set_redirect_uri(Cow::Owned(redirect(request.redirect_uri)?));
        for (name, value) in extra {
            authorization = authorization.add_extra_param(*name, *value);
        }
        Ok(authorization.url().0.into())
    }

    /// Exchanges the code.
    pub(crate) async fn tokens(&self, http: &Http, exchange: &Exchange<'_>) -> Result<Tokens, ProviderError> {
        let answer = self
            .client
            .exchange_code(AuthorizationCode::new(exchange.code.to_owned()))
            .set_pkce_verifier(verifier(exchange.pkce_verifier)?)
            .set_redirect_uri(Cow::Owned(redirect(exchange.redirect_uri)?))
            .request_async(http)
            .await
            .map_err(token_error)?;
        if *answer.token_type() != BasicTokenType::Bearer {
            return Err(ProviderError::invalid("its access token is not a bearer token"));
        }
        Ok(Tokens { access: answer.access_token().clone(), id: answer.extra_fields().id_token.clone() })
    }
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = ProviderError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, ProviderError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let request = reqwest::Request::try_from(request)
                .map_err(|_| ProviderError::configuration("the token endpoint cannot be asked"))?;
            response(self.execute(TOKEN, request).await?)
        })
    }
}

/// What `oauth2` shall see. GitHub refuses with status 200, where only the body tells; `oauth2` goes by the status.
fn response(answer: Answer) -> Result<HttpResponse, ProviderError> {
    let Answer { status, headers, body } = answer;
    let refused = serde_json::from_slice::<Refusal>(&body).is_ok();
    if status != StatusCode::OK && !refused {
        let status = status.as_u16();
        return Err(ProviderError::invalid(format!(
            "asked for the {TOKEN}, it answers with status {status}"
        )));
    }
    let mut response = HttpResponse::new(body);
    *response.status_mut() = if refused { StatusCode::BAD_REQUEST } else { status };
    *response.headers_mut() = headers;
    Ok(response)
}

fn token_error(error: RequestTokenError<ProviderError, BasicErrorResponse>) -> ProviderError {
    match error {
        RequestTokenError::Request(error) => error,
        RequestTokenError::ServerResponse(refusal) => refusal_error(refusal.error().as_ref()),
        // Their texts repeat the answer, which may hold tokens.
        RequestTokenError::Parse(..) | RequestTokenError::Other(_) => {
            ProviderError::invalid(format!("the {TOKEN} is not the expected JSON"))
        }
    }
}

/// Tells what the user can cure from what the operator must. The first list is of RFC 6749 section 5.2, the second of
/// GitHub's "Troubleshooting OAuth app access token request errors".
fn refusal_error(error: &str) -> ProviderError {
    match error {
        "invalid_client" | "unauthorized_client" | "unsupported_grant_type" | "invalid_scope" => {}
        "incorrect_client_credentials" | "redirect_uri_mismatch" => {}
        _ => {
            let well_formed =
                (1..=64).contains(&error.len()) && error.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            let reason = if well_formed { error } else { "for a reason that cannot be shown" };
            return ProviderError::Exchange(reason.to_owned());
        }
    }
    ProviderError::configuration(format!(
        "it answers {error}; compare client id, client secret and callback address with those registered there"
    ))
}

/// `oauth2` panics on a verifier of the wrong length.
fn verifier(text: &str) -> Result<PkceCodeVerifier, ProviderError> {
    let well_formed = (43..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~'));
    if well_formed {
        Ok(PkceCodeVerifier::new(text.to_owned()))
    } else {
        Err(ProviderError::configuration("the PKCE verifier does not have the form of RFC 7636"))
    }
}

fn redirect(uri: &str) -> Result<RedirectUrl, ProviderError> {
    RedirectUrl::new(uri.to_owned())
        .map_err(|_| ProviderError::configuration("the callback address is not a URL"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        let url = |path: &str| Url::parse("https://example.com").unwrap().join(path).unwrap();
        Flow::new(("id", "secret"), (url("a?tenant=1"), url("t")), AuthType::BasicAuth, "one two")
    }

    #[test]
    fn the_address_carries_the_challenge_and_not_the_verifier() {
        // Verifier and challenge are those of RFC 7636, appendix B.
        let request = Authorization {
            state: "st&te",
            redirect_uri: "https://wrenn.example/auth/oauth/x/callback",
            pkce_verifier: "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
            nonce: "unused",
        };
        let url = Url::parse(&flow().authorize_url(&request, &[("nonce", "n")]).unwrap()).unwrap();
        let mut pairs: Vec<_> = url.query_pairs().into_owned().collect();
        pairs.sort();
        let expected = [
            ("client_id", "id"),
            ("code_challenge", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"),
            ("code_challenge_method", "S256"),
            ("nonce", "n"),
            ("redirect_uri", "https://wrenn.example/auth/oauth/x/callback"),
            ("response_type", "code"),
            ("scope", "one two"),
            ("state", "st&te"),
            ("tenant", "1"),
        ];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn malformed_requests_are_refused() {
        let good = "v".repeat(43);
        let request = |pkce_verifier: &str, redirect_uri: &str| {
            let request = Authorization { state: "s", redirect_uri, pkce_verifier, nonce: "n" };
            flow().authorize_url(&request, &[])
        };
        assert!(request(&good, "https://wrenn.example/").is_ok());
        for bad in ["", &"v".repeat(42), &"v".repeat(129), &" ".repeat(43)] {
            assert!(matches!(request(bad, "https://wrenn.example/"), Err(ProviderError::Configuration(_))));
        }
        assert!(matches!(request(&good, "/callback"), Err(ProviderError::Configuration(_))));
    }

    #[test]
    fn a_refusal_is_the_users_or_the_operators() {
        assert!(matches!(refusal_error("invalid_grant"), ProviderError::Exchange(_)));
        assert!(matches!(refusal_error("bad_verification_code"), ProviderError::Exchange(_)));
        assert!(matches!(refusal_error("invalid_client"), ProviderError::Configuration(_)));
        assert!(matches!(refusal_error("incorrect_client_credentials"), ProviderError::Configuration(_)));
    }

    #[test]
    fn a_refusal_repeats_no_code() {
        let error = refusal_error("the code abc123 is bad");
        assert!(!error.to_string().contains("abc123"), "{error}");
    }
}
