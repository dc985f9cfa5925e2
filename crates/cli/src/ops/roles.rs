//! `wrenn control-plane` and `wrenn agent`: each role as a process of its own.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use wrenn_agent::AgentConfig;
use wrenn_control::ControlConfig;
use wrenn_core::shape::ShapeLimits;
use wrenn_vmm::AcceleratorChoice;

use super::secrets::Secrets;
use crate::config::{Accel, Settings};
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
        Some(given) => given.clone(),
        None => Secrets::open_or_create(&dir)?.jwt_secret,
    };
    let mut config = ControlConfig::new(database_url, settings.listen.value, jwt_secret, dir.join("pki"));
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
