//! What every sign-in provider offers.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

/// Longest [`Identity::name`] in characters.
pub const MAX_DISPLAY_NAME: usize = 100;

/// Longest address in bytes; RFC 5321, section 4.5.3.1.3, less the angle brackets.
const MAX_EMAIL: usize = 254;

/// A place where people have accounts.
#[async_trait]
pub trait Provider: Send + Sync + fmt::Debug {
    /// The name in paths and in stored links, such as `github`.
    fn name(&self) -> &str;

    /// The address to which a browser is sent, where its user agrees to be identified.
    ///
    /// # Errors
    /// [`ProviderError::Configuration`] where the request holds what no provider accepts, and every error of a
    /// provider that has to be asked for its endpoints first.
    async fn authorize_url(&self, request: &Authorization<'_>) -> Result<String, ProviderError>;

    /// Exchanges the code that the browser brought back for the identity of its user.
    ///
    /// # Errors
    /// All of [`ProviderError`]. A code is good for one call, whatever its outcome.
    async fn identify(&self, exchange: &Exchange<'_>) -> Result<Identity, ProviderError>;
}

/// What [`Provider::authorize_url`] puts into the address.
#[derive(Clone, Copy)]
pub struct Authorization<'a> {
    /// Returned by the provider unchanged; ties the answer to the browser that asked.
    pub state: &'a str,
    /// Where the provider sends the browser afterwards.
    pub redirect_uri: &'a str,
    /// Of which only the SHA-256 goes out (RFC 7636): 43 to 128 letters, digits, `-`, `.`, `_` and `~`.
    pub pkce_verifier: &'a str,
    /// Repeated in the ID token of an OpenID Connect provider.
    pub nonce: &'a str,
}

/// What [`Provider::identify`] needs.
#[derive(Clone, Copy)]
pub struct Exchange<'a> {
    /// The code that the browser brought.
    pub code: &'a str,
    /// As in the [`Authorization`].
    pub redirect_uri: &'a str,
    /// As in the [`Authorization`].
    pub pkce_verifier: &'a str,
    /// As in the [`Authorization`].
    pub nonce: &'a str,
}

// State, code, verifier and nonce are worth a session to whoever reads them in a log.
impl fmt::Debug for Authorization<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorization").field("redirect_uri", &self.redirect_uri).finish_non_exhaustive()
    }
}

impl fmt::Debug for Exchange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("redirect_uri", &self.redirect_uri).finish_non_exhaustive()
    }
}

/// Who somebody is at a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Stable there for ever, unlike addresses and names. Not empty.
    pub subject: String,
    /// Trimmed, in lower case; present only if the provider vouches that it is the person's.
    pub email: Option<String>,
    /// How to address the person: trimmed, without control characters, 1 to [`MAX_DISPLAY_NAME`] characters.
    pub name: String,
}

impl Identity {
    /// Tidies what a provider says. The name is the first of `names` that is not empty, else the part of the address
    /// before the `@`, else the subject.
    pub(crate) fn new(subject: String, email: Option<&str>, names: [Option<&str>; 2]) -> Self {
        let email = email.and_then(tidy_email);
        let local = email.as_deref().and_then(|email| email.split('@').next());
        let name = names
            .into_iter()
            .chain([local, Some(subject.as_str())])
            .flatten()
            .map(tidy_name)
            .find(|name| !name.is_empty())
            .unwrap_or_else(|| "unnamed".to_owned());
        Self { subject, email, name }
    }
}

fn tidy_email(email: &str) -> Option<String> {
    let email = email.trim().to_lowercase();
    let (local, domain) = email.rsplit_once('@')?;
    let odd = |c: char| c.is_control() || c.is_whitespace();
    let well_formed =
        !local.is_empty() && !domain.is_empty() && email.len() <= MAX_EMAIL && !email.contains(odd);
    well_formed.then_some(email)
}

fn tidy_name(name: &str) -> String {
    let printable: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let cut: String = printable.trim().chars().take(MAX_DISPLAY_NAME).collect();
    cut.trim_end().to_owned()
}

/// Why nobody was identified. The texts are for the operator's log; they never hold a code, a token or a secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProviderError {
    /// The code is unknown, expired or used, or belongs to another browser.
    #[error("the provider refused the code ({0}); sign in again")]
    Exchange(String),
    /// The provider and the configuration disagree; nobody can sign in until that is corrected.
    #[error("the sign-in provider is not set up correctly: {0}")]
    Configuration(String),
    /// The provider did not answer in time, or answered that it cannot at present.
    #[error("cannot get the {what} from the provider; try again later")]
    Unreachable {
        /// What was asked for.
        what: &'static str,
        /// What went wrong.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The answer makes no sense, or its token is not valid.
    #[error("the provider's answer cannot be used: {0}")]
    Invalid(String),
}

impl ProviderError {
    pub(crate) fn unreachable(what: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unreachable { what, source: Arc::from(source.into()) }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    pub(crate) fn configuration(text: impl Into<String>) -> Self {
        Self::Configuration(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_and_tidied() {
        let name = |email, names| Identity::new("7".to_owned(), email, names).name;
        assert_eq!(name(None, [Some("  Ada\nLovelace "), Some("ada")]), "Ada Lovelace");
        assert_eq!(name(None, [Some(" \t"), Some("ada")]), "ada");
        assert_eq!(name(Some("Countess@example.com"), [None, None]), "countess");
        assert_eq!(name(Some("no address"), [None, Some("")]), "7");
        assert_eq!(Identity::new("\n".to_owned(), None, [None, None]).name, "unnamed");
        let long = format!("{} {}", "é".repeat(MAX_DISPLAY_NAME - 1), "x");
        assert_eq!(name(None, [Some(&long), None]), "é".repeat(MAX_DISPLAY_NAME - 1));
    }

    #[test]
    fn an_address_is_tidied_or_dropped() {
        let email = |text| Identity::new("7".to_owned(), Some(text), [None, None]).email;
        assert_eq!(email(" Ada@Example.COM ").as_deref(), Some("ada@example.com"));
        let long = format!("{}@example.com", "a".repeat(MAX_EMAIL));
        for bad in ["", "@", "ada", "ada@", "@example.com", "a\nb@example.com", "a b@example.com", &long] {
            assert_eq!(email(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!(
            "{:?}{:?}",
            Authorization {
                state: "s3cret",
                redirect_uri: "http://x",
                pkce_verifier: "s3cret",
                nonce: "s3cret"
            },
            Exchange { code: "s3cret", redirect_uri: "http://x", pkce_verifier: "s3cret", nonce: "s3cret" },
        );
        assert!(!text.contains("s3cret"), "{text}");
    }

    #[test]
    fn an_error_does_not_repeat_its_source() {
        let error = ProviderError::unreachable("profile", "status 503");
        assert!(!error.to_string().contains("503"));
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("status 503"));
    }
}
