//! Turns the path of a request into an absolute one.

use crate::accounts::User;
use crate::error::{Error, Result};

/// Resolves `path` for `user`: empty is `workdir` or the home, `~` and `~/…` the home, relative starts at the home.
pub(crate) fn resolve(path: &str, user: &User, workdir: Option<&str>) -> Result<String> {
    if path.contains('\0') {
        return Err(Error::invalid("a path cannot contain a zero byte"));
    }
    let absolute = match path {
        "" => workdir.filter(|dir| !dir.is_empty()).unwrap_or(&user.home).to_owned(),
        "~" => user.home.clone(),
        _ if path.starts_with("~/") => join(&user.home, &path[2..]),
        _ if path.starts_with('~') => {
            return Err(Error::invalid(format!("{path:?}: only ~ and ~/… are understood")));
        }
        _ if path.starts_with('/') => path.to_owned(),
        _ => join(&user.home, path),
    };
    Ok(clean(&absolute))
}

/// `directory/name`, with one slash between.
pub(crate) fn join(directory: &str, name: &str) -> String {
    format!("{}/{}", directory.trim_end_matches('/'), name)
}

/// Removes `//`, `/./` and a trailing slash. `..` stays: after a symlink only the kernel knows what it means.
fn clean(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    format!("/{}", parts.join("/"))
}

/// Last component of an absolute path; `/` for the root.
pub(crate) fn name(path: &str) -> &str {
    match path.rsplit('/').next() {
        None | Some("") => "/",
        Some(name) => name,
    }
}

/// Everything before the last component.
pub(crate) fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        None | Some(("", _)) => "/",
        Some((parent, _)) => parent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn user() -> User {
        User { home: "/home/u".into(), ..User::root() }
    }

    #[test]
    fn every_form_of_path_has_one_meaning() {
        let cases = [
            ("", "/home/u"),
            ("~", "/home/u"),
            ("~/a", "/home/u/a"),
            ("a/b", "/home/u/a/b"),
            ("/x//y/", "/x/y"),
            ("/x/./y/../z", "/x/y/../z"),
            ("/./", "/"),
        ];
        for (given, wanted) in cases {
            assert_eq!(resolve(given, &user(), None).unwrap(), wanted, "{given:?}");
        }
        assert_eq!(resolve("", &user(), Some("/srv")).unwrap(), "/srv");
        assert_eq!(resolve("a", &user(), Some("/srv")).unwrap(), "/home/u/a");
        assert!(resolve("~other", &user(), None).is_err());
        assert!(resolve("/a\0b", &user(), None).is_err());
    }

    #[test]
    fn a_path_comes_apart_into_parent_and_name() {
        assert_eq!((parent("/a/b"), name("/a/b")), ("/a", "b"));
        assert_eq!((parent("/a"), name("/a")), ("/", "a"));
        assert_eq!((parent("/"), name("/")), ("/", "/"));
    }

    proptest! {
        #[test]
        fn resolved_paths_are_absolute_and_stay_as_they_are(path in "[a-z./~]{0,24}") {
            if let Ok(once) = resolve(&path, &user(), None) {
                prop_assert!(once.starts_with('/'));
                prop_assert!(!once.contains("//"));
                prop_assert_eq!(resolve(&once, &user(), None).unwrap(), once);
            }
        }
    }
}
