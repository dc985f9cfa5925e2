//! What an ID token proves (OpenID Connect Core 1.0, section 3.1.3.7).

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::ProviderError;

/// How far the two clocks may be apart, in seconds.
const LEEWAY: u64 = 30;
/// Longest subject in bytes; OpenID Connect Core 1.0, section 2.
const MAX_SUBJECT: usize = 255;

/// Keys with which a provider signs.
#[derive(Debug)]
pub(super) struct Keys(Vec<Jwk>);

/// What a token must say.
pub(super) struct Expected<'a> {
    pub(super) issuer: &'a str,
    pub(super) client_id: &'a str,
    pub(super) nonce: &'a str,
}

/// What a valid token says.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    pub(super) sub: String,
    #[serde(flatten)]
    pub(super) profile: Profile,
    iss: String,
    aud: Audience,
    azp: Option<String>,
    nonce: Option<String>,
}

/// What an ID token and the userinfo endpoint may tell of a person.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Profile {
    email: Option<String>,
    #[serde(default, deserialize_with = "is_true")]
    email_verified: bool,
    pub(super) name: Option<String>,
    pub(super) preferred_username: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct KeyDocument {
    keys: Vec<Value>,
}

impl Profile {
    /// Whether asking the userinfo endpoint may tell more.
    pub(super) fn is_incomplete(&self) -> bool {
        self.email.is_none() || self.name.is_none()
    }

    /// Adds what is missing. An address and its verification stay together.
    pub(super) fn complete(&mut self, other: Self) {
        if self.email.is_none() {
            self.email = other.email;
            self.email_verified = other.email_verified;
        }
        self.name = self.name.take().or(other.name);
        self.preferred_username = self.preferred_username.take().or(other.preferred_username);
    }

    /// The address, if it is verified.
    pub(super) fn email(&self) -> Option<&str> {
        self.email.as_deref().filter(|_| self.email_verified)
    }
}

/// Some providers write `"true"`.
fn is_true<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value == Value::Bool(true) || value == Value::String("true".to_owned()))
}

/// Keys of kinds not known here are passed over; they may be for other clients.
impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let document = KeyDocument::deserialize(deserializer)?;
        Ok(Self(document.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect()))
    }
}

impl Keys {
    /// The key that a token of this header must be signed with. A token may leave the choice only where there is none.
    pub(super) fn find(&self, header: &Header) -> Option<&Jwk> {
        let mut suitable = self.0.iter().filter(|key| suits(key, header.alg));
        if let Some(id) = &header.kid {
            return suitable.find(|key| key.common.key_id.as_ref() == Some(id));
        }
        let only = suitable.next()?;
        suitable.next().is_none().then_some(only)
    }
}

/// Whether a key is for signatures of this algorithm. Shared secrets suit none, so that nobody can sign with what a
/// provider publishes.
fn suits(key: &Jwk, algorithm: Algorithm) -> bool {
    let common = &key.common;
    let kind = match (&key.algorithm, algorithm) {
        (
            AlgorithmParameters::RSA(_),
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512,
        ) => true,
        (AlgorithmParameters::EllipticCurve(ec), Algorithm::ES256) => ec.curve == EllipticCurve::P256,
        (AlgorithmParameters::EllipticCurve(ec), Algorithm::ES384) => ec.curve == EllipticCurve::P384,
        (AlgorithmParameters::OctetKeyPair(okp), Algorithm::EdDSA) => okp.curve == EllipticCurve::Ed25519,
        _ => false,
    };
    kind && common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify))
        && common.key_algorithm.is_none_or(|only| only == KeyAlgorithm::from(algorithm))
}

/// Reads the header of a token that nothing is known of yet.
pub(super) fn header(token: &str) -> Result<Header, ProviderError> {
    // Unsigned tokens end here: `none` is no algorithm to jsonwebtoken.
    let header = jsonwebtoken::decode_header(token).map_err(|_| {
        ProviderError::invalid("the ID token is malformed, or signed in a way that is not accepted")
    })?;
    let secret = matches!(header.alg, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512);
    if secret {
        return Err(ProviderError::invalid(
            "the ID token is signed with a shared secret, which is not accepted",
        ));
    }
    if header.crit.is_some() {
        return Err(ProviderError::invalid("the ID token demands extensions that are not known here"));
    }
    Ok(header)
}

/// Verifies signature and claims.
pub(super) fn verify(
    token: &str,
    algorithm: Algorithm,
    key: &Jwk,
    expected: &Expected<'_>,
) -> Result<Claims, ProviderError> {
    let key =
        DecodingKey::from_jwk(key).map_err(|_| ProviderError::invalid("the provider's key is malformed"))?;
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.set_issuer(&[expected.issuer]);
    validation.set_audience(&[expected.client_id]);
    let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation)
        .map_err(|error| ProviderError::invalid(token_error(error.kind())))?
        .claims;
    check(&claims, expected).map_err(ProviderError::invalid)?;
    Ok(claims)
}

/// What jsonwebtoken does not check, or not as strictly.
fn check(claims: &Claims, expected: &Expected<'_>) -> Result<(), &'static str> {
    // To jsonwebtoken, a list of issuers is good if one of them is.
    if claims.iss != expected.issuer {
        return Err("the ID token is of another issuer");
    }
    let (ours, several) = match &claims.aud {
        Audience::One(one) => (one == expected.client_id, false),
        Audience::Many(all) => (all.iter().any(|one| one == expected.client_id), all.len() > 1),
    };
    let authorized = match &claims.azp {
        Some(party) => ours && party == expected.client_id,
        None => ours && !several,
    };
    if !authorized {
        return Err("the ID token was issued to another client");
    }
    if expected.nonce.is_empty() || claims.nonce.as_deref() != Some(expected.nonce) {
        return Err("the ID token is of another sign-in: its nonce does not match");
    }
    if !(1..=MAX_SUBJECT).contains(&claims.sub.len()) {
        return Err("the subject is empty or too long");
    }
    Ok(())
}

/// jsonwebtoken's own texts may repeat claims.
fn token_error(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidSignature => "the signature of the ID token is wrong",
        ErrorKind::ExpiredSignature => "the ID token has expired; compare the clocks of both machines",
        ErrorKind::ImmatureSignature => "the ID token is not valid yet; compare the clocks of both machines",
        ErrorKind::InvalidIssuer => "the ID token is of another issuer",
        ErrorKind::InvalidAudience => "the ID token is for another client",
        ErrorKind::MissingRequiredClaim(_) => "the ID token lacks one of exp, iss, aud and sub",
        _ => "the ID token is malformed",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keys() -> Keys {
        let rsa = |id: &str| json!({"kty": "RSA", "kid": id, "n": "AQAB", "e": "AQAB"});
        let mut encryption = rsa("enc");
        encryption["use"] = json!("enc");
        let mut bound = rsa("bound");
        bound["alg"] = json!("RS512");
        serde_json::from_value(json!({"keys": [
            rsa("rsa"), encryption, bound,
            {"kty": "EC", "kid": "ec", "crv": "P-256", "x": "AA", "y": "AA"},
            {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
            {"kty": "EC", "kid": "odd", "crv": "secp256k1", "x": "AA", "y": "AA"},
            "not a key", {"kty": 7},
        ]}))
        .unwrap()
    }

    fn found(algorithm: Algorithm, id: Option<&str>) -> Option<String> {
        let mut header = Header::new(algorithm);
        header.kid = id.map(str::to_owned);
        keys().find(&header).and_then(|key| key.common.key_id.clone())
    }

    #[test]
    fn a_key_is_used_only_for_what_it_is_for() {
        assert_eq!(found(Algorithm::RS256, Some("rsa")).as_deref(), Some("rsa"));
        assert_eq!(found(Algorithm::PS512, Some("rsa")).as_deref(), Some("rsa"));
        assert_eq!(found(Algorithm::RS512, Some("bound")).as_deref(), Some("bound"));
        assert_eq!(found(Algorithm::ES256, Some("ec")).as_deref(), Some("ec"));
        for (algorithm, id) in [
            (Algorithm::RS256, "enc"),
            (Algorithm::RS256, "bound"),
            (Algorithm::RS256, "ec"),
            (Algorithm::ES384, "ec"),
            (Algorithm::ES256, "odd"),
            (Algorithm::EdDSA, "ec"),
            (Algorithm::HS256, "oct"),
            (Algorithm::HS256, "rsa"),
            (Algorithm::RS256, "unknown"),
        ] {
            assert_eq!(found(algorithm, Some(id)), None, "{algorithm:?} {id}");
        }
    }

    #[test]
    fn without_an_id_there_must_be_one_key_only() {
        assert_eq!(found(Algorithm::ES256, None).as_deref(), Some("ec"));
        assert_eq!(found(Algorithm::RS256, None).as_deref(), Some("rsa"));
        assert_eq!(found(Algorithm::RS512, None), None);
    }

    #[test]
    fn headers_that_cannot_be_trusted_are_refused() {
        for (token, accepted) in [
            // {"alg":"ES256"}
            ("eyJhbGciOiJFUzI1NiJ9.e30.AA", true),
            // {"alg":"ES256","crit":["exp"]}
            ("eyJhbGciOiJFUzI1NiIsImNyaXQiOlsiZXhwIl19.e30.AA", false),
            // {"alg":"HS256"}
            ("eyJhbGciOiJIUzI1NiJ9.e30.AA", false),
            // {"alg":"none"}
            ("eyJhbGciOiJub25lIn0.e30.", false),
            ("eyJhbGciOiJFUzI1NiJ9", false),
            ("", false),
            ("...", false),
        ] {
            assert_eq!(header(token).is_ok(), accepted, "{token}");
        }
    }

    fn checked(claims: Value) -> Result<(), &'static str> {
        let claims = serde_json::from_value(claims).unwrap();
        check(&claims, &Expected { issuer: "i", client_id: "c", nonce: "n" })
    }

    #[test]
    fn the_claims_must_be_ours() {
        assert!(checked(json!({"iss": "i", "sub": "7", "aud": "c", "nonce": "n"})).is_ok());
        assert!(checked(json!({"iss": "i", "sub": "7", "aud": ["c"], "nonce": "n"})).is_ok());
        assert!(
            checked(json!({"iss": "i", "sub": "7", "aud": ["c", "d"], "azp": "c", "nonce": "n"})).is_ok()
        );
        for bad in [
            json!({"iss": "j", "sub": "7", "aud": "c", "nonce": "n"}),
            json!({"iss": "i", "sub": "7", "aud": "d", "nonce": "n"}),
            json!({"iss": "i", "sub": "7", "aud": [], "azp": "c", "nonce": "n"}),
            json!({"iss": "i", "sub": "7", "aud": ["c", "d"], "nonce": "n"}),
            json!({"iss": "i", "sub": "7", "aud": ["c", "d"], "azp": "d", "nonce": "n"}),
            json!({"iss": "i", "sub": "7", "aud": "c", "azp": "d", "nonce": "n"}),
            json!({"iss": "i", "sub": "7", "aud": "c", "nonce": "m"}),
            json!({"iss": "i", "sub": "7", "aud": "c"}),
            json!({"iss": "i", "sub": "", "aud": "c", "nonce": "n"}),
            json!({"iss": "i", "sub": "7".repeat(256), "aud": "c", "nonce": "n"}),
        ] {
            assert!(checked(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_counts_only_if_verified() {
        let email =
            |profile: Value| serde_json::from_value::<Profile>(profile).unwrap().email().map(str::to_owned);
        assert!(email(json!({"email": "a@b", "email_verified": true})).is_some());
        assert!(email(json!({"email": "a@b", "email_verified": "true"})).is_some());
        for verified in [json!(false), json!("false"), json!(1), json!(null), json!("yes")] {
            assert_eq!(email(json!({"email": "a@b", "email_verified": verified})), None);
        }
        assert_eq!(email(json!({"email": "a@b"})), None);
    }

    #[test]
    fn an_address_is_not_verified_by_the_word_on_another() {
        let profile = |value| serde_json::from_value::<Profile>(value).unwrap();
        let mut unverified = profile(json!({"email": "a@b", "email_verified": false}));
        unverified.complete(profile(json!({"email": "c@d", "email_verified": true, "name": "Ada"})));
        assert_eq!((unverified.email(), unverified.name.as_deref()), (None, Some("Ada")));
        let mut claimed = profile(json!({"email_verified": true}));
        claimed.complete(profile(json!({"email": "c@d"})));
        assert_eq!(claimed.email(), None);
    }
}
