//! What people fill in, checked.

use crate::api::ApiError;

const MIN_EMAIL: usize = 3;
/// RFC 5321, section 4.5.3.1.3, less the angle brackets.
const MAX_EMAIL: usize = 254;
const MIN_PASSWORD: usize = 8;
/// Bytes; nobody types more, and a hash of more takes longer.
const MAX_PASSWORD: usize = 1024;
const MAX_NAME: usize = 100;
const MAX_TEAM_NAME: usize = 128;

/// A field that must be there, whatever it holds.
pub(crate) fn required(field: Option<String>, name: &str) -> Result<String, ApiError> {
    field.filter(|text| !text.is_empty()).ok_or_else(|| ApiError::invalid(format!("{name} is required")))
}

/// An address, normalised.
pub(crate) fn email(field: Option<String>) -> Result<String, ApiError> {
    let email = required(field, "email")?.trim().to_lowercase();
    let length = email.chars().count();
    let fit = length >= MIN_EMAIL && email.len() <= MAX_EMAIL && email.contains('@');
    if fit && !email.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Ok(email);
    }
    Err(ApiError::invalid("email must be an address such as name@example.com"))
}

/// A password that may be chosen; `name` is the field's.
pub(crate) fn password(field: Option<String>, name: &str) -> Result<String, ApiError> {
    let password = required(field, name)?;
    if password.chars().count() < MIN_PASSWORD {
        return Err(ApiError::invalid(format!("{name} must have at least {MIN_PASSWORD} characters")));
    }
    if password.len() > MAX_PASSWORD {
        return Err(ApiError::invalid(format!("{name} must have at most {MAX_PASSWORD} bytes")));
    }
    Ok(password)
}

/// What a person calls themselves, trimmed.
pub(crate) fn person_name(field: Option<String>) -> Result<String, ApiError> {
    let name = required(field, "name")?.trim().to_owned();
    let length = name.chars().count();
    if length == 0 || length > MAX_NAME {
        return Err(ApiError::invalid(format!("name must have 1 to {MAX_NAME} characters")));
    }
    if name.contains(char::is_control) {
        return Err(ApiError::invalid("name must not hold control characters"));
    }
    Ok(name)
}

/// What a team is called, trimmed.
pub(crate) fn team_name(field: Option<String>) -> Result<String, ApiError> {
    let name = required(field, "name")?.trim().to_owned();
    let fits = |c: char| c.is_ascii_alphanumeric() || " _-@'".contains(c);
    if name.is_empty() || name.len() > MAX_TEAM_NAME || !name.chars().all(fits) {
        return Err(ApiError::invalid(format!(
            "name must have 1 to {MAX_TEAM_NAME} letters, digits, spaces or any of _ - @ '"
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: impl Into<String>) -> Option<String> {
        Some(text.into())
    }

    #[test]
    fn an_address_is_normalised_or_refused_by_name() {
        assert_eq!(email(some("  Ada@Example.COM ")).unwrap(), "ada@example.com");
        assert_eq!(email(some("a@b")).unwrap(), "a@b");
        for bad in [
            None,
            some(""),
            some("  "),
            some("@b"),
            some("nobody"),
            some("a b@c"),
            some(format!("{}@b", "a".repeat(254))),
        ] {
            assert!(email(bad.clone()).unwrap_err().message.contains("email"), "{bad:?}");
        }
    }

    #[test]
    fn passwords_and_names_have_their_lengths() {
        assert!(password(some("ééééééé"), "new_password").unwrap_err().message.contains("new_password"));
        assert_eq!(password(some("éééééééé"), "password").unwrap(), "éééééééé");
        assert!(password(some("x".repeat(1025)), "password").is_err());
        assert_eq!(person_name(some(" Ada ")).unwrap(), "Ada");
        assert_eq!(person_name(some("é".repeat(100))).unwrap().chars().count(), 100);
        for bad in [None, some("  "), some("é".repeat(101)), some("a\nb")] {
            assert!(person_name(bad).unwrap_err().message.contains("name"));
        }
        assert_eq!(team_name(some(" A_b-c@d 'e' ")).unwrap(), "A_b-c@d 'e'");
        for bad in [None, some(" "), some("a/b"), some("é"), some("x".repeat(129))] {
            assert!(team_name(bad).unwrap_err().message.contains("name"));
        }
    }
}
