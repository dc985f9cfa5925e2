//! What a provider says about itself (OpenID Connect Discovery 1.0).

use oauth2::AuthType;
use serde::Deserialize;
use url::Url;

use super::OidcConfig;
use crate::ProviderError;
use crate::flow::Flow;
use crate::http::Http;

const WHAT: &str = "OpenID configuration";

/// Where a provider is asked for what.
#[derive(Debug)]
pub(super) struct Endpoints {
    pub(super) flow: Flow,
    pub(super) keys: Url,
    pub(super) userinfo: Option<Url>,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

/// Where the document is. A terminating slash of the issuer does not count here, though it does elsewhere.
pub(super) fn document_url(issuer: &str) -> Result<Url, ProviderError> {
    let text = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let refused = || {
        ProviderError::configuration(format!("the issuer {issuer:?} is not an https address without a query"))
    };
    let url = Url::parse(&text).map_err(|_| refused())?;
    if url.query().is_some() || url.fragment().is_some() || !url.has_host() {
        Err(refused())
    } else {
        Ok(url)
    }
}

/// Fetches and checks the document.
pub(super) async fn endpoints(
    http: &Http,
    url: Url,
    config: &OidcConfig,
) -> Result<Endpoints, ProviderError> {
    let document: Document = http.send(WHAT, http.get(url)).await?.json(WHAT)?;
    if document.issuer != config.issuer {
        return Err(ProviderError::configuration(format!(
            "the issuer is configured as {:?}, but the {WHAT} found there belongs to another one; \
             configure the issuer exactly as the provider documents it",
            config.issuer,
        )));
    }
    let auth = client_authentication(document.token_endpoint_auth_methods_supported.as_deref())?;
    let authorize = http.endpoint("authorization endpoint", &document.authorization_endpoint)?;
    let token = http.endpoint("token endpoint", &document.token_endpoint)?;
    let userinfo =
        document.userinfo_endpoint.map(|text| http.endpoint("userinfo endpoint", &text)).transpose()?;
    Ok(Endpoints {
        flow: Flow::new((&config.client_id, &config.client_secret), (authorize, token), auth, &config.scopes),
        keys: http.endpoint("JWKS address", &document.jwks_uri)?,
        userinfo,
    })
}

/// `client_secret_basic` is what a provider means that names no method.
fn client_authentication(supported: Option<&[String]>) -> Result<AuthType, ProviderError> {
    let offers = |method: &str| supported.is_none_or(|all| all.iter().any(|one| one == method));
    if offers("client_secret_basic") {
        Ok(AuthType::BasicAuth)
    } else if offers("client_secret_post") {
        Ok(AuthType::RequestBody)
    } else {
        Err(ProviderError::configuration(
            "it accepts neither client_secret_basic nor client_secret_post; allow one of them for this client",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_below_the_issuer() {
        let url = |issuer| document_url(issuer).map(String::from);
        let expected = "https://sso.example/realm/.well-known/openid-configuration";
        assert_eq!(url("https://sso.example/realm").unwrap(), expected);
        assert_eq!(url("https://sso.example/realm/").unwrap(), expected);
        for bad in ["", "sso.example", "https://sso.example/?a=b", "https://sso.example/#a", "mailto:a@b"] {
            assert!(matches!(url(bad), Err(ProviderError::Configuration(_))), "{bad}");
        }
    }

    #[test]
    fn the_client_authenticates_as_the_provider_wants() {
        let chosen = |methods: &[&str]| {
            let methods: Vec<_> = methods.iter().map(|&method| method.to_owned()).collect();
            client_authentication(Some(&methods)).ok()
        };
        assert!(matches!(client_authentication(None), Ok(AuthType::BasicAuth)));
        assert!(matches!(chosen(&["client_secret_post", "client_secret_basic"]), Some(AuthType::BasicAuth)));
        assert!(matches!(chosen(&["private_key_jwt", "client_secret_post"]), Some(AuthType::RequestBody)));
        assert!(chosen(&["private_key_jwt"]).is_none());
        assert!(chosen(&[]).is_none());
    }
}
