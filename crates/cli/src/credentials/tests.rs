use super::*;

fn login(email: &str, exp: i64) -> Login {
    let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{exp}}}"#));
    let answer = serde_json::json!({
        "token": format!("h.{claims}.s"), "user_id": format!("usr-{}", "0".repeat(25)),
        "team_id": format!("team-{}", "0".repeat(25)), "email": email, "name": "A",
    });
    serde_json::from_value::<SignIn>(answer).unwrap().into()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn home(dir: &Path) -> Credentials {
    let home = dir.to_owned();
    Credentials::named_by(&|name| (name == "HOME").then(|| home.clone()))
}

#[test]
fn the_file_is_named_by_the_environment_in_order() {
    let path = |set: &[(&str, &str)]| {
        let found = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| PathBuf::from(value));
        Credentials::named_by(&found).path.map(|path| path.display().to_string())
    };
    let all = [("WRENN_CREDENTIALS", "/c"), ("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")];
    assert_eq!(path(&all).as_deref(), Some("/c"));
    assert_eq!(path(&all[1..]).as_deref(), Some("/x/wrenn/credentials.json"));
    assert_eq!(path(&all[2..]).as_deref(), Some("/h/.config/wrenn/credentials.json"));
    let relative = [("XDG_CONFIG_HOME", "x"), ("HOME", "/h")];
    assert_eq!(path(&relative).as_deref(), Some("/h/.config/wrenn/credentials.json"));
    assert_eq!(path(&[]), None);
}

#[test]
fn sign_ins_are_kept_for_each_deployment_where_only_the_owner_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = home(dir.path());
    assert!(credentials.get("http://a").unwrap().is_none());
    credentials.store("http://a", login("a@a", 1)).unwrap();
    credentials.store("http://b", login("b@b", 1)).unwrap();
    credentials.store("http://a", login("c@a", 1)).unwrap();
    assert_eq!(credentials.get("http://a").unwrap().unwrap().email, "c@a");
    let path = dir.path().join(".config/wrenn/credentials.json");
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    assert_eq!(credentials.forget(Some("http://a")).unwrap(), ["http://a"]);
    assert_eq!(credentials.forget(Some("http://a")).unwrap(), [""; 0]);
    assert_eq!(credentials.base_urls().unwrap(), ["http://b"]);
}

#[test]
fn a_file_and_a_directory_that_others_could_read_are_narrowed() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = home(dir.path());
    credentials.store("http://a", login("a@a", 1)).unwrap();
    let path = dir.path().join(".config/wrenn/credentials.json");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    credentials.get("http://a").unwrap();
    assert_eq!(mode(&path), 0o600);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    credentials.store("http://a", login("a@a", 1)).unwrap();
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
}

#[test]
fn a_directory_that_is_not_the_programs_keeps_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let credentials = Credentials::at(dir.path().join("c"));
    credentials.store("http://a", login("a@a", 1)).unwrap();
    assert_eq!((mode(dir.path()), mode(&dir.path().join("c"))), (0o755, 0o600));
}

#[test]
fn a_token_that_has_ended_is_told_and_one_without_an_end_is_used() {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let error = login("a@a", now - 1).in_force().unwrap_err();
    assert_eq!(error.to_string(), "your sign-in has expired; run `wrenn login`");
    assert!(login("a@a", now + 600).in_force().is_ok());
    assert_eq!(expiry("opaque"), None);
    assert!(!format!("{:?}", login("a@a", 1)).contains("h."));
}

#[test]
fn a_damaged_file_is_told_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    fs::write(&path, "{").unwrap();
    let error = Credentials::at(path).get("http://a").unwrap_err();
    assert!(error.to_string().ends_with("c is damaged; remove it and run `wrenn login`"), "{error}");
}
