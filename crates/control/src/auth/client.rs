//! Where a request comes from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::request::Parts;
use ipnet::IpNet;

use crate::api::ApiError;
use crate::state::App;

/// The other end of the connection, as an extension of each request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// The address of the client: the other end of the connection or, where that is a trusted proxy, whom it speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromRequestParts<App> for ClientAddress {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        Ok(Self(address(parts, &app.config.trusted_proxies)))
    }
}

pub(super) fn address(parts: &Parts, trusted: &[IpNet]) -> IpAddr {
    let peer = parts.extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
    behind(peer.to_canonical(), &parts.headers, trusted)
}

/// Walks back from the connection: each trusted proxy vouches for the address before its own.
fn behind(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let vouches = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
    let mut found = peer;
    let hops = headers.get_all("x-forwarded-for").iter().rev();
    let hops = hops.flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
    for hop in hops {
        if !vouches(&found) {
            break;
        }
        match hop.trim().parse::<IpAddr>() {
            Ok(address) => found = address.to_canonical(),
            Err(_) => break,
        }
    }
    found
}

/// Whether the client speaks TLS, to a proxy before this server.
pub(crate) fn is_https(headers: &HeaderMap) -> bool {
    let said = headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
    said.is_some_and(|proto| proto.trim().eq_ignore_ascii_case("https"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_speak_for_others() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "6.6.6.6, 1.2.3.4".parse().unwrap());
        headers.append("x-forwarded-for", "10.0.0.2".parse().unwrap());
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        let proxies: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        assert_eq!(behind(parse("9.9.9.9"), &headers, &proxies), parse("9.9.9.9"));
        assert_eq!(behind(parse("10.0.0.1"), &headers, &[]), parse("10.0.0.1"));
        // What the client itself claims, left of the last address that no proxy has, is not believed.
        assert_eq!(behind(parse("10.0.0.1"), &headers, &proxies), parse("1.2.3.4"));
        headers.append("x-forwarded-for", "unknown".parse().unwrap());
        assert_eq!(behind(parse("10.0.0.1"), &headers, &proxies), parse("10.0.0.1"));
    }
}
