//! Cookies of the sign-in with providers, and the signatures in them.

use axum::response::{IntoResponseParts, ResponseParts};
use hmac::{Hmac, KeyInit, Mac};
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use sha2::Sha256;

/// What a cookie value may not hold as it is (RFC 6265, section 4.1.1), and the percent sign.
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b',').add(b';').add(b'\\').add(b'%').add(b'+').add(b'&').add(b'=');

/// Signs short texts with the secret of the deployment: HMAC-SHA256 in hex.
pub(crate) struct Signer(String);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    pub(crate) fn new(secret: &str) -> Self {
        Self(secret.to_owned())
    }

    fn mac(&self, text: &str) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).ok()?;
        mac.update(text.as_bytes());
        Some(mac)
    }

    /// 64 hex digits.
    pub(crate) fn sign(&self, text: &str) -> String {
        self.mac(text).map(|mac| hex::encode(mac.finalize().into_bytes())).unwrap_or_default()
    }

    /// Whether the signature is the text's, found out in the same time whatever it is.
    pub(crate) fn is_signed(&self, text: &str, signature: &str) -> bool {
        let (Some(mac), Ok(signature)) = (self.mac(text), hex::decode(signature)) else { return false };
        mac.verify_slice(&signature).is_ok()
    }
}

/// The cookies that a request brings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CookieJar<'a>(pub(crate) &'a HeaderMap);

impl<'a> CookieJar<'a> {
    pub(crate) fn get(self, name: &str) -> Option<&'a str> {
        self.0
            .get_all(COOKIE)
            .iter()
            .filter_map(|header| header.to_str().ok())
            .flat_map(|header| header.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value)
    }
}

/// Cookies to set with an answer.
#[derive(Debug, Clone)]
pub(crate) struct Cookies {
    secure: bool,
    set: Vec<String>,
}

impl Cookies {
    /// `secure` where the client speaks TLS.
    pub(crate) const fn new(secure: bool) -> Self {
        Self { secure, set: Vec::new() }
    }

    /// A cookie that scripts cannot read.
    pub(crate) fn hidden(&mut self, name: &str, value: &str, path: &str, seconds: u32) {
        self.add(name, value, path, seconds, "; HttpOnly");
    }

    /// A cookie that scripts read, its value percent-encoded.
    pub(crate) fn open(&mut self, name: &str, value: &str, path: &str, seconds: u32) {
        let value = utf8_percent_encode(value, ESCAPED).to_string();
        self.add(name, &value, path, seconds, "");
    }

    /// Takes a cookie away.
    pub(crate) fn clear(&mut self, name: &str, path: &str) {
        self.add(name, "", path, 0, "; HttpOnly");
    }

    fn add(&mut self, name: &str, value: &str, path: &str, seconds: u32, more: &str) {
        let secure = if self.secure { "; Secure" } else { "" };
        self.set.push(format!("{name}={value}; Path={path}; Max-Age={seconds}; SameSite=Lax{more}{secure}"));
    }
}

impl IntoResponseParts for Cookies {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut response: ResponseParts) -> Result<ResponseParts, Self::Error> {
        for cookie in self.set {
            if let Ok(value) = HeaderValue::from_str(&cookie) {
                response.headers_mut().append(SET_COOKIE, value);
            }
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_texts_and_the_secrets_own() {
        // RFC 4231, test case 2.
        let signature = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let signer = Signer::new("Jefe");
        assert_eq!(signer.sign("what do ya want for nothing?"), signature);
        assert!(signer.is_signed("what do ya want for nothing?", signature));
        assert!(!signer.is_signed("what do ya want for nothing!", signature));
        assert!(!Signer::new("jefe").is_signed("what do ya want for nothing?", signature));
        assert!(!signer.is_signed("what do ya want for nothing?", "zz"));
    }

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "a=1; state=x:y; xstate=2".parse().unwrap());
        headers.append(COOKIE, "b=3".parse().unwrap());
        let jar = CookieJar(&headers);
        assert_eq!((jar.get("state"), jar.get("b"), jar.get("tate")), (Some("x:y"), Some("3"), None));
    }
}
