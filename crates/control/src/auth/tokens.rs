//! The tokens with which people sign in: JSON Web Tokens (RFC 7519), HS256.

use std::fmt;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use wrenn_core::{TeamId, UserId};

use crate::store::Role;

const LIFE: Duration = Duration::hours(6);

/// What a token says. Only `sub`, `team_id`, `iat` and `exp` are believed; the rest is for the client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) sub: UserId,
    pub(crate) team_id: TeamId,
    #[serde(default)]
    role: String,
    #[serde(default)]
    email: String,
    #[serde(default)]
    name: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_admin: bool,
    pub(crate) iat: i64,
    exp: i64,
    /// Tokens of hosts have one, those of people have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
}

/// Whom a new token is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) user: UserId,
    pub(crate) team: TeamId,
    pub(crate) role: Option<Role>,
    pub(crate) email: &'a str,
    pub(crate) name: &'a str,
    pub(crate) is_admin: bool,
}

/// Signs and reads the tokens of people.
pub(crate) struct UserTokens {
    signing: EncodingKey,
    reading: DecodingKey,
    rules: Validation,
}

impl fmt::Debug for UserTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserTokens").finish_non_exhaustive()
    }
}

impl UserTokens {
    pub(crate) fn new(secret: &str) -> Self {
        let mut rules = Validation::new(Algorithm::HS256);
        rules.leeway = 0;
        rules.set_required_spec_claims(&["exp", "sub"]);
        Self {
            signing: EncodingKey::from_secret(secret.as_bytes()),
            reading: DecodingKey::from_secret(secret.as_bytes()),
            rules,
        }
    }

    pub(crate) fn sign(&self, whom: Subject<'_>) -> Result<String, jsonwebtoken::errors::Error> {
        let now = OffsetDateTime::now_utc();
        let claims = Claims {
            sub: whom.user,
            team_id: whom.team,
            role: whom.role.map_or("", Role::as_str).to_owned(),
            email: whom.email.to_owned(),
            name: whom.name.to_owned(),
            is_admin: whom.is_admin,
            iat: now.unix_timestamp(),
            exp: (now + LIFE).unix_timestamp(),
            typ: None,
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.signing)
    }

    /// The claims of a token that this platform signed for a person and that is still in force.
    pub(crate) fn read(&self, token: &str) -> Option<Claims> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.reading, &self.rules).ok()?.claims;
        claims.typ.is_none().then_some(claims)
    }
}

/// The bearer token of a request.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject<'static> {
        Subject {
            user: UserId::random(),
            team: TeamId::random(),
            role: Some(Role::Owner),
            email: "a@b.c",
            name: "Ada",
            is_admin: false,
        }
    }

    #[test]
    fn a_token_is_read_by_its_own_secret_only() {
        let (ours, theirs) = (UserTokens::new(&"a".repeat(32)), UserTokens::new(&"b".repeat(32)));
        let whom = subject();
        let token = ours.sign(whom).unwrap();
        let claims = ours.read(&token).unwrap();
        assert_eq!((claims.sub, claims.team_id), (whom.user, whom.team));
        assert_eq!((claims.role.as_str(), claims.exp - claims.iat), ("owner", 6 * 3600));
        assert!(theirs.read(&token).is_none());
        for broken in ["", "x", "a.b.c", &token[..token.len() - 2]] {
            assert!(ours.read(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn expired_tokens_tokens_of_hosts_and_other_algorithms_are_refused() {
        let secret = "a".repeat(32);
        let tokens = UserTokens::new(&secret);
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let base = serde_json::json!({
            "sub": UserId::random(), "team_id": TeamId::random(), "iat": now, "exp": now + 60,
        });
        let sign = |algorithm, field: &str, value: serde_json::Value| {
            let mut claims = base.clone();
            claims[field] = value;
            let key = EncodingKey::from_secret(secret.as_bytes());
            jsonwebtoken::encode(&Header::new(algorithm), &claims, &key).unwrap()
        };
        assert!(tokens.read(&sign(Algorithm::HS256, "iat", now.into())).is_some());
        assert!(tokens.read(&sign(Algorithm::HS256, "exp", (now - 1).into())).is_none());
        assert!(tokens.read(&sign(Algorithm::HS256, "typ", "host".into())).is_none());
        assert!(tokens.read(&sign(Algorithm::HS384, "iat", now.into())).is_none());
    }

    #[test]
    fn the_bearer_scheme_is_read_in_any_case() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), None);
        headers.insert(AUTHORIZATION, "bEaReR  x.y.z".parse().unwrap());
        assert_eq!(bearer(&headers), Some("x.y.z"));
        headers.insert(AUTHORIZATION, "Basic eA==".parse().unwrap());
        assert_eq!(bearer(&headers), None);
    }
}
