//! `wrenn control-plane` and `wrenn agent`: each role as a process of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use wrenn_agent::AgentConfig;
use wrenn_agent::drivers::DriverChoice;
use wrenn_control::vault::{SecretKey, SecretKeys};
use wrenn_control::{AuthLimits, ControlConfig};
use wrenn_core::shape::ShapeLimits;
use wrenn_mail::SmtpConfig;
use wrenn_oauth::{GitHub, GitHubConfig, Oidc, OidcConfig, Registry};
use wrenn_vmm::AcceleratorChoice;
use wrenn_vmm::firecracker::Restore;
use wrenn_vmm::pager::PagerProgram;

use super::secrets::Secrets;
use crate::config::{Accel, Driver, MemoryRestore, Settings};
use crate::context::local_url;

/// Options of `wrenn agent`.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentArgs {
    /// Base URL of the control plane
    #[arg(long, env = "WRENN_CONTROL_URL", value_name = "URL")]
    pub control_url: Option<String>,
    /// One-use registration token; needed until the host has credentials
    #[arg(long, env = "WRENN_REGISTRATION_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub registration_token: Option<String>,
}

/// Options of `wrenn control-plane`.
#[derive(Debug, Clone, clap::Args)]
pub struct ControlArgs {
    /// Signs tokens; at least 32 characters, the same on every replica (made in the data directory where absent)
    #[arg(long, env = "WRENN_JWT_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub jwt_secret: Option<String>,
    /// Seals secrets in the database: 32 bytes in hex or base64, the same on every replica (made in the data directory
    /// where absent)
    #[arg(long, env = "WRENN_SECRETS_KEY", value_name = "KEY", hide_env_values = true)]
    pub secrets_key: Option<String>,
    /// Keys of before a rotation, which only open, separated by commas
    #[arg(long, env = "WRENN_SECRETS_KEYS_OLD", value_name = "KEYS", hide_env_values = true)]
    pub secrets_keys_old: Option<String>,
}

/// The keys that seal secrets: those given, else those in the data directory.
///
/// # Errors
/// Where a key has not the form of one, or the data directory cannot be used.
pub fn secret_keys(dir: &Path, current: Option<&str>, old: Option<&str>) -> anyhow::Result<SecretKeys> {
    let parse = |text: &str| text.parse::<SecretKey>().context("cannot use a secrets key");
    let given: Vec<&str> =
        old.unwrap_or_default().split(',').map(str::trim).filter(|key| !key.is_empty()).collect();
    if let Some(current) = current.filter(|key| !key.trim().is_empty()) {
        let old = given.into_iter().map(parse).collect::<anyhow::Result<_>>()?;
        return Ok(SecretKeys { current: parse(current)?, old });
    }
    let stored = Secrets::open_or_create(dir)?;
    let old = stored.old_secrets_keys.iter().map(String::as_str).chain(given).map(parse);
    Ok(SecretKeys { current: parse(&stored.secrets_key)?, old: old.collect::<anyhow::Result<_>>()? })
}

/// The mail server of the settings, where there is one.
fn smtp(settings: &Settings) -> anyhow::Result<Option<SmtpConfig>> {
    let Some(url) = &settings.smtp_url.value else { return Ok(None) };
    let from = settings.smtp_from.value.clone().context(
        "mails need a sender: set smtp_from (WRENN_SMTP_FROM), for example to Wrenn <wrenn@example.com>",
    )?;
    Ok(Some(SmtpConfig { url: url.expose().into(), from, ca_file: settings.smtp_ca_file.value.clone() }))
}

/// The sign-in providers of the settings.
fn providers(settings: &Settings) -> anyhow::Result<Registry> {
    let mut all = Registry::default();
    if let Some(id) = &settings.github_client_id.value {
        let secret = settings.github_client_secret.value.as_ref();
        let secret =
            secret.context("github_client_id needs github_client_secret (WRENN_GITHUB_CLIENT_SECRET)")?;
        let mut config = GitHubConfig::new(id, secret.expose());
        config.url = settings.github_url.value.as_str().to_owned();
        config.api_url = settings.github_api_url.value.as_str().to_owned();
        all.register(Arc::new(GitHub::new(config)?))?;
    }
    if let Some(issuer) = &settings.oidc_issuer.value {
        let id = settings.oidc_client_id.value.as_ref();
        let id = id.context("oidc_issuer needs oidc_client_id (WRENN_OIDC_CLIENT_ID)")?;
        let secret = settings.oidc_client_secret.value.as_ref();
        let secret = secret.context("oidc_issuer needs oidc_client_secret (WRENN_OIDC_CLIENT_SECRET)")?;
        let config = OidcConfig::new(&settings.oidc_name.value, issuer, id, secret.expose());
        all.register(Arc::new(Oidc::new(config)?))?;
    }
    Ok(all)
}

/// How often somebody may try to sign in, by the settings.
fn auth_limits(settings: &Settings) -> AuthLimits {
    let per_minute = settings.signins_per_minute.value.max(1);
    AuthLimits {
        address_burst: per_minute,
        address_every: Duration::from_secs(60) / per_minute,
        account_burst: settings.password_tries.value.max(1),
        ..AuthLimits::default()
    }
}

/// The agent's configuration from the settings in force.
///
/// # Errors
/// Where a setting makes no sense.
pub fn agent_config(settings: &Settings, args: Option<&AgentArgs>) -> anyhow::Result<AgentConfig> {
    let default_url = || local_url(settings.listen.value);
    Ok(AgentConfig {
        dir: std::path::absolute(&settings.dir.value)?,
        listen: settings.agent_listen.value,
        advertise: settings.agent_listen.value,
        control_url: args.and_then(|args| args.control_url.clone()).unwrap_or_else(default_url),
        registration_token: args.and_then(|args| args.registration_token.clone()),
        accelerator: accelerator_choice(settings.accel.value),
        driver: driver_choice(settings.driver.value),
        firecracker: settings.firecracker.value.clone(),
        restore: match settings.memory_restore.value {
            MemoryRestore::Auto => Restore::Auto,
            MemoryRestore::Paged => Restore::Paged,
            MemoryRestore::Mapped => Restore::Mapped,
        },
        pager: PagerProgram {
            // The file that runs here, also when another one has been installed over it.
            program: "/proc/self/exe".into(),
            args: vec!["pager".into()],
            env: Vec::new(),
        },
        egress_bytes_per_second: settings.egress_mbit.value.map(|mbit| u64::from(mbit) * 1_000_000 / 8),
        allow_private_networks: settings.allow_private_networks.value,
        uid_base: settings.vm_uid_base.value,
        boot_timeout: Duration::from_secs(settings.boot_timeout_sec.value),
        warm_mb: settings.warm_mb.value,
        pool_size: settings.pool_size.value,
        image_cache: settings.image_cache.value.clone(),
        debian_mirror: settings.debian_mirror.value.clone(),
    })
}

/// The setting in the words of the room that decides.
pub fn accelerator_choice(wanted: Accel) -> AcceleratorChoice {
    match wanted {
        Accel::Auto => AcceleratorChoice::Auto,
        Accel::Kvm => AcceleratorChoice::Kvm,
        Accel::Tcg => AcceleratorChoice::Tcg,
    }
}

/// The same for the driver.
pub fn driver_choice(wanted: Driver) -> DriverChoice {
    match wanted {
        Driver::Auto => DriverChoice::Auto,
        Driver::Qemu => DriverChoice::Qemu,
        Driver::Firecracker => DriverChoice::Firecracker,
    }
}

/// Runs the host agent until it is told to stop.
///
/// # Errors
/// Where it cannot run.
pub async fn agent(settings: &Settings, args: &AgentArgs) -> anyhow::Result<u8> {
    wrenn_agent::serve(agent_config(settings, Some(args))?, until_told()?).await?;
    Ok(0)
}

/// Runs the control plane until it is told to stop.
///
/// # Errors
/// Where it cannot run.
pub async fn control_plane(settings: &Settings, args: &ControlArgs) -> anyhow::Result<u8> {
    let dir = std::path::absolute(&settings.dir.value)?;
    let database_url = settings
        .database_url
        .value
        .as_ref()
        .map(|url| url.expose().to_owned())
        .context("no database: set DATABASE_URL, or let `wrenn up` run a private one")?;
    let jwt_secret = match &args.jwt_secret {
        Some(given) if !given.is_empty() => given.clone(),
        _ => Secrets::open_or_create(&dir)?.jwt_secret,
    };
    let secrets = secret_keys(&dir, args.secrets_key.as_deref(), args.secrets_keys_old.as_deref())?;
    let mut config =
        ControlConfig::new(database_url, settings.listen.value, jwt_secret, secrets, dir.join("pki"));
    let public_url = settings.public_url.value.as_ref().map(|url| url.as_str().to_owned());
    config.public_url = public_url.unwrap_or_else(|| local_url(settings.listen.value));
    let dashboard_url = settings.dashboard_url.value.as_ref().map(|url| url.as_str().to_owned());
    config.dashboard_url = dashboard_url.unwrap_or_else(|| config.public_url.clone());
    config.signup = settings.signup.value;
    config.trusted_proxies.clone_from(&settings.trusted_proxies.value.0);
    config.auth_limits = auth_limits(settings);
    config.smtp = smtp(settings)?;
    config.providers = providers(settings)?;
    config.settle = Duration::from_millis(settings.settle_ms.value);
    config.shape_limits = ShapeLimits {
        vcpus: settings.max_vcpus.value,
        memory_mb: settings.max_memory_mb.value,
        disk_mb: settings.max_disk_mb.value,
    };
    wrenn_control::serve(config, until_told()?).await?;
    Ok(0)
}

/// A token that the first SIGINT or SIGTERM cancels.
fn until_told() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let told = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        told.cancel();
    });
    Ok(token)
}
