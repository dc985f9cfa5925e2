//! The kinds of values that settings have, and their text form.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

/// A kind of value.
pub(super) trait Value: Sized {
    /// Completes the sentence "must be …".
    const EXPECTED: &'static str;

    /// Reads the text form; a relative path is relative to `base`, or else to the working directory.
    fn parse(text: &str, base: Option<&Path>) -> Option<Self>;

    /// The text form, which [`Value::parse`] reads; `None` for a value that is not set.
    fn text(&self) -> Option<String>;

    /// The text form that people may see.
    fn show(&self) -> String {
        self.text().unwrap_or_else(|| "-".to_owned())
    }
}

impl<T: Value> Value for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn parse(text: &str, base: Option<&Path>) -> Option<Self> {
        T::parse(text, base).map(Some)
    }

    fn text(&self) -> Option<String> {
        self.as_ref().and_then(T::text)
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "-".to_owned(), T::show)
    }
}

macro_rules! plain_values {
    ($($type:ty: $expected:literal;)*) => {$(
        impl Value for $type {
            const EXPECTED: &'static str = $expected;

            fn parse(text: &str, _: Option<&Path>) -> Option<Self> {
                text.trim().parse().ok()
            }

            fn text(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    )*};
}

plain_values! {
    u32: "a whole number up to 4294967295";
    u64: "a whole number";
    SocketAddr: "an address with a port, such as 127.0.0.1:8080 or [::]:8080";
}

impl Value for String {
    const EXPECTED: &'static str = "a text that is not empty";

    fn parse(text: &str, _: Option<&Path>) -> Option<Self> {
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn text(&self) -> Option<String> {
        Some(self.clone())
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";

    fn parse(text: &str, _: Option<&Path>) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => None,
        }
    }

    fn text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for PathBuf {
    const EXPECTED: &'static str = "a path";

    fn parse(text: &str, base: Option<&Path>) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        match base {
            Some(base) => Some(base.join(text)),
            None => std::path::absolute(text).ok(),
        }
    }

    fn text(&self) -> Option<String> {
        Some(self.display().to_string())
    }
}

/// A PostgreSQL URL. Shown without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The URL with its password.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn masked(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else { return "***".to_owned() };
        let rest = match rest.rsplit_once('@') {
            Some((login, place)) => {
                let user = login.split_once(':').map_or(login, |(user, _)| user);
                let mask = if user.len() == login.len() { "" } else { ":***" };
                format!("{user}{mask}@{place}")
            }
            None => rest.to_owned(),
        };
        // A query may carry a password too.
        match rest.split_once('?') {
            Some((before, _)) => format!("{scheme}://{before}?***"),
            None => format!("{scheme}://{rest}"),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl Value for DatabaseUrl {
    const EXPECTED: &'static str = "a URL that begins with postgres:// or postgresql://";

    fn parse(text: &str, _: Option<&Path>) -> Option<Self> {
        let known = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
        known.then(|| Self(text.to_owned()))
    }

    fn text(&self) -> Option<String> {
        Some(self.0.clone())
    }

    fn show(&self) -> String {
        self.masked()
    }
}

/// Something that only this deployment may know. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Value for Secret {
    const EXPECTED: &'static str = "a text that is not empty";

    fn parse(text: &str, _: Option<&Path>) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    fn text(&self) -> Option<String> {
        Some(self.0.clone())
    }

    fn show(&self) -> String {
        "***".to_owned()
    }
}

/// A base URL, without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(String);

impl BaseUrl {
    /// One that needs no checking.
    pub(super) fn known(url: &str) -> Self {
        Self(url.to_owned())
    }

    /// The URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Value for BaseUrl {
    const EXPECTED: &'static str = "a URL that begins with http:// or https://";

    fn parse(text: &str, _: Option<&Path>) -> Option<Self> {
        let text = text.trim().trim_end_matches('/');
        let host = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme))?;
        (!host.is_empty()).then(|| Self(text.to_owned()))
    }

    fn text(&self) -> Option<String> {
        Some(self.0.clone())
    }
}

/// Networks, separated by commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(pub Vec<IpNet>);

impl Value for Networks {
    const EXPECTED: &'static str = "addresses or networks such as 10.0.0.0/8, separated by commas";

    fn parse(text: &str, _: Option<&Path>) -> Option<Self> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        let parse =
            |word: &str| word.parse::<IpNet>().ok().or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from));
        words.map(parse).collect::<Option<_>>().map(Self)
    }

    fn text(&self) -> Option<String> {
        let words: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        (!words.is_empty()).then(|| words.join(","))
    }
}

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident, $expected:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)*
        }

        impl $name {
            /// The text form.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Value for $name {
            const EXPECTED: &'static str = $expected;

            fn parse(text: &str, _: Option<&Path>) -> Option<Self> {
                match text {
                    $($text => Some(Self::$variant),)*
                    _ => None,
                }
            }

            fn text(&self) -> Option<String> {
                Some(self.as_str().to_owned())
            }
        }
    )*};
}

choices! {
    /// How VMs run.
    Accel, "auto, kvm or tcg" {
        /// KVM where it works, else emulation.
        Auto = "auto",
        /// Hardware virtualisation.
        Kvm = "kvm",
        /// Emulation.
        Tcg = "tcg",
    }
    /// What runs new capsules.
    Driver, "auto, firecracker or qemu" {
        /// Firecracker where the host can, else QEMU.
        Auto = "auto",
        /// Firecracker.
        Firecracker = "firecracker",
        /// QEMU.
        Qemu = "qemu",
    }
    /// How Firecracker gets the memory of a snapshot.
    MemoryRestore, "auto, paged or mapped" {
        /// From the file where it lies in one, else page by page.
        Auto = "auto",
        /// Page by page.
        Paged = "paged",
        /// From one file.
        Mapped = "mapped",
    }
    /// How log lines are written.
    LogFormat, "auto, text or json" {
        /// For people on a terminal, JSON elsewhere.
        Auto = "auto",
        /// For people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}
