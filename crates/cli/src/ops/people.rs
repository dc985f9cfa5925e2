//! Accounts and secrets of the deployment on this machine, by its database: what works without anybody signed in.

use std::path::Path;

use anyhow::{Context as _, bail};
use wrenn_control::admin::{self, LocalUser};
use wrenn_control::{Error, Store};

use super::postgres::Cluster;
use super::process::RunFile;
use super::roles::secret_keys;
use super::secrets::Secrets;
use crate::config::Settings;
use crate::output::{self, Hinted};

/// File in the data directory (mode 0600) that holds the password that `wrenn up` made for the administrator.
pub const PASSWORD_FILE: &str = "admin-password";

/// The database of the deployment on this machine.
///
/// # Errors
/// Where it cannot be reached.
pub async fn store(settings: &Settings) -> anyhow::Result<Store> {
    let url = match &settings.database_url.value {
        Some(given) => given.expose().to_owned(),
        None => Cluster::open(&settings.dir.value)?.url()?,
    };
    Store::connect(&url)
        .await
        .context("cannot reach the database; is the platform running? start it with `wrenn up`")
}

/// Options of `wrenn admin create-user`.
#[derive(Debug, Clone, clap::Args)]
pub struct CreateUserArgs {
    /// Address of the account
    email: String,
    /// What the person is called (the address up to the @ where absent)
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Make it an administrator of the platform, and the owner of this machine's own team
    #[arg(long)]
    admin: bool,
}

/// Makes an active account without any mail.
///
/// # Errors
/// Where the address has an account, the password is too short, or the database refuses.
pub async fn create_user(settings: &Settings, args: CreateUserArgs, json: bool) -> anyhow::Result<u8> {
    let store = store(settings).await?;
    if admin::user_exists(&store, &args.email).await? {
        bail!("there is an account with the address {}", args.email.trim());
    }
    let password = crate::prompt::secret("Password: ").await?;
    let name = args.name.unwrap_or_else(|| local_part(&args.email));
    let user = LocalUser { email: args.email.clone(), name, password, admin: args.admin };
    let Some(id) = admin::create_user(&store, user).await? else {
        bail!("there is an account with the address {}", args.email.trim());
    };
    if json {
        output::json(&serde_json::json!({ "user_id": id, "email": args.email, "admin": args.admin }))?;
    } else {
        output::line(&id.to_string())?;
    }
    Ok(0)
}

/// Replaces the password of an account, for people whom no mail reaches.
///
/// # Errors
/// Where there is no such active account, the password is too short, or the database refuses.
pub async fn set_password(settings: &Settings, email: &str) -> anyhow::Result<u8> {
    let store = store(settings).await?;
    let password = crate::prompt::secret("New password: ").await?;
    admin::set_password(&store, email, &password).await?;
    Ok(0)
}

fn local_part(email: &str) -> String {
    email.trim().split('@').next().unwrap_or_default().to_owned()
}

/// Makes the administrator that `wrenn up` was asked for, where there is no such account. Without a password one is made
/// and left in a file, because what is printed may end in a log.
///
/// # Errors
/// Where the address or the password is none that an account can have, or something cannot be written.
pub async fn ensure_admin(
    store: &Store,
    dir: &Path,
    email: &str,
    password: Option<&str>,
) -> anyhow::Result<()> {
    if admin::user_exists(store, email).await? {
        return Ok(());
    }
    let made = match password {
        Some(_) => None,
        None => Some(hex_password()),
    };
    let password = password.or(made.as_deref()).unwrap_or_default().to_owned();
    // First the file: a password that nobody knows is worth nothing.
    if let Some(made) = &made {
        let text = format!("{made}\n");
        wrenn_agent::record::write_atomically(&dir.join(PASSWORD_FILE), text.as_bytes(), 0o600)?;
    }
    let user = LocalUser { email: email.to_owned(), name: local_part(email), password, admin: true };
    admin::create_user(store, user).await?;
    Ok(())
}

/// 24 random digits.
fn hex_password() -> String {
    rand::random::<[u8; 12]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What to do with the keys that seal secrets.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum SecretsCommand {
    /// Make a new key in the data directory; the one until now only opens. Restart the control plane, then reseal
    Rotate,
    /// Seal every stored secret with the key in force, and forget the keys of before
    Reseal,
}

/// Runs one of the commands.
///
/// # Errors
/// Where the keys are given from outside, the database cannot be reached, or a secret can be opened with no key.
pub async fn secrets(settings: &Settings, command: SecretsCommand, json: bool) -> anyhow::Result<u8> {
    let dir = std::path::absolute(&settings.dir.value)?;
    let given = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let (current, old) = (given("WRENN_SECRETS_KEY"), given("WRENN_SECRETS_KEYS_OLD"));
    match command {
        SecretsCommand::Rotate => {
            if current.is_some() {
                bail!(Hinted::new(
                    "the key is given by WRENN_SECRETS_KEY, so it is not this command's to change".to_owned(),
                    "set WRENN_SECRETS_KEY to a new key and WRENN_SECRETS_KEYS_OLD to the one until now",
                ));
            }
            Secrets::open_or_create(&dir)?.rotate(&dir)?;
            output::say(
                "a new key seals from the next start of the control plane on; then run `wrenn admin secrets reseal`",
            );
        }
        SecretsCommand::Reseal => {
            if current.is_none() && seals_with_the_old_key(&dir) {
                bail!(Hinted::new(
                    "the platform that is running has been started before the key was replaced".to_owned(),
                    "restart it (`wrenn down`, then `wrenn up`) and reseal then",
                ));
            }
            let keys = secret_keys(&dir, current.as_deref(), old.as_deref())?;
            let store = store(settings).await?;
            let count = admin::reseal(&store, &keys).await.map_err(hinted)?;
            if current.is_none() {
                Secrets::open_or_create(&dir)?.forget_old(&dir)?;
            }
            if json {
                output::json(&serde_json::json!({ "resealed": count }))?;
            } else {
                output::line(&format!("{count} secrets were sealed anew"))?;
            }
        }
    }
    Ok(0)
}

/// Whether the running platform does not know the newest key yet.
fn seals_with_the_old_key(dir: &Path) -> bool {
    let written = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let (key, started) = (written(&Secrets::path(dir)), written(&RunFile::path(dir)));
    RunFile::read(dir).is_some() && key > started
}

fn hinted(error: Error) -> anyhow::Error {
    match error {
        Error::Vault(error) => {
            Hinted::new(error.to_string(), "give the key with which it was sealed in WRENN_SECRETS_KEYS_OLD")
                .into()
        }
        error => error.into(),
    }
}
