//! What the host has told the daemon through `/init`: token, default user, default environment. Read by every call,
//! replaced as a whole.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use subtle::ConstantTimeEq;

/// One consistent set of settings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Values {
    /// Demanded of every call but `/health`, once set.
    pub(crate) token: Option<String>,
    /// User of calls that name none.
    pub(crate) default_user: Option<String>,
    /// Where relative paths start, in place of the user's home.
    pub(crate) default_workdir: Option<String>,
    /// Variables of every process.
    pub(crate) env: BTreeMap<String, String>,
}

impl Values {
    /// Whether `given` opens the door. Takes the same time for every wrong token of the right length.
    pub(crate) fn admits(&self, given: Option<&[u8]>) -> bool {
        match (&self.token, given) {
            (None, _) => true,
            (Some(token), Some(given)) => token.as_bytes().ct_eq(given).into(),
            (Some(_), None) => false,
        }
    }
}

/// The settings in force.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    values: Arc<RwLock<Arc<Values>>>,
    /// Held for writing while something that was set is not yet everywhere.
    settled: Arc<tokio::sync::RwLock<()>>,
    /// The last restore whose news was taken in.
    restored: Arc<Mutex<Option<u64>>>,
}

impl Settings {
    /// Settings that demand `token` and leave the rest open.
    pub(crate) fn new(token: Option<String>) -> Self {
        let values = Arc::new(RwLock::new(Arc::new(Values { token, ..Values::default() })));
        Self { values, settled: Arc::default(), restored: Arc::default() }
    }

    /// The number of the last restore whose news was taken in, locked against others that bring news.
    pub(crate) fn restored(&self) -> MutexGuard<'_, Option<u64>> {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The set in force now.
    pub(crate) fn get(&self) -> Arc<Values> {
        Arc::clone(&self.values.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the set by a changed copy.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Values)) {
        let mut current = self.values.write().unwrap_or_else(PoisonError::into_inner);
        let mut values = Values::clone(&current);
        change(&mut values);
        *current = Arc::new(values);
    }

    /// Has new connections wait until the guard is dropped. For a thread that may block.
    pub(crate) fn unsettle(&self) -> impl Drop + '_ {
        self.settled.blocking_write()
    }

    /// Resolves when everything that was set is in force everywhere.
    pub(crate) async fn settled(&self) {
        drop(self.settled.read().await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_token_everyone_is_admitted_and_with_one_only_its_holder() {
        let settings = Settings::new(None);
        assert!(settings.get().admits(None));
        settings.update(|values| values.token = Some("secret".into()));
        let values = settings.get();
        assert!(values.admits(Some(b"secret")));
        assert!(!values.admits(Some(b"secre")));
        assert!(!values.admits(Some(b"")));
        assert!(!values.admits(None));
    }
}
