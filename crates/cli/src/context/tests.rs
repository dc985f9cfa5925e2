use wrenn_client::SignIn;

use super::*;
use crate::config::{Given, SettingFlags};

/// A data directory with its settings, and a home with stored sign-ins.
struct Place {
    dir: tempfile::TempDir,
    settings: Settings,
    credentials: Credentials,
}

impl Place {
    fn new(env_file: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        if let Some(text) = env_file {
            std::fs::write(dir.path().join("env"), text).unwrap();
        }
        let config = dir.path().join("wrenn.toml");
        std::fs::write(&config, "listen = \"0.0.0.0:9\"").unwrap();
        let flags = SettingFlags::default();
        let given = Given { config: Some(&config), dir: dir.path().to_str(), flags: &flags };
        let settings = Settings::load(given).unwrap();
        let credentials = Credentials::at(dir.path().join("credentials.json"));
        Self { dir, settings, credentials }
    }

    fn sign_in(self, base_url: &str, token: &str) -> Self {
        let answer = serde_json::json!({
            "token": token, "user_id": format!("usr-{}", "0".repeat(25)), "email": "a@b", "name": "A",
            "team_id": format!("team-{}", "0".repeat(25)),
        });
        let login: Login = serde_json::from_value::<SignIn>(answer).unwrap().into();
        self.credentials.store(base_url, login).unwrap();
        self
    }

    fn global(base_url: Option<&str>, api_key: Option<&str>) -> GlobalArgs {
        GlobalArgs {
            config: None,
            dir: None,
            api_key: api_key.map(str::to_owned),
            base_url: base_url.map(str::to_owned),
            json: false,
        }
    }

    /// Base URL and key or token.
    fn access(&self, base_url: Option<&str>, api_key: Option<&str>) -> anyhow::Result<(String, String)> {
        let global = Self::global(base_url, api_key);
        let (base_url, credential) = access(&global, &self.settings, &self.credentials)?;
        Ok(match credential {
            Credential::Key(key) => (base_url, key),
            Credential::Login(login) => (base_url, login.token),
        })
    }

    fn context(&self, base_url: Option<&str>) -> Context {
        Context {
            settings: self.settings.clone(),
            json: false,
            colour: false,
            credentials: self.credentials.clone(),
            global: Self::global(base_url, None),
        }
    }
}

const FILE: &str = "WRENN_API_KEY=wrn_f\nWRENN_BASE_URL='http://f'\n";

fn pair(base_url: &str, credential: &str) -> (String, String) {
    (base_url.to_owned(), credential.to_owned())
}

#[test]
fn what_is_given_beats_the_env_file_and_the_env_file_beats_the_listener() {
    let place = Place::new(Some(FILE));
    assert_eq!(place.access(Some("http://a"), Some("wrn_a")).unwrap(), pair("http://a", "wrn_a"));
    assert_eq!(place.access(None, Some("")).unwrap(), pair("http://f", "wrn_f"));
    let local = Place::new(None).access(None, Some("wrn_a")).unwrap();
    assert_eq!(local.0, "http://127.0.0.1:9");
}

#[test]
fn a_given_key_beats_a_sign_in_and_a_sign_in_to_the_deployment_beats_the_env_file() {
    let place = Place::new(Some(FILE)).sign_in("http://f", "t.f").sign_in("https://r", "t.r");
    assert_eq!(place.access(None, Some("wrn_a")).unwrap(), pair("http://f", "wrn_a"));
    assert_eq!(place.access(None, None).unwrap(), pair("http://f", "t.f"));
    assert_eq!(place.access(Some("https://r/"), None).unwrap(), pair("https://r/", "t.r"));
    assert_eq!(place.access(Some("http://other"), None).unwrap(), pair("http://other", "wrn_f"));
}

#[test]
fn a_sign_in_needs_no_readable_env_file() {
    let place = Place::new(Some("what is this")).sign_in("http://a", "t.a");
    assert_eq!(place.access(Some("http://a"), None).unwrap(), pair("http://a", "t.a"));
    assert!(place.access(Some("http://b"), None).is_err());
    assert!(place.access(None, Some("k")).is_ok());
}

#[test]
fn without_a_key_the_error_names_the_places_and_the_cure() {
    let error = Place::new(None).access(Some("http://a"), None).unwrap_err();
    assert!(error.to_string().contains("/env has none"), "{error}");
    assert!(output::hint(&error).is_some_and(|hint| hint.contains("wrenn up")));
}

#[test]
fn a_person_is_asked_for_by_the_name_of_the_deployment() {
    let place = Place::new(Some(FILE)).sign_in("https://r", "t.r");
    assert_eq!(place.context(Some(" https://r/ ")).person().unwrap().login.token, "t.r");
    let error = place.context(None).person().unwrap_err();
    assert_eq!(
        error.to_string(),
        "this needs a person, and nobody is signed in to http://f (but to https://r)"
    );
    assert!(output::hint(&error).unwrap().contains("wrenn login"));
    drop(place.dir);
}

#[test]
fn the_own_deployment_is_known_by_the_env_file_or_the_listener() {
    let place = Place::new(Some(FILE));
    for (base_url, own) in [
        (None, true),
        (Some("http://f/"), true),
        (Some("http://127.0.0.1:9"), true),
        (Some("http://g"), false),
    ] {
        assert_eq!(place.context(base_url).is_own_deployment().unwrap(), own, "{base_url:?}");
    }
}

#[test]
fn a_listener_on_all_addresses_is_reached_on_loopback() {
    assert_eq!(local_url("[::]:80".parse().unwrap()), "http://[::1]:80");
    assert_eq!(local_url("10.0.0.1:80".parse().unwrap()), "http://10.0.0.1:80");
}
