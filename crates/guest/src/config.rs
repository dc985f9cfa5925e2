//! How the daemon is told what to do when it is not the machine's init: flags, or variables of the same meaning.

use std::net::{IpAddr, Ipv4Addr};

use thiserror::Error;

/// The port every capsule's daemon listens on.
pub(crate) const DEFAULT_PORT: u16 = 49_983;

/// Set to `1` to make a process 1 (of a container, of a test's namespace) serve without setting up a machine.
const SERVE_ONLY: &str = "WRENN_GUEST_SERVE_ONLY";

/// Where to listen and what to demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Address to listen on.
    pub address: IpAddr,
    /// Port to listen on; 0 takes any free one.
    pub port: u16,
    /// Access token demanded from the start.
    pub token: Option<String>,
}

/// The command line makes no sense.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// No such flag.
    #[error("unknown argument {0:?}; there are --addr, --port and --token")]
    Unknown(String),
    /// A flag at the end of the line.
    #[error("{0} needs a value")]
    NoValue(String),
    /// A value that does not parse.
    #[error("{flag} does not take {value:?}")]
    BadValue {
        /// The flag.
        flag: String,
        /// What was given.
        value: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), port: DEFAULT_PORT, token: None }
    }
}

impl Config {
    /// Reads `--addr`, `--port` and `--token`, over `WRENN_GUEST_ADDR`, `WRENN_GUEST_PORT` and `WRENN_GUEST_TOKEN`.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for (name, flag) in
            [("WRENN_GUEST_ADDR", "--addr"), ("WRENN_GUEST_PORT", "--port"), ("WRENN_GUEST_TOKEN", "--token")]
        {
            if let Ok(value) = std::env::var(name) {
                config.set(flag, value)?;
            }
        }
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let (flag, value) = match argument.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (argument, arguments.next()),
            };
            if !matches!(flag.as_str(), "--addr" | "--port" | "--token") {
                return Err(ConfigError::Unknown(flag));
            }
            let value = value.ok_or_else(|| ConfigError::NoValue(flag.clone()))?;
            config.set(&flag, value)?;
        }
        Ok(config)
    }

    /// Whether this process is the machine's init, and may change the machine: it is process 1 and was not asked to
    /// leave things as they are.
    pub(crate) fn is_init() -> bool {
        std::process::id() == 1 && std::env::var_os(SERVE_ONLY).is_none_or(|v| v != "1")
    }

    fn set(&mut self, flag: &str, value: String) -> Result<(), ConfigError> {
        let bad = |value: String| ConfigError::BadValue { flag: flag.to_owned(), value };
        match flag {
            "--addr" => self.address = value.parse().map_err(|_| bad(value))?,
            "--port" => self.port = value.parse().map_err(|_| bad(value))?,
            _ if value.is_empty() => self.token = None,
            _ => self.token = Some(value),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Config, ConfigError> {
        Config::parse(line.iter().map(|s| (*s).to_owned()))
    }

    #[test]
    fn flags_take_their_value_after_a_blank_or_an_equals_sign() {
        let config = parse(&["--port", "0", "--addr=127.0.0.1", "--token=t"]).unwrap();
        assert_eq!(config.port, 0);
        assert_eq!(config.address, IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(config.token.as_deref(), Some("t"));
    }

    #[test]
    fn a_wrong_line_says_what_is_wrong_with_it() {
        assert_eq!(parse(&["--prot", "1"]), Err(ConfigError::Unknown("--prot".into())));
        assert_eq!(parse(&["--port"]), Err(ConfigError::NoValue("--port".into())));
        assert!(matches!(parse(&["--port", "x"]), Err(ConfigError::BadValue { .. })));
    }
}
