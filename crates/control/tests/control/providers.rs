//! Signing in with providers, against local ones that behave as the real ones document.

use std::time::Duration;

use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use wrenn_oauth::testing::{FakeGitHub, FakeOidc, GitHubProfile, OidcProfile};

use crate::support::people::Person;
use crate::support::{JWT_SECRET, Server, answer, refused};

const DASHBOARD: &str = "https://wrenn.example";

struct Walk {
    server: Server,
    github: FakeGitHub,
    http: reqwest::Client,
}

/// Where a browser was sent, and the cookies that it keeps: `name=value`.
struct Landed {
    location: String,
    cookies: Vec<String>,
    set: Vec<String>,
}

impl Landed {
    fn read(response: &Response) -> Self {
        let header = |value: &reqwest::header::HeaderValue| value.to_str().unwrap().to_owned();
        let set: Vec<String> = response.headers().get_all(SET_COOKIE).iter().map(header).collect();
        let kept = |cookie: &&String| !cookie.contains("Max-Age=0");
        let pair = |cookie: &String| cookie.split(';').next().unwrap().to_owned();
        Self {
            location: response.headers().get(LOCATION).map(header).unwrap_or_default(),
            cookies: set.iter().filter(kept).map(pair).collect(),
            set,
        }
    }

    fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies.iter().find_map(|cookie| cookie.strip_prefix(name)?.strip_prefix('='))
    }
}

impl Walk {
    async fn start() -> Self {
        let github = FakeGitHub::start().await;
        let provider = github.provider();
        let server = Server::configured(Duration::ZERO, |control| {
            control.providers.register(provider).unwrap();
            control.dashboard_url = DASHBOARD.into();
        })
        .await;
        let none = reqwest::redirect::Policy::none();
        let http = reqwest::Client::builder().redirect(none).build().unwrap();
        Self { server, github, http }
    }

    async fn visit(&self, url: &str, cookies: &[String]) -> Landed {
        let response = self.http.get(url).header(COOKIE, cookies.join("; ")).send().await.unwrap();
        assert_eq!(response.status(), 302, "{url}");
        Landed::read(&response)
    }

    /// To the provider and back, up to the callback: its address and the cookies for it.
    async fn depart(&self, intent: &str) -> (String, Vec<String>) {
        let path = format!("/auth/oauth/github?intent={intent}");
        let sent = self.visit(&self.server.url(&path), &[]).await;
        let back = self.visit(&sent.location, &[]).await;
        (back.location, sent.cookies)
    }

    async fn sign_in(&self, intent: &str) -> Landed {
        let (callback, cookies) = self.depart(intent).await;
        self.visit(&callback, &cookies).await
    }

    fn says(&self, landed: &Landed, error: &str) {
        assert_eq!(landed.location, format!("{DASHBOARD}/auth/github/callback?error={error}"));
        assert_eq!(landed.cookie("wrenn_oauth_token"), None);
    }

    fn person(&self, landed: &Landed) -> Person {
        assert_eq!(landed.location, format!("{DASHBOARD}/auth/github/callback"), "{:?}", landed.cookies);
        let cookie = |name: &str| landed.cookie(name).unwrap().replace("%20", " ");
        Person {
            id: cookie("wrenn_oauth_user_id").parse().unwrap(),
            email: cookie("wrenn_oauth_email"),
            team: cookie("wrenn_oauth_team_id").parse().unwrap(),
            token: cookie("wrenn_oauth_token"),
        }
    }

    async fn connect(&self, person: &Person) -> Landed {
        let request = self.server.by(person, Method::GET, "/v1/me/providers/github/connect");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut landed = Landed::read(&response);
        landed.location = response.json::<Value>().await.unwrap()["auth_url"].as_str().unwrap().to_owned();
        landed
    }
}

/// As the server signs the state.
fn signature(text: &str) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(JWT_SECRET.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

fn ada() -> GitHubProfile {
    let mut profile = GitHubProfile::new(1815, "ada");
    profile.name = Some("Ada Lovelace".to_owned());
    profile.email = Some("Ada@Example.com".to_owned());
    profile
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_sign_in_makes_an_account_only_where_that_is_meant() {
    let walk = Walk::start().await;
    walk.github.sign_in_as(ada());
    walk.says(&walk.sign_in("login").await, "no_account");
    let landed = walk.sign_in("signup").await;
    let person = walk.person(&landed);
    assert_eq!(
        (person.email.as_str(), landed.cookie("wrenn_oauth_new_signup")),
        ("ada@example.com", Some("1"))
    );
    let (_, me) = walk.server.get_by(&person, "/v1/me").await;
    assert_eq!(
        (&me["name"], &me["providers"], &me["has_password"], &me["is_admin"]),
        (&json!("Ada Lovelace"), &json!(["github"]), &json!(false), &json!(true))
    );
    let again = walk.sign_in("login").await;
    assert_eq!((walk.person(&again).id, again.cookie("wrenn_oauth_new_signup")), (person.id, None));
    assert_eq!(walk.person(&walk.sign_in("signup").await).id, person.id);
    for cookie in landed.set.iter().filter(|cookie| cookie.starts_with("wrenn_oauth")) {
        assert!(cookie.contains("; Path=/auth/; Max-Age=60; SameSite=Lax"), "{cookie}");
        assert!(!cookie.contains("HttpOnly"), "{cookie}");
    }
    // Without a password, it is set without an old one.
    let path = "/v1/me/password";
    let typo = json!({"new_password": "a new password", "confirm_password": "another"});
    assert!(
        refused(walk.server.send_by(&person, Method::POST, path, &typo).await, 400, "invalid_request")
            .contains("confirm_password")
    );
    let set = json!({"new_password": "a new password", "confirm_password": "a new password"});
    assert_eq!(walk.server.send_by(&person, Method::POST, path, &set).await.0, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_cookie_is_signed_short_lived_and_bound_to_its_browser() {
    let walk = Walk::start().await;
    walk.github.sign_in_as(ada());
    let start = walk.http.get(walk.server.url("/v1/auth/oauth/github?intent=signup"));
    let landed = Landed::read(&start.header("x-forwarded-proto", "https").send().await.unwrap());
    let state = landed.set.iter().find(|cookie| cookie.starts_with("oauth_state=")).unwrap();
    assert!(state.contains("; Path=/; Max-Age=600; SameSite=Lax; HttpOnly; Secure"), "{state}");
    let parts: Vec<&str> = landed.cookie("oauth_state").unwrap().split(':').collect();
    assert_eq!((parts.len(), parts[1].len(), parts[2]), (3, 64, "signup"));

    let (callback, cookies) = walk.depart("login").await;
    walk.says(&walk.visit(&callback, &[]).await, "invalid_state");
    let forged = vec![cookies[0].replace(":login", ":signup")];
    walk.says(&walk.visit(&callback, &forged).await, "invalid_state");
    let (_, other) = walk.depart("login").await;
    walk.says(&walk.visit(&callback, &other).await, "invalid_state");
    let ended = walk.visit(&callback, &cookies).await;
    walk.says(&ended, "no_account");
    assert!(
        ended.set.iter().any(|cookie| cookie.starts_with("oauth_state=;") && cookie.contains("Max-Age=0"))
    );
    // The code has been used by now.
    walk.says(&walk.visit(&callback, &cookies).await, "exchange_failed");
    // A cookie that was kept for too long is as good as none.
    let old = format!("{:08x}{}", time::OffsetDateTime::now_utc().unix_timestamp() - 700, "0".repeat(24));
    let kept = format!("oauth_state={old}:{}:login", signature(&format!("{old}:login")));
    let late = walk.server.url(&format!("/auth/oauth/github/callback?code=x&state={old}"));
    walk.says(&walk.visit(&late, &[kept]).await, "invalid_state");
    let odd = walk.server.url("/auth/oauth/a%0ab/callback?code=x");
    assert!(walk.visit(&odd, &[]).await.location.ends_with("/auth/a%0Ab/callback?error=invalid_state"));
    let without_code = callback.split('?').next().unwrap().to_owned()
        + "?state="
        + cookies[0].split(['=', ':']).nth(1).unwrap();
    walk.says(&walk.visit(&without_code, &cookies).await, "missing_code");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_hidden_addresses() {
    let walk = Walk::start().await;
    walk.github.sign_in_as(ada());
    walk.github.refuse_consent();
    walk.says(&walk.sign_in("signup").await, "access_denied");
    let hidden = |primary, verified| {
        GitHubProfile::new(7, "grace").with_hidden_email("grace@example.com", primary, verified)
    };
    for unusable in [hidden(true, false), hidden(false, true)] {
        walk.github.sign_in_as(unusable);
        walk.says(&walk.sign_in("signup").await, "exchange_failed");
    }
    walk.github.sign_in_as(hidden(true, true));
    let grace = walk.person(&walk.sign_in("signup").await);
    assert_eq!(grace.email, "grace@example.com");
    walk.server.sql("update users set status = 'disabled'").await;
    walk.says(&walk.sign_in("login").await, "account_deactivated");
    let unknown = walk.http.get(walk.server.url("/auth/oauth/unknown"));
    refused(answer(unknown).await, 404, "provider_not_found");
    let intent = walk.http.get(walk.server.url("/auth/oauth/github?intent=steal"));
    assert!(refused(answer(intent).await, 400, "invalid_request").contains("intent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_waits_for_activation_makes_room_and_one_in_use_does_not() {
    let walk = Walk::start().await;
    walk.github.sign_in_as(ada());
    let signup = json!({"email": "ada@example.com", "password": "correct horse", "name": "Mallory"});
    assert_eq!(walk.server.open_post("/v1/auth/signup", &signup).await.0, 201);
    let person = walk.person(&walk.sign_in("signup").await);
    let login = json!({"email": "ada@example.com", "password": "correct horse"});
    refused(walk.server.open_post("/v1/auth/login", &login).await, 401, "unauthorized");
    assert_eq!(walk.server.get_by(&person, "/v1/me").await.1["name"], "Ada Lovelace");

    let mut twin = ada();
    twin.id = 1816;
    walk.github.sign_in_as(twin);
    walk.says(&walk.sign_in("signup").await, "email_taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_first_sign_ins_at_once_make_one_account() {
    let walk = Walk::start().await;
    for round in 0..5 {
        let mut profile = GitHubProfile::new(100 + round, "grace");
        profile.email = Some(format!("grace{round}@example.com"));
        walk.github.sign_in_as(profile);
        let (one, two) = (walk.depart("signup").await, walk.depart("signup").await);
        let (one, two) = tokio::join!(walk.visit(&one.0, &one.1), walk.visit(&two.0, &two.1));
        assert_eq!(walk.person(&one).id, walk.person(&two).id);
    }
    assert_eq!(walk.server.number("select count(*) from users").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_linked_and_unlinked() {
    let walk = Walk::start().await;
    walk.github.sign_in_as(ada());
    let owner = walk.server.owner("Ada").await;
    let settings = format!("{DASHBOARD}/dashboard/settings");
    let finish = async |landed: &Landed, cookies: &[String]| {
        let back = walk.visit(&landed.location, &[]).await;
        walk.visit(&back.location, cookies).await.location
    };
    let begun = walk.connect(&owner).await;
    let without_link = vec![begun.cookies[0].clone()];
    assert!(finish(&begun, &without_link).await.ends_with("error=no_account"));
    let begun = walk.connect(&owner).await;
    assert_eq!(finish(&begun, &begun.cookies).await, format!("{settings}?connected=github"));
    let again = walk.connect(&owner).await;
    assert_eq!(finish(&again, &again.cookies).await, format!("{settings}?connected=github"));
    assert_eq!(walk.person(&walk.sign_in("login").await).id, owner.id);

    let other = walk.server.owner("Eve").await;
    let begun = walk.connect(&other).await;
    // Somebody else's link cookie does not fit this departure.
    let stolen = vec![begun.cookies[0].clone(), again.cookies[1].clone()];
    assert_eq!(finish(&begun, &stolen).await, format!("{settings}?connect_error=invalid_state"));
    let begun = walk.connect(&other).await;
    assert_eq!(finish(&begun, &begun.cookies).await, format!("{settings}?connect_error=already_linked"));

    let unlink = async |person: &Person, name: &str| {
        answer(walk.server.by(person, Method::DELETE, &format!("/v1/me/providers/{name}"))).await
    };
    refused(unlink(&owner, "github").await, 400, "last_login_method");
    walk.server.sql("update users set password_hash = 'x'").await;
    assert_eq!(unlink(&owner, "github").await.0, 204);
    refused(unlink(&owner, "github").await, 404, "not_found");
    let unknown = answer(walk.server.by(&owner, Method::GET, "/v1/me/providers/unknown/connect")).await;
    refused(unknown, 404, "provider_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openid_connect_provider_is_walked_through_in_the_same_way() {
    let oidc = FakeOidc::start().await;
    let provider = oidc.provider("corp");
    let server = Server::configured(Duration::ZERO, |control| {
        control.providers.register(provider).unwrap();
        control.dashboard_url = DASHBOARD.into();
    })
    .await;
    let claims = json!({"email": "ada@corp.example", "email_verified": true, "name": "Ada"});
    oidc.sign_in_as(OidcProfile::new("subject-1", &claims));
    let none = reqwest::redirect::Policy::none();
    let http = reqwest::Client::builder().redirect(none).build().unwrap();
    let visit = async |url: String, cookies: &[String]| {
        Landed::read(&http.get(url).header(COOKIE, cookies.join("; ")).send().await.unwrap())
    };
    for (intent, new) in [("signup", Some("1")), ("login", None)] {
        let sent = visit(server.url(&format!("/auth/oauth/corp?intent={intent}")), &[]).await;
        let back = visit(sent.location, &[]).await;
        let landed = visit(back.location, &sent.cookies).await;
        assert_eq!(landed.location, format!("{DASHBOARD}/auth/corp/callback"));
        assert_eq!(
            (landed.cookie("wrenn_oauth_email"), landed.cookie("wrenn_oauth_new_signup")),
            (Some("ada@corp.example"), new)
        );
    }
}
