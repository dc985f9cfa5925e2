//! Signing in with GitHub.

mod common;

use common::{
    AUTHORIZATION, REDIRECT, STATE, code, exchange, is_configuration, is_exchange, is_invalid,
    is_unreachable, sign_in,
};
use serde_json::json;
use wrenn_oauth::testing::{FakeGitHub, Fault, GitHubProfile, open, parameter};
use wrenn_oauth::{Exchange, GitHub, GitHubConfig, Identity, Provider};

fn ada() -> GitHubProfile {
    GitHubProfile {
        name: Some(" Ada Lovelace ".to_owned()),
        email: Some("Ada@Example.com".to_owned()),
        ..GitHubProfile::new(1815, "ada")
    }
}

async fn github(profile: GitHubProfile) -> FakeGitHub {
    let github = FakeGitHub::start().await;
    github.sign_in_as(profile);
    github
}

async fn email_of(profile: GitHubProfile) -> Option<String> {
    sign_in(&*github(profile).await.provider()).await.expect("an identity").email
}

#[tokio::test]
async fn a_profile_with_an_address_identifies() {
    let github = github(ada()).await;
    let identity = sign_in(&*github.provider()).await.unwrap();
    let email = Some("ada@example.com".to_owned());
    assert_eq!(identity, Identity { subject: "1815".to_owned(), email, name: "Ada Lovelace".to_owned() });
    assert_eq!(github.requests(FakeGitHub::EMAILS), 0);
}

#[tokio::test]
async fn a_bare_profile_identifies_by_its_login() {
    let identity = sign_in(&*github(GitHubProfile::new(7, "grace")).await.provider()).await.unwrap();
    assert_eq!(identity, Identity { subject: "7".to_owned(), email: None, name: "grace".to_owned() });
}

#[tokio::test]
async fn of_hidden_addresses_the_verified_primary_one_counts() {
    let hidden = GitHubProfile::new(7, "grace")
        .with_hidden_email("unverified@example.com", false, false)
        .with_hidden_email("other@example.com", false, true)
        .with_hidden_email(" Primary@Example.com", true, true);
    assert_eq!(email_of(hidden.clone()).await.as_deref(), Some("primary@example.com"));
    let blank = GitHubProfile { email: Some(" ".to_owned()), ..hidden };
    assert_eq!(email_of(blank).await.as_deref(), Some("primary@example.com"));
}

#[tokio::test]
async fn no_other_hidden_address_counts() {
    let profile = || GitHubProfile::new(7, "grace");
    assert_eq!(email_of(profile().with_hidden_email("a@example.com", true, false)).await, None);
    assert_eq!(email_of(profile().with_hidden_email("a@example.com", false, true)).await, None);
    let both = profile().with_hidden_email("a@example.com", true, false).with_hidden_email(
        "b@example.com",
        false,
        true,
    );
    assert_eq!(email_of(both).await, None);
}

#[tokio::test]
async fn a_withheld_scope_leaves_no_address() {
    let profile = GitHubProfile::new(7, "grace").with_hidden_email("a@example.com", true, true);
    assert_eq!(email_of(GitHubProfile { withholds_emails: true, ..profile.clone() }).await, None);
    let github = github(profile).await;
    github.fail(FakeGitHub::EMAILS, Fault::Status(403));
    assert_eq!(sign_in(&*github.provider()).await.unwrap().email, None);
}

#[tokio::test]
async fn refused_consent_comes_back_with_the_state() {
    let github = github(ada()).await;
    github.refuse_consent();
    let url = github.provider().authorize_url(&AUTHORIZATION).await.unwrap();
    let back = open(&url).await;
    assert_eq!(parameter(&back, "error").as_deref(), Some("access_denied"));
    assert_eq!(parameter(&back, "state").as_deref(), Some(STATE));
    assert_eq!(parameter(&back, "code"), None);
}

#[tokio::test]
async fn a_code_is_good_for_one_use() {
    let github = github(ada()).await;
    let provider = github.provider();
    let code = code(&*provider).await;
    assert!(provider.identify(&exchange(&code)).await.is_ok());
    let second = provider.identify(&exchange(&code)).await;
    assert!(is_exchange(&second), "{second:?}");
    assert!(is_exchange(&provider.identify(&exchange("never issued")).await));
    assert!(is_exchange(&provider.identify(&exchange("")).await));
}

#[tokio::test]
async fn a_code_belongs_to_one_browser() {
    let github = github(ada()).await;
    let provider = github.provider();
    let other = "the-verifier-of-another-browser-0123456789-ab";
    let stolen = code(&*provider).await;
    let result = provider.identify(&Exchange { pkce_verifier: other, ..exchange(&stolen) }).await;
    assert!(is_exchange(&result), "{result:?}");
    let stolen = code(&*provider).await;
    let elsewhere = format!("{REDIRECT}/elsewhere");
    let result = provider.identify(&Exchange { redirect_uri: &elsewhere, ..exchange(&stolen) }).await;
    assert!(is_configuration(&result), "{result:?}");
}

#[tokio::test]
async fn a_wrong_secret_is_the_operators_to_correct() {
    let github = github(ada()).await;
    let config = GitHubConfig { client_secret: "wrong".to_owned(), ..github.config() };
    let result = sign_in(&GitHub::new(config).unwrap()).await;
    assert!(is_configuration(&result), "{result:?}");
}

#[tokio::test]
async fn an_outage_of_any_endpoint_passes() {
    let github = github(GitHubProfile::new(7, "grace")).await;
    let (provider, impatient) = (github.provider(), github.impatient_provider());
    for path in [FakeGitHub::TOKEN, FakeGitHub::USER, FakeGitHub::EMAILS] {
        for status in [500, 502, 503, 429] {
            github.fail(path, Fault::Status(status));
            let result = sign_in(&*provider).await;
            assert!(is_unreachable(&result), "{path} {status}: {result:?}");
        }
        github.fail(path, Fault::Stall);
        let result = sign_in(&*impatient).await;
        assert!(is_unreachable(&result), "{path}: {result:?}");
        github.recover();
        assert!(sign_in(&*provider).await.is_ok(), "{path}");
    }
}

#[tokio::test]
async fn nonsense_of_any_endpoint_is_refused() {
    let github = github(GitHubProfile::new(7, "grace")).await;
    let provider = github.provider();
    for path in [FakeGitHub::TOKEN, FakeGitHub::USER, FakeGitHub::EMAILS] {
        for fault in [Fault::Garbage, Fault::Oversized, Fault::Status(200), Fault::Status(401)] {
            github.fail(path, fault.clone());
            let result = sign_in(&*provider).await;
            assert!(is_invalid(&result), "{path} {fault:?}: {result:?}");
            let too_long = result.is_err_and(|error| error.to_string().contains("longer than"));
            assert_eq!(too_long, matches!(fault, Fault::Oversized), "{path} {fault:?}");
        }
        github.recover();
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (github, elsewhere) = (github(ada()).await, github(ada()).await);
    for path in [FakeGitHub::TOKEN, FakeGitHub::USER] {
        github.fail(path, Fault::Redirect(format!("{}{path}", elsewhere.url())));
        let result = sign_in(&*github.provider()).await;
        assert!(is_invalid(&result), "{path}: {result:?}");
        assert_eq!(elsewhere.requests(path), 0);
        github.recover();
    }
}

#[tokio::test]
async fn nobody_listening_is_an_outage() {
    let unbound = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = GitHubConfig { url: format!("http://{unbound}"), ..GitHubConfig::new("id", "secret") };
    let result = GitHub::new(config).unwrap().identify(&exchange("any")).await;
    assert!(is_unreachable(&result), "{result:?}");
}

#[tokio::test]
async fn what_is_no_profile_is_refused() {
    let github = github(ada()).await;
    for answer in
        [json!({}), json!({"id": "1815", "login": "ada"}), json!({"id": -1, "login": "ada"}), json!([])]
    {
        github.fail(FakeGitHub::USER, Fault::Json(answer.clone()));
        let result = sign_in(&*github.provider()).await;
        assert!(is_invalid(&result), "{answer}: {result:?}");
    }
    github.recover();
    for answer in [
        json!({}),
        json!({"access_token": "token-0"}),
        json!({"access_token": "token-0", "token_type": "mac"}),
    ] {
        github.fail(FakeGitHub::TOKEN, Fault::Json(answer.clone()));
        let result = sign_in(&*github.provider()).await;
        assert!(is_invalid(&result), "{answer}: {result:?}");
    }
}

/// The fake is as strict as the real one, or the tests above would prove nothing.
#[tokio::test]
async fn the_fake_refuses_what_github_refuses() {
    let github = github(ada()).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = |path: &str| client.get(format!("{}{path}", github.url())).bearer_auth("unknown");
    let anonymous = get(FakeGitHub::USER).send().await.unwrap();
    assert_eq!(anonymous.status(), 403);
    let unknown = get(FakeGitHub::USER).header("user-agent", "test").send().await.unwrap();
    assert_eq!(unknown.status(), 401);

    let url = github.provider().authorize_url(&AUTHORIZATION).await.unwrap();
    for (good, bad) in [
        ("client_id=Iv1", "client_id=other"),
        ("code_challenge_method=S256", "code_challenge_method=plain"),
        ("code_challenge=", "code_challenge=short&x="),
        ("state=", "state=&x="),
        ("redirect_uri=http", "redirect_uri=&x=http"),
    ] {
        assert!(url.contains(good), "{url}");
        let status = client.get(url.replace(good, bad)).send().await.unwrap().status();
        assert!(status.is_client_error(), "{bad}: {status}");
    }
}
