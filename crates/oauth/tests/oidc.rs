//! Signing in with a provider of OpenID Connect.

mod common;

use common::{
    AUTHORIZATION, STATE, code, exchange, is_configuration, is_exchange, is_invalid, is_unreachable, sign_in,
};
use serde_json::{Value, json};
use wrenn_oauth::testing::{CLIENT_ID, FakeOidc, Fault, KeyKind, OidcProfile, Signing, open, parameter};
use wrenn_oauth::{Exchange, Identity, Oidc, OidcConfig, Provider, ProviderError};

fn ada() -> OidcProfile {
    let claims = json!({"email": "Ada@Example.com", "email_verified": true, "name": "Ada Lovelace"});
    OidcProfile::new("248289761001", &claims)
}

async fn oidc(profile: OidcProfile) -> FakeOidc {
    let oidc = FakeOidc::start().await;
    oidc.sign_in_as(profile);
    oidc
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs()
}

/// The outcome after these claims of the ID token were overridden.
async fn with_claims(claims: Value) -> Result<Identity, ProviderError> {
    let oidc = oidc(ada()).await;
    for (claim, value) in claims.as_object().expect("an object") {
        oidc.override_token(claim, value.clone());
    }
    sign_in(&*oidc.provider("sso")).await
}

#[tokio::test]
async fn an_id_token_identifies() {
    let oidc = oidc(ada()).await;
    let provider = oidc.provider("sso");
    assert_eq!(provider.name(), "sso");
    for _ in 0..2 {
        let identity = sign_in(&*provider).await.unwrap();
        let (subject, email) = ("248289761001".to_owned(), Some("ada@example.com".to_owned()));
        assert_eq!(identity, Identity { subject, email, name: "Ada Lovelace".to_owned() });
    }
    assert_eq!(oidc.requests(FakeOidc::DISCOVERY), 1);
    assert_eq!(oidc.requests(FakeOidc::KEYS), 1);
    assert_eq!(oidc.requests(FakeOidc::USERINFO), 0);
}

#[tokio::test]
async fn every_common_kind_of_key_verifies() {
    let oidc = oidc(ada()).await;
    for kind in [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519, KeyKind::Rsa] {
        oidc.rotate_key("key", kind);
        let result = sign_in(&*oidc.provider("sso")).await;
        assert!(result.is_ok(), "{kind:?}: {result:?}");
    }
}

#[tokio::test]
async fn forged_signatures_are_refused() {
    for kind in [KeyKind::P256, KeyKind::Rsa] {
        let oidc = oidc(ada()).await;
        oidc.rotate_key("key", kind);
        for signing in [Signing::Unsigned, Signing::PublicKeyAsSecret, Signing::AnotherKey] {
            oidc.sign(signing);
            let result = sign_in(&*oidc.provider("sso")).await;
            assert!(is_invalid(&result), "{kind:?} {signing:?}: {result:?}");
        }
        oidc.sign(Signing::Published);
        assert!(sign_in(&*oidc.provider("sso")).await.is_ok());
    }
}

#[tokio::test]
async fn tokens_meant_for_others_are_refused() {
    for claims in [
        json!({"nonce": "of another browser"}),
        json!({"nonce": null}),
        json!({"aud": "another client"}),
        json!({"aud": null}),
        json!({"aud": []}),
        json!({"aud": [CLIENT_ID, "another client"]}),
        json!({"aud": [CLIENT_ID, "another client"], "azp": "another client"}),
        json!({"azp": "another client"}),
        json!({"iss": "https://another.example"}),
        json!({"iss": null}),
        json!({"iss": []}),
        json!({"sub": null}),
        json!({"sub": ""}),
        json!({"sub": 7}),
        json!({"exp": now() - 120}),
        json!({"exp": null}),
        json!({"exp": "tomorrow"}),
        json!({"nbf": now() + 120}),
    ] {
        let result = with_claims(claims.clone()).await;
        assert!(is_invalid(&result), "{claims}: {result:?}");
    }
}

#[tokio::test]
async fn tokens_at_the_edge_are_accepted() {
    for claims in [
        json!({"exp": now() - 5, "iat": now() - 305}),
        json!({"nbf": now() + 5}),
        json!({"aud": [CLIENT_ID]}),
        json!({"aud": [CLIENT_ID, "another client"], "azp": CLIENT_ID}),
    ] {
        let result = with_claims(claims.clone()).await;
        assert!(result.is_ok(), "{claims}: {result:?}");
    }
}

#[tokio::test]
async fn a_nonce_of_another_visit_is_refused() {
    let oidc = oidc(ada()).await;
    let provider = oidc.provider("sso");
    let code = code(&*provider).await;
    let result = provider.identify(&Exchange { nonce: "of another visit", ..exchange(&code) }).await;
    assert!(is_invalid(&result), "{result:?}");
}

#[tokio::test]
async fn only_a_verified_address_counts() {
    let email = async |claims| with_claims(claims).await.unwrap().email;
    assert_eq!(email(json!({"email_verified": false})).await, None);
    assert_eq!(email(json!({"email_verified": "false"})).await, None);
    assert_eq!(email(json!({"email_verified": null})).await, None);
    assert!(email(json!({"email_verified": "true"})).await.is_some());
}

#[tokio::test]
async fn the_userinfo_endpoint_adds_what_the_token_lacks() {
    let oidc = oidc(ada()).await;
    for claim in ["email", "email_verified", "name"] {
        oidc.override_token(claim, Value::Null);
    }
    let provider = oidc.provider("sso");
    let identity = sign_in(&*provider).await.unwrap();
    assert_eq!((identity.email.as_deref(), &*identity.name), (Some("ada@example.com"), "Ada Lovelace"));

    oidc.override_userinfo("email_verified", json!(false));
    assert_eq!(sign_in(&*provider).await.unwrap().email, None);
    oidc.override_userinfo("sub", json!("somebody else"));
    assert!(is_invalid(&sign_in(&*provider).await));
    oidc.override_userinfo("sub", Value::Null);
    assert!(is_invalid(&sign_in(&*provider).await));
}

#[tokio::test]
async fn without_a_userinfo_endpoint_the_token_must_do() {
    let oidc = oidc(OidcProfile::new("7", &json!({"preferred_username": "ada"}))).await;
    oidc.override_metadata("userinfo_endpoint", Value::Null);
    let identity = sign_in(&*oidc.provider("sso")).await.unwrap();
    assert_eq!(identity, Identity { subject: "7".to_owned(), email: None, name: "ada".to_owned() });
    assert_eq!(oidc.requests(FakeOidc::USERINFO), 0);
}

#[tokio::test]
async fn new_keys_are_fetched_when_they_are_met() {
    let oidc = oidc(ada()).await;
    let provider = oidc.provider("sso");
    assert!(sign_in(&*provider).await.is_ok());
    oidc.rotate_key("key-2", KeyKind::Rsa);
    for _ in 0..2 {
        assert!(sign_in(&*provider).await.is_ok());
        assert_eq!(oidc.requests(FakeOidc::KEYS), 2);
    }
}

#[tokio::test]
async fn a_key_that_is_not_published_is_not_looked_for_for_ever() {
    let oidc = oidc(ada()).await;
    let provider = oidc.provider("sso");
    let code = code(&*provider).await;
    oidc.fail(FakeOidc::KEYS, Fault::Json(json!({"keys": []})));
    let result = provider.identify(&exchange(&code)).await;
    assert!(is_invalid(&result), "{result:?}");
    assert_eq!(oidc.requests(FakeOidc::KEYS), 2);
}

#[tokio::test]
async fn a_code_is_good_for_one_use_by_one_browser() {
    let oidc = oidc(ada()).await;
    let provider = oidc.provider("sso");
    let first = code(&*provider).await;
    assert!(provider.identify(&exchange(&first)).await.is_ok());
    assert!(is_exchange(&provider.identify(&exchange(&first)).await));
    let stolen = code(&*provider).await;
    let other = "the-verifier-of-another-browser-0123456789-ab";
    let result = provider.identify(&Exchange { pkce_verifier: other, ..exchange(&stolen) }).await;
    assert!(is_exchange(&result), "{result:?}");
}

#[tokio::test]
async fn refused_consent_comes_back_with_the_state() {
    let oidc = oidc(ada()).await;
    oidc.refuse_consent();
    let back = open(&oidc.provider("sso").authorize_url(&AUTHORIZATION).await.unwrap()).await;
    assert_eq!(parameter(&back, "error").as_deref(), Some("access_denied"));
    assert_eq!(parameter(&back, "state").as_deref(), Some(STATE));
}

#[tokio::test]
async fn the_client_proves_itself_as_the_provider_wants() {
    let oidc = oidc(ada()).await;
    let config = OidcConfig { client_secret: "wrong".to_owned(), ..oidc.config("sso") };
    let result = sign_in(&Oidc::new(config.clone()).unwrap()).await;
    assert!(is_configuration(&result), "{result:?}");
    oidc.override_metadata("token_endpoint_auth_methods_supported", json!(["client_secret_post"]));
    assert!(sign_in(&*oidc.provider("sso")).await.is_ok());
    assert!(is_configuration(&sign_in(&Oidc::new(config).unwrap()).await));
    oidc.override_metadata("token_endpoint_auth_methods_supported", json!(["private_key_jwt"]));
    let result = oidc.provider("sso").authorize_url(&AUTHORIZATION).await;
    assert!(matches!(result, Err(ProviderError::Configuration(_))), "{result:?}");
}

#[tokio::test]
async fn a_failed_discovery_is_tried_again() {
    let oidc = oidc(ada()).await;
    let provider = oidc.provider("sso");
    oidc.fail(FakeOidc::DISCOVERY, Fault::Status(503));
    let result = provider.authorize_url(&AUTHORIZATION).await;
    assert!(matches!(result, Err(ProviderError::Unreachable { .. })), "{result:?}");
    for fault in [Fault::Garbage, Fault::Oversized, Fault::Status(404)] {
        oidc.fail(FakeOidc::DISCOVERY, fault.clone());
        let result = provider.authorize_url(&AUTHORIZATION).await;
        assert!(matches!(result, Err(ProviderError::Invalid(_))), "{fault:?}: {result:?}");
    }
    oidc.fail(FakeOidc::DISCOVERY, Fault::Stall);
    let result = oidc.impatient_provider("sso").authorize_url(&AUTHORIZATION).await;
    assert!(matches!(result, Err(ProviderError::Unreachable { .. })), "{result:?}");
    oidc.recover();
    assert!(sign_in(&*provider).await.is_ok());
}

#[tokio::test]
async fn the_issuer_must_be_the_configured_one() {
    let oidc = oidc(ada()).await;
    let slash = OidcConfig { issuer: format!("{}/", oidc.url()), ..oidc.config("sso") };
    let result = Oidc::new(slash).unwrap().authorize_url(&AUTHORIZATION).await;
    assert!(matches!(result, Err(ProviderError::Configuration(_))), "{result:?}");
    oidc.override_metadata("issuer", json!("https://another.example"));
    let result = oidc.provider("sso").authorize_url(&AUTHORIZATION).await;
    assert!(matches!(result, Err(ProviderError::Configuration(_))), "{result:?}");
}

#[tokio::test]
async fn outages_and_nonsense_are_told_apart() {
    // Without a name, the userinfo endpoint is needed too.
    let oidc = oidc(OidcProfile::new("7", &json!({}))).await;
    for path in [FakeOidc::TOKEN, FakeOidc::KEYS, FakeOidc::USERINFO] {
        oidc.fail(path, Fault::Status(500));
        let result = sign_in(&*oidc.provider("sso")).await;
        assert!(is_unreachable(&result), "{path}: {result:?}");
        oidc.fail(path, Fault::Stall);
        let code = code(&*oidc.provider("sso")).await;
        let result = oidc.impatient_provider("sso").identify(&exchange(&code)).await;
        assert!(is_unreachable(&result), "{path}: {result:?}");
        for fault in
            [Fault::Garbage, Fault::Oversized, Fault::Status(404), Fault::Redirect(oidc.url().to_owned())]
        {
            oidc.fail(path, fault.clone());
            let result = sign_in(&*oidc.provider("sso")).await;
            assert!(is_invalid(&result), "{path} {fault:?}: {result:?}");
            let too_long = result.is_err_and(|error| error.to_string().contains("longer than"));
            assert_eq!(too_long, matches!(fault, Fault::Oversized), "{path} {fault:?}");
        }
        oidc.recover();
    }
    assert!(sign_in(&*oidc.provider("sso")).await.is_ok());
}
