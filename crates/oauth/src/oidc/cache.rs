//! What a provider publishes, kept for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::ProviderError;

/// How long a published document is used without asking again.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// Time between two early renewals, which anybody can provoke with a token of an unknown key.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// One document.
#[derive(Debug)]
pub(super) struct Cache<T> {
    max_age: Duration,
    renew_every: Duration,
    slot: Mutex<Slot<T>>,
}

#[derive(Debug)]
struct Slot<T> {
    value: Option<(Instant, Arc<T>)>,
    failure: Option<(Instant, ProviderError)>,
    renewed: Option<Instant>,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self::new(MAX_AGE, RENEW_EVERY)
    }
}

impl<T> Cache<T> {
    fn new(max_age: Duration, renew_every: Duration) -> Self {
        let slot = Mutex::new(Slot { value: None, failure: None, renewed: None });
        Self { max_age, renew_every, slot }
    }

    /// The document, fetched if there is none or it is old. A failure is not remembered, but whoever waited for the
    /// attempt shares it: a provider that hangs is not asked by each of them in turn.
    pub(super) async fn get(
        &self,
        fetch: impl Future<Output = Result<T, ProviderError>>,
    ) -> Result<Arc<T>, ProviderError> {
        let asked = Instant::now();
        let mut slot = self.slot.lock().await;
        if let Some((at, value)) = &slot.value
            && at.elapsed() < self.max_age
        {
            return Ok(value.clone());
        }
        slot.fetch(asked, fetch).await
    }

    /// The document in a version other than `seen`, if there is one. Fetches it unless that was done just now.
    pub(super) async fn renew(
        &self,
        seen: &Arc<T>,
        fetch: impl Future<Output = Result<T, ProviderError>>,
    ) -> Result<Option<Arc<T>>, ProviderError> {
        let asked = Instant::now();
        let mut slot = self.slot.lock().await;
        if let Some((_, value)) = &slot.value
            && !Arc::ptr_eq(value, seen)
        {
            return Ok(Some(value.clone()));
        }
        if slot.renewed.is_some_and(|at| at.elapsed() < self.renew_every) {
            return Ok(None);
        }
        slot.renewed = Some(asked);
        slot.fetch(asked, fetch).await.map(Some)
    }
}

impl<T> Slot<T> {
    async fn fetch(
        &mut self,
        asked: Instant,
        fetch: impl Future<Output = Result<T, ProviderError>>,
    ) -> Result<Arc<T>, ProviderError> {
        if let Some((at, error)) = &self.failure
            && *at > asked
        {
            return Err(error.clone());
        }
        match fetch.await {
            Ok(value) => {
                let value = Arc::new(value);
                self.value = Some((Instant::now(), value.clone()));
                self.failure = None;
                Ok(value)
            }
            Err(error) => {
                self.failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const NEVER: Duration = Duration::MAX;
    const ALWAYS: Duration = Duration::ZERO;

    /// Succeeds with the number of attempts before it.
    async fn fetch(counter: &AtomicU32) -> Result<u32, ProviderError> {
        tokio::task::yield_now().await;
        Ok(counter.fetch_add(1, Ordering::Relaxed))
    }

    async fn fail(counter: &AtomicU32) -> Result<u32, ProviderError> {
        fetch(counter).await?;
        Err(ProviderError::invalid("no"))
    }

    #[tokio::test]
    async fn a_document_is_fetched_once_until_it_is_old() {
        let (cache, counter) = (Cache::new(NEVER, NEVER), AtomicU32::new(0));
        let (a, b) = tokio::join!(cache.get(fetch(&counter)), cache.get(fetch(&counter)));
        assert_eq!((*a.unwrap(), *b.unwrap()), (0, 0));
        assert_eq!(*cache.get(fetch(&counter)).await.unwrap(), 0);
        let cache = Cache::new(ALWAYS, NEVER);
        for expected in 1..4 {
            assert_eq!(*cache.get(fetch(&counter)).await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn those_who_wait_share_a_failure_and_later_ones_do_not() {
        let (cache, counter) = (Cache::default(), AtomicU32::new(0));
        let (a, b) = tokio::join!(cache.get(fail(&counter)), cache.get(fail(&counter)));
        assert!(a.is_err() && b.is_err());
        assert_eq!(counter.load(Ordering::Relaxed), 1);
        assert_eq!(*cache.get(fetch(&counter)).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_renewal_follows_no_other_too_soon() {
        let (cache, counter) = (Cache::new(NEVER, NEVER), AtomicU32::new(0));
        let first = cache.get(fetch(&counter)).await.unwrap();
        let second = cache.renew(&first, fetch(&counter)).await.unwrap().unwrap();
        assert_eq!(*second, 1);
        assert_eq!(cache.renew(&first, fetch(&counter)).await.unwrap(), Some(second.clone()));
        assert_eq!(cache.renew(&second, fetch(&counter)).await.unwrap(), None);
        assert_eq!(counter.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_failed_renewal_counts_and_leaves_what_there_was() {
        let counter = AtomicU32::new(0);
        for (every, renewed) in [(NEVER, false), (ALWAYS, true)] {
            let cache = Cache::new(NEVER, every);
            let first = cache.get(fetch(&counter)).await.unwrap();
            assert!(cache.renew(&first, fail(&counter)).await.is_err());
            assert!(Arc::ptr_eq(&cache.get(fetch(&counter)).await.unwrap(), &first));
            assert_eq!(cache.renew(&first, fetch(&counter)).await.unwrap().is_some(), renewed);
        }
    }
}
