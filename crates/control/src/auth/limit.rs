//! How often somebody may try.
//!
//! Two limits on everything that takes a password or a mailed token: one for the address that a request comes from, one for
//! the account that passwords are tried on, from one address and from all together, which counts failures only. Each replica counts for itself.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::request::Parts;

use super::client::ClientAddress;
use crate::api::ApiError;
use crate::config::AuthLimits;
use crate::state::App;

/// How much more often an account may be tried from all addresses together than from one.
const MANY: u32 = 10;

/// Who has tried how often.
pub(crate) struct Limits {
    addresses: DefaultKeyedRateLimiter<IpAddr>,
    /// By account and address.
    accounts: Tries<(String, IpAddr)>,
    /// By account alone, so that many addresses together do not try for ever.
    everywhere: Tries<String>,
    clock: DefaultClock,
}

fn quota(burst: u32, every: Duration) -> Quota {
    let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
    let every = every.max(Duration::from_millis(1));
    Quota::with_period(every).unwrap_or(Quota::per_second(NonZeroU32::MIN)).allow_burst(burst)
}

impl Limits {
    pub(crate) fn new(limits: &AuthLimits) -> Self {
        Self {
            addresses: RateLimiter::keyed(quota(limits.address_burst, limits.address_every)),
            accounts: Tries::new(limits.account_burst, limits.account_every),
            everywhere: Tries::new(limits.account_burst.saturating_mul(MANY), limits.account_every / MANY),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request of an address.
    fn address(&self, address: IpAddr) -> Result<(), ApiError> {
        self.addresses
            .check_key(&network(address))
            .map_err(|until| ApiError::rate_limited(until.wait_time_from(self.clock.now())))
    }

    /// Counts a try of a password on an account, before it is known whether it fails: many at once count like many in a
    /// row.
    /// Whoever tries from one address uses up that address's tries long before those of the account's own person.
    pub(crate) fn account(&self, account: &str, client: ClientAddress) -> Result<(), ApiError> {
        let now = Instant::now();
        let key = (account.to_owned(), network(client.0));
        self.accounts.count(key, now).map_err(ApiError::rate_limited)?;
        self.everywhere.count(account.to_owned(), now).map_err(ApiError::rate_limited)
    }

    /// Forgets the tries on an account whose person has just proved who they are.
    pub(crate) fn forgive(&self, account: &str, client: ClientAddress) {
        self.accounts.forget(&(account.to_owned(), network(client.0)));
    }

    /// Forgets those who could try as often as anybody again.
    pub(crate) fn sweep(&self) {
        self.addresses.retain_recent();
        self.accounts.sweep(Instant::now());
        self.everywhere.sweep(Instant::now());
    }
}

/// Tries that can be forgiven, which no rate limiter of the shelf does: each is forgotten after a while, or all at once.
struct Tries<K> {
    most: u32,
    every: Duration,
    /// Until when the tries of an account weigh on it: `every` for each, from the first.
    counts: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash> Tries<K> {
    fn new(most: u32, every: Duration) -> Self {
        Self { most: most.max(1), every: every.max(Duration::from_millis(1)), counts: Mutex::default() }
    }

    /// Counts one, or says how long to wait.
    fn count(&self, account: K, now: Instant) -> Result<(), Duration> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let until = counts.get(&account).copied().unwrap_or(now).max(now) + self.every;
        let over = until.saturating_duration_since(now + self.every * self.most);
        if over.is_zero() {
            counts.insert(account, until);
            return Ok(());
        }
        Err(over)
    }

    fn forget(&self, account: &K) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(account);
    }

    fn sweep(&self, now: Instant) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, until| *until > now);
    }
}

/// What counts as one address: with IPv6 the network that one customer gets.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

/// The request is not one too many of its address. In the signature of every handler that takes a password or a mailed
/// token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unhurried(pub(crate) ClientAddress);

impl FromRequestParts<App> for Unhurried {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let address = ClientAddress::from_request_parts(parts, app).await?;
        app.limits.address(address.0).inspect_err(|_| {
            tracing::warn!(client = %address, "too many sign-in requests of one address");
        })?;
        Ok(Self(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let hour = Duration::from_secs(3600);
        Limits::new(&AuthLimits {
            address_burst: 3,
            address_every: hour,
            account_burst: 2,
            account_every: hour,
        })
    }

    #[test]
    fn each_address_and_each_account_has_its_own_count() {
        let limits = limits();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..3 {
            limits.address(one).unwrap();
        }
        let refused = limits.address(one).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (429, "rate_limited"));
        limits.address(other).unwrap();
        let (one_client, other_client) = (ClientAddress(one), ClientAddress(other));
        limits.account("a@b.c", one_client).unwrap();
        limits.account("a@b.c", one_client).unwrap();
        assert!(limits.account("a@b.c", one_client).is_err());
        limits.account("a@b.c", other_client).unwrap();
        limits.account("d@e.f", one_client).unwrap();
        limits.forgive("a@b.c", one_client);
        limits.account("a@b.c", one_client).unwrap();
        limits.sweep();
        assert!(limits.address(one).is_err());
    }

    #[test]
    fn each_pause_allows_one_more_try() {
        let every = Duration::from_secs(30);
        let tries = Tries::new(2, every);
        let now = Instant::now();
        tries.count("a", now).unwrap();
        tries.count("a", now).unwrap();
        assert_eq!(tries.count("a", now), Err(every));
        assert_eq!(tries.count("a", now + every / 2), Err(every / 2));
        tries.count("a", now + every).unwrap();
        assert!(tries.count("a", now + every).is_err());
        tries.sweep(now + 10 * every);
        assert!(tries.counts.lock().unwrap().is_empty());
    }

    #[test]
    fn a_customers_whole_ipv6_network_counts_as_one() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(network(parse("2001:db8:1:2:3::4")), network(parse("2001:db8:1:2:9::9")));
        assert_ne!(network(parse("2001:db8:1:2::1")), network(parse("2001:db8:1:3::1")));
        assert_eq!(network(parse("::ffff:10.0.0.1")), parse("10.0.0.1"));
    }
}
