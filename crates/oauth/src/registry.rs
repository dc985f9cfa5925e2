//! The providers that an installation offers.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Provider;

/// Longest name of a provider in characters.
const MAX_NAME_LEN: usize = 32;

/// Providers by name. A clone shares them.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    providers: Arc<BTreeMap<String, Arc<dyn Provider>>>,
}

/// A provider cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The name would not be safe in a path.
    #[error(
        "sign-in provider {0:?}: a name must hold 1 to {MAX_NAME_LEN} lower-case letters, digits and dashes; rename it"
    )]
    Name(String),
    /// Two providers claim one name.
    #[error("there are two sign-in providers of the name {0:?}; rename one")]
    Duplicate(String),
}

impl Registry {
    /// Adds a provider. Clones made before do not see it.
    ///
    /// # Errors
    /// The name does not match `[a-z0-9-]{1,32}`, or is taken; the registry is as before.
    pub fn register(&mut self, provider: Arc<dyn Provider>) -> Result<(), RegistryError> {
        let name = provider.name().to_owned();
        if !is_name(&name) {
            return Err(RegistryError::Name(name));
        }
        if self.providers.contains_key(&name) {
            return Err(RegistryError::Duplicate(name));
        }
        Arc::make_mut(&mut self.providers).insert(name, provider);
        Ok(())
    }

    /// The provider of that name.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Provider>> {
        self.providers.get(name).cloned()
    }

    /// All names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.providers.keys().map(String::as_str)
    }
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::{Authorization, Exchange, Identity, ProviderError};

    #[derive(Debug)]
    struct Named(String);

    #[async_trait]
    impl Provider for Named {
        fn name(&self) -> &str {
            &self.0
        }

        async fn authorize_url(&self, _: &Authorization<'_>) -> Result<String, ProviderError> {
            Err(ProviderError::invalid("not asked"))
        }

        async fn identify(&self, _: &Exchange<'_>) -> Result<Identity, ProviderError> {
            Err(ProviderError::invalid("not asked"))
        }
    }

    fn named(name: &str) -> Arc<dyn Provider> {
        Arc::new(Named(name.to_owned()))
    }

    #[test]
    fn providers_are_found_by_name() {
        let mut registry = Registry::default();
        for name in ["github", "corp-sso", "a", &"x".repeat(32)] {
            registry.register(named(name)).unwrap();
        }
        assert_eq!(registry.get("github").unwrap().name(), "github");
        assert!(registry.get("GitHub").is_none());
        assert_eq!(registry.names().take(3).collect::<Vec<_>>(), ["a", "corp-sso", "github"]);
    }

    #[test]
    fn bad_and_taken_names_are_refused() {
        let mut registry = Registry::default();
        for bad in ["", "GitHub", "a/b", "a b", "a_b", "é", "..", &"x".repeat(33)] {
            assert_eq!(registry.register(named(bad)), Err(RegistryError::Name(bad.to_owned())));
        }
        registry.register(named("github")).unwrap();
        assert_eq!(registry.register(named("github")), Err(RegistryError::Duplicate("github".to_owned())));
    }

    #[test]
    fn a_clone_is_a_copy() {
        let mut registry = Registry::default();
        let before = registry.clone();
        registry.register(named("github")).unwrap();
        assert!(before.get("github").is_none());
        assert!(registry.clone().get("github").is_some());
    }
}
