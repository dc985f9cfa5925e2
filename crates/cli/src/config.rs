//! What the deployment is told, and by whom.
//!
//! Four layers, the first that speaks wins: a flag, an environment variable, `wrenn.toml`, the default. Every setting
//! keeps its [`Source`], so that people can be shown why a value is in force. The table at the end of this module
//! is the only place that names a setting: the flags, the keys of the file, the variables and the listing all come
//! from it.
//!
//! The file is the first that exists of `--config`, `$WRENN_CONFIG`, `./wrenn.toml`, `/etc/wrenn/wrenn.toml`; one
//! that is named must exist. It is flat (`key = value`), and a key that no setting has is an error, because a
//! misspelt limit that is silently ignored is no limit. Relative paths in it are relative to it.

mod value;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use value::Value;
pub use value::{Accel, BaseUrl, DatabaseUrl, Driver, LogFormat, MemoryRestore, Networks, Secret};

use crate::output;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This flag of the command line.
    Flag(&'static str),
    /// This environment variable.
    Environment(&'static str),
    /// This `wrenn.toml`.
    File(PathBuf),
    /// Nobody set it.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag --{}", name.replace('_', "-")),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value in force and where it came from.
#[derive(Debug, Clone)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Who set it.
    pub source: Source,
}

/// One line of the listing of settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Key in `wrenn.toml`; the flag is the same with dashes.
    pub name: &'static str,
    /// The environment variable.
    pub env: &'static str,
    /// The value as text, passwords masked.
    pub value: String,
    /// Who set it.
    pub source: String,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was named, or exists, cannot be read.
    #[error("cannot read the configuration {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{} is not TOML", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: toml::de::Error,
    },
    /// A key that no setting has.
    #[error("{} has the key `{key}`, which no setting has; there are: {known}", .path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The keys that exist.
        known: String,
    },
    /// A value that the setting cannot have.
    #[error("setting {name} ({origin}) must be {expected}")]
    Value {
        /// The setting.
        name: &'static str,
        /// Who set it.
        origin: Source,
        /// What it may be.
        expected: &'static str,
    },
}

/// A parsed `wrenn.toml`.
#[derive(Debug)]
struct File {
    path: PathBuf,
    table: toml::Table,
}

type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The layers below the flags.
struct Layers<'a> {
    environment: Environment<'a>,
    file: Option<File>,
}

impl Layers<'_> {
    fn pick<T: Value>(
        &self,
        name: &'static str,
        variable: &'static str,
        flag: Option<&str>,
        default: T,
    ) -> Result<Setting<T>, ConfigError> {
        let found = flag
            .map(|text| (text.to_owned(), Source::Flag(name), None))
            .or_else(|| {
                let text = (self.environment)(variable).filter(|text| !text.is_empty())?;
                Some((text, Source::Environment(variable), None))
            })
            .or_else(|| {
                let file = self.file.as_ref()?;
                let text = scalar(file.table.get(name)?);
                Some((text, Source::File(file.path.clone()), file.path.parent()))
            });
        let Some((text, origin, base)) = found else {
            return Ok(Setting { value: default, source: Source::Default });
        };
        match T::parse(&text, base) {
            Some(value) => Ok(Setting { value, source: origin }),
            None => Err(ConfigError::Value { name, origin, expected: T::EXPECTED }),
        }
    }
}

/// A TOML scalar as the text that a flag would carry; anything else as TOML, which no setting parses.
fn scalar(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn find_file(named: Option<&Path>, environment: Environment<'_>) -> Result<Option<File>, ConfigError> {
    let from_env = || environment("WRENN_CONFIG").filter(|text| !text.is_empty()).map(PathBuf::from);
    if let Some(path) = named.map(Path::to_owned).or_else(from_env) {
        return read_file(&path).map(Some);
    }
    for path in ["wrenn.toml", "/etc/wrenn/wrenn.toml"] {
        match read_file(Path::new(path)) {
            Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => return other.map(Some),
        }
    }
    Ok(None)
}

fn read_file(path: &Path) -> Result<File, ConfigError> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(ConfigError::Read { path, source }),
    };
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(source) => return Err(ConfigError::Syntax { path, source }),
    };
    if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(ConfigError::UnknownKey { path, key: key.clone(), known: KEYS.join(", ") });
    }
    Ok(File { path, table })
}

/// The places that are asked before the defaults.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// `--config`.
    pub config: Option<&'a Path>,
    /// `--dir`.
    pub dir: Option<&'a str>,
    /// The flags of the other settings.
    pub flags: &'a SettingFlags,
}

impl Settings {
    /// The settings in force for this process.
    ///
    /// # Errors
    /// [`ConfigError`] for an unreadable or misspelt file and for values that a setting cannot have.
    pub fn load(given: Given<'_>) -> Result<Self, ConfigError> {
        Self::load_from(given, &|name| std::env::var(name).ok())
    }
}

/// Shows the settings in force: a table, or JSON.
///
/// # Errors
/// Where standard output cannot be written.
pub fn show(settings: &Settings, json: bool, colour: bool) -> anyhow::Result<u8> {
    let entries = settings.entries();
    if json {
        output::json(&entries)?;
    } else {
        let rows = entries.into_iter().map(|e| vec![e.name.to_owned(), e.value, e.source]).collect();
        output::line(&output::table(&["SETTING", "VALUE", "FROM"], rows, colour))?;
    }
    Ok(0)
}

macro_rules! settings {
    ($(#[doc = $doc:literal] $name:ident: $type:ty = $default:expr, $env:literal, $hint:literal;)*) => {
        /// Every setting of a deployment.
        #[derive(Debug, Clone)]
        pub struct Settings {
            /// Data directory of the deployment.
            pub dir: Setting<PathBuf>,
            $(#[doc = $doc] pub $name: Setting<$type>,)*
        }

        /// The settings as flags, for the commands that run a part of the platform.
        #[derive(Debug, Clone, Default, clap::Args)]
        #[command(next_help_heading = "Settings")]
        pub struct SettingFlags {
            $(#[doc = $doc]
            #[arg(long, value_name = $hint, help = concat!($doc, " [env: ", $env, "]").trim_start())]
            pub $name: Option<String>,)*
        }

        const KEYS: &[&str] = &["dir", $(stringify!($name)),*];

        #[cfg(test)]
        const NO_FLAGS: SettingFlags = SettingFlags { $($name: None,)* };

        impl Settings {
            fn load_from(given: Given<'_>, environment: Environment<'_>) -> Result<Self, ConfigError> {
                let layers = Layers { environment, file: find_file(given.config, environment)? };
                Ok(Self {
                    dir: layers.pick("dir", "WRENN_DIR", given.dir, PathBuf::from("/var/lib/wrenn"))?,
                    $($name: layers.pick(
                        stringify!($name), $env, given.flags.$name.as_deref(), $default,
                    )?,)*
                })
            }

            /// All settings as people are shown them, in the order of the documentation.
            pub fn entries(&self) -> Vec<Entry> {
                fn entry<T: Value>(name: &'static str, env: &'static str, setting: &Setting<T>) -> Entry {
                    Entry { name, env, value: setting.value.show(), source: setting.source.to_string() }
                }
                vec![
                    entry("dir", "WRENN_DIR", &self.dir),
                    $(entry(stringify!($name), $env, &self.$name),)*
                ]
            }

            /// The settings as environment variables for a child process of this program, passwords included. What is
            /// not set is left out.
            pub fn to_env(&self) -> Vec<(String, String)> {
                let variables = [
                    ("WRENN_DIR", self.dir.value.text()),
                    $(($env, self.$name.value.text()),)*
                ];
                variables.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?))).collect()
            }
        }
    };
}

settings! {
    /// PostgreSQL to use (a private cluster in the data directory where absent).
    database_url: Option<DatabaseUrl> = None, "DATABASE_URL", "URL";
    /// Address on which the control plane serves its API.
    listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080)), "WRENN_LISTEN", "ADDRESS";
    /// Address on which the host agent serves the control plane, over mutual TLS.
    agent_listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8443)), "WRENN_AGENT_LISTEN", "ADDRESS";
    /// Milliseconds for which create, pause, resume and destroy hold their answer until the capsule has settled.
    settle_ms: u64 = 5000, "WRENN_SETTLE_MS", "MS";
    /// How VMs run: kvm, tcg (emulated), or auto, which takes kvm where it works.
    accel: Accel = Accel::Auto, "WRENN_ACCEL", "auto|kvm|tcg";
    /// What runs new capsules: firecracker, qemu, or auto, which takes firecracker where the host can.
    driver: Driver = Driver::Auto, "WRENN_DRIVER", "auto|firecracker|qemu";
    /// The Firecracker binary (the one of that name in PATH where absent).
    firecracker: Option<PathBuf> = None, "WRENN_FIRECRACKER", "FILE";
    /// How Firecracker gets the memory of a snapshot: paged, mapped from one file, or auto: mapped where it is one file.
    memory_restore: MemoryRestore = MemoryRestore::Auto, "WRENN_MEMORY_RESTORE", "auto|paged|mapped";
    /// Mbit/s that each capsule may send, with Firecracker (any number where absent).
    egress_mbit: Option<u32> = None, "WRENN_EGRESS_MBIT", "MBIT";
    /// Whether capsules may reach private address ranges.
    allow_private_networks: bool = false, "WRENN_ALLOW_PRIVATE_NETWORKS", "BOOL";
    /// Seconds that a guest may take from power-on to its first answer.
    boot_timeout_sec: u64 = 120, "WRENN_BOOT_TIMEOUT_SEC", "SECONDS";
    /// MiB of disk that templates booted ahead of time may take (0: every capsule boots).
    warm_mb: u64 = 8192, "WRENN_WARM_MB", "MIB";
    /// Machines kept ready for the next creates, each with the memory of a small capsule.
    pool_size: u32 = 1, "WRENN_POOL_SIZE", "COUNT";
    /// First of the 32768 user ids under which VMs run.
    vm_uid_base: u32 = 1_879_048_192, "WRENN_VM_UID_BASE", "UID";
    /// What is logged: a level (error, warn, info, debug, trace) or directives such as info,wrenn_net=debug.
    log: String = "info".to_owned(), "WRENN_LOG", "FILTER";
    /// How log lines are written on standard error: text, json, or auto, which is text on a terminal and JSON elsewhere.
    log_format: LogFormat = LogFormat::Auto, "WRENN_LOG_FORMAT", "auto|text|json";
    /// Most vCPUs of one capsule.
    max_vcpus: u32 = wrenn_core::limits::MAX_VCPUS, "WRENN_MAX_VCPUS", "COUNT";
    /// Most memory of one capsule, in MiB.
    max_memory_mb: u32 = wrenn_core::limits::MAX_MEMORY_MB, "WRENN_MAX_MEMORY_MB", "MIB";
    /// Largest disk of one capsule, in MiB.
    max_disk_mb: u32 = wrenn_core::limits::MAX_DISK_MB, "WRENN_MAX_DISK_MB", "MIB";
    /// URL under which people and sign-in providers reach the API (that of the listener where absent).
    public_url: Option<BaseUrl> = None, "WRENN_PUBLIC_URL", "URL";
    /// URL of the dashboard, for links in mails and the way back from sign-in providers (the public URL where absent).
    dashboard_url: Option<BaseUrl> = None, "WRENN_DASHBOARD_URL", "URL";
    /// Proxies before the API whose X-Forwarded-For is believed, as networks separated by commas.
    trusted_proxies: Networks = Networks::default(), "WRENN_TRUSTED_PROXIES", "NETWORKS";
    /// Whether people may sign up by themselves; otherwise accounts are made on the machine.
    signup: bool = true, "WRENN_SIGNUP", "BOOL";
    /// Sign-in requests that one address may make in a minute.
    signins_per_minute: u32 = 60, "WRENN_SIGNINS_PER_MINUTE", "COUNT";
    /// Wrong passwords that one account takes at a time; one more every 30 seconds.
    password_tries: u32 = 10, "WRENN_PASSWORD_TRIES", "COUNT";
    /// Mail server: smtp://user:password@host (STARTTLS) or smtps:// (TLS); no mail is sent where absent.
    smtp_url: Option<Secret> = None, "WRENN_SMTP_URL", "URL";
    /// Sender of mails, such as Wrenn <wrenn@example.com>.
    smtp_from: Option<String> = None, "WRENN_SMTP_FROM", "ADDRESS";
    /// Certificate authority of the mail server, in PEM, beside those of the system.
    smtp_ca_file: Option<PathBuf> = None, "WRENN_SMTP_CA_FILE", "FILE";
    /// Client id of the GitHub OAuth app with which people sign in.
    github_client_id: Option<String> = None, "WRENN_GITHUB_CLIENT_ID", "ID";
    /// Client secret of the GitHub OAuth app.
    github_client_secret: Option<Secret> = None, "WRENN_GITHUB_CLIENT_SECRET", "SECRET";
    /// GitHub, or a GitHub Enterprise Server.
    github_url: BaseUrl = BaseUrl::known("https://github.com"), "WRENN_GITHUB_URL", "URL";
    /// API of GitHub, or of a GitHub Enterprise Server.
    github_api_url: BaseUrl = BaseUrl::known("https://api.github.com"), "WRENN_GITHUB_API_URL", "URL";
    /// Name of the OpenID Connect provider in paths, from a-z, 0-9 and dashes.
    oidc_name: String = "oidc".to_owned(), "WRENN_OIDC_NAME", "NAME";
    /// Issuer of the OpenID Connect provider, exactly as it calls itself.
    oidc_issuer: Option<String> = None, "WRENN_OIDC_ISSUER", "URL";
    /// Client id at the OpenID Connect provider.
    oidc_client_id: Option<String> = None, "WRENN_OIDC_CLIENT_ID", "ID";
    /// Client secret at the OpenID Connect provider.
    oidc_client_secret: Option<Secret> = None, "WRENN_OIDC_CLIENT_SECRET", "SECRET";
    /// Debian mirror from which the base image is made (Debian's own where absent).
    debian_mirror: Option<String> = None, "WRENN_DEBIAN_MIRROR", "URL";
    /// Directory of base images that several deployments of a machine share (none where absent).
    image_cache: Option<PathBuf> = None, "WRENN_IMAGE_CACHE", "DIR";
}

#[cfg(test)]
mod tests;
