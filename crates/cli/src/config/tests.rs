use super::*;

fn load(file: &str, env: &[(&str, &str)], flags: &SettingFlags) -> Result<Settings, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wrenn.toml");
    std::fs::write(&path, file).unwrap();
    let given = Given { config: Some(&path), dir: None, flags };
    let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Settings::load_from(given, &env)
}

#[test]
fn flags_beat_the_environment_which_beats_the_file_which_beats_the_default() {
    let file = "settle_ms = 1\nmax_vcpus = 1\nlog = \"warn\"\n";
    let env = [("WRENN_SETTLE_MS", "2"), ("WRENN_MAX_VCPUS", "2"), ("WRENN_LOG_FORMAT", "")];
    let flags = SettingFlags { settle_ms: Some("3".into()), ..NO_FLAGS };
    let settings = load(file, &env, &flags).unwrap();
    assert_eq!((settings.settle_ms.value, settings.settle_ms.source), (3, Source::Flag("settle_ms")));
    assert_eq!(settings.max_vcpus.value, 2);
    assert_eq!(settings.max_vcpus.source, Source::Environment("WRENN_MAX_VCPUS"));
    assert_eq!(settings.log.value, "warn");
    assert!(matches!(settings.log.source, Source::File(_)));
    assert_eq!(settings.log_format.source, Source::Default);
    assert_eq!(settings.dir.value, Path::new("/var/lib/wrenn"));
}

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    let error = load("listn = \"127.0.0.1:1\"", &[], &NO_FLAGS).unwrap_err().to_string();
    assert!(error.contains("`listn`") && error.contains(" listen,"), "{error}");
    assert!(matches!(load("[up]\nlisten = 1", &[], &NO_FLAGS), Err(ConfigError::UnknownKey { .. })));
}

#[test]
fn a_bad_value_names_the_setting_and_who_set_it() {
    let from_env = load("", &[("WRENN_ACCEL", "hvf")], &NO_FLAGS).unwrap_err();
    assert_eq!(from_env.to_string(), "setting accel (environment WRENN_ACCEL) must be auto, kvm or tcg");
    let flags = SettingFlags { vm_uid_base: Some("-1".into()), ..NO_FLAGS };
    let from_flag = load("", &[], &flags).unwrap_err().to_string();
    assert!(from_flag.contains("vm_uid_base (flag --vm-uid-base)"), "{from_flag}");
    for bad in ["listen = 8080", "listen = [1]", "allow_private_networks = 2", "log = \"\"", "dir = \"\""] {
        assert!(matches!(load(bad, &[], &NO_FLAGS), Err(ConfigError::Value { .. })), "{bad}");
    }
    assert!(matches!(load("listen = ", &[], &NO_FLAGS), Err(ConfigError::Syntax { .. })));
}

#[test]
fn a_named_file_must_exist() {
    let given = Given { config: Some(Path::new("/nonexistent/wrenn.toml")), dir: None, flags: &NO_FLAGS };
    assert!(matches!(Settings::load_from(given, &|_| None), Err(ConfigError::Read { .. })));
    let by_env = |name: &str| (name == "WRENN_CONFIG").then(|| "/nonexistent/wrenn.toml".to_owned());
    let given = Given { config: None, ..given };
    assert!(matches!(Settings::load_from(given, &by_env), Err(ConfigError::Read { .. })));
}

#[test]
fn relative_paths_in_the_file_are_relative_to_it() {
    let settings = load("dir = \"data\"", &[], &NO_FLAGS).unwrap();
    let Source::File(path) = settings.dir.source else { panic!("not from the file") };
    assert_eq!(settings.dir.value, path.parent().unwrap().join("data"));
}

#[test]
fn passwords_are_masked_in_listings() {
    for (url, shown) in [
        ("postgres://u:p@ss@h:5432/d", "postgres://u:***@h:5432/d"),
        ("postgres://u@h/d?password=x", "postgres://u@h/d?***"),
        ("postgresql:///d", "postgresql:///d"),
    ] {
        let settings = load("", &[("DATABASE_URL", url)], &NO_FLAGS).unwrap();
        let entry = settings.entries().into_iter().find(|e| e.name == "database_url").unwrap();
        assert_eq!((entry.value.as_str(), entry.source.as_str()), (shown, "environment DATABASE_URL"));
        assert!(!format!("{settings:?}").contains("p@ss"));
        assert_eq!(settings.database_url.value.unwrap().expose(), url);
    }
}

#[test]
fn the_listing_has_every_setting_once() {
    let names: Vec<_> = load("", &[], &NO_FLAGS).unwrap().entries().iter().map(|e| e.name).collect();
    assert_eq!(names, KEYS);
}

#[test]
fn a_child_process_gets_every_value_that_is_set_and_reads_the_same() {
    let url = "postgres://u:p@h/d";
    let settings = load("settle_ms = 7\ndir = \"/d\"", &[("DATABASE_URL", url)], &NO_FLAGS).unwrap();
    let env = settings.to_env();
    assert!(!env.iter().any(|(name, _)| name == "WRENN_IMAGE_CACHE"));
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let child = load("", &env, &NO_FLAGS).unwrap();
    assert_eq!(child.database_url.value.as_ref().unwrap().expose(), url);
    let values = |s: &Settings| s.entries().into_iter().map(|e| e.value).collect::<Vec<_>>();
    assert_eq!(values(&child), values(&settings));
}
