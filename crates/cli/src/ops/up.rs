//! `wrenn up`: the whole platform on one machine, as one process tree.
//!
//! ```text
//! wrenn up ──┬── postgres          (unless DATABASE_URL is given)
//!            ├── wrenn control-plane
//!            └── wrenn agent ┄┄┄ VMs (their own sessions: they outlive the agent)
//! ```
//!
//! Everything is spawned from the main thread, because the kernel ends a child with the thread that started it.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use time::OffsetDateTime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};
use wrenn_control::admin::{self, HostState};
use wrenn_control::store::HostStatus;
use wrenn_control::{Store, hosts};

use super::children::{self, Role};
use super::doctor;
use super::logging;
use super::people;
use super::postgres::{Cluster, Server};
use super::process::{DirLock, ProcessId, RunFile};
use super::roles;
use super::secrets::Secrets;
use crate::config::{Settings, Source};
use crate::context::{self, local_url};
use crate::output;

/// How often children are looked after.
const TEND: Duration = Duration::from_millis(50);
/// How long the platform may take to answer after everything was started.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// How long a role may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How long create and destroy hold their answer on a machine that emulates its guests' CPUs, unless configured: a boot
/// there takes seconds, and callers that do not poll expect a capsule that runs.
const EMULATED_SETTLE: Duration = Duration::from_secs(20);
/// File in the data directory that the CLI and shells read.
const ENV_FILE: &str = "env";

/// What only the supervisor acts on.
const UP_ONLY: [&str; 1] = ["WRENN_ADMIN_PASSWORD"];
/// What the agent, whose guests are not to be trusted, has no business with.
const CONTROL_ONLY: [&str; 8] = [
    "DATABASE_URL",
    "WRENN_ADMIN_PASSWORD",
    "WRENN_GITHUB_CLIENT_SECRET",
    "WRENN_JWT_SECRET",
    "WRENN_OIDC_CLIENT_SECRET",
    "WRENN_SECRETS_KEY",
    "WRENN_SECRETS_KEYS_OLD",
    "WRENN_SMTP_URL",
];

/// Options of `wrenn up`.
#[derive(Debug, Clone, clap::Args)]
pub struct UpArgs {
    /// Return when the platform answers, and leave it running in the background
    #[arg(long)]
    pub detach: bool,
    /// Make an account with this address that administers the platform, without any mail, where there is none yet
    #[arg(long, env = "WRENN_ADMIN_EMAIL", value_name = "ADDRESS")]
    pub admin_email: Option<String>,
    /// Password of that account; where absent one is made and left in the file `admin-password` of the data directory
    #[arg(long, env = "WRENN_ADMIN_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub admin_password: Option<String>,
    /// Set by `--detach` on the process it leaves behind
    #[arg(long, hide = true)]
    pub background: bool,
}

/// Starts the platform and, unless detached, stays until it is told to stop.
///
/// # Errors
/// Where the machine lacks something essential or a part does not come up.
pub async fn run(settings: &Settings, args: &UpArgs) -> anyhow::Result<u8> {
    let dir = settings.dir.value.clone();
    if let Some(running) = RunFile::read(&dir).filter(|file| file.ready) {
        if let Some(email) = &args.admin_email {
            let store = people::store(settings).await?;
            people::ensure_admin(&store, &dir, email, args.admin_password.as_deref()).await?;
        }
        println!("The platform is already running (process {}).", running.process.pid);
        print_banner(&dir, &running.url, None);
        return Ok(0);
    }
    let report = doctor::examine(settings);
    if report.is_fatal() {
        super::print_report(&report, settings, false);
        bail!("this machine lacks something essential; see the report above");
    }
    prepare_directory(&dir)?;
    let progress = |line: &str| eprintln!("==> {line}");
    wrenn_agent::images::ensure_with_progress(&roles::agent_config(settings, None)?, &progress)
        .context("cannot make the base images")?;
    if args.detach { detach(&dir).await } else { supervise(settings, &dir, args).await }
}

fn prepare_directory(dir: &Path) -> anyhow::Result<()> {
    for sub in ["run", "logs", "capsules"] {
        std::fs::create_dir_all(dir.join(sub))?;
    }
    // Others may pass through, to the socket and the disks that are theirs; they may not look around.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))?;
    Ok(())
}

/// Leaves a supervisor behind and waits until it says that everything is up.
async fn detach(dir: &Path) -> anyhow::Result<u8> {
    let (log_path, log) = logging::open(dir)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1).filter(|arg| arg != "--detach")).arg("--background");
    command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: the closure makes two system calls and neither allocates nor takes locks.
    unsafe {
        command.pre_exec(|| {
            children::ignore_hangups()?;
            Ok(nix::unistd::setsid().map(drop)?)
        });
    }
    let mut child = command.spawn().context("cannot leave a supervisor behind")?;
    let limit = Instant::now() + READY_LIMIT;
    while Instant::now() < limit {
        if let Some(running) = RunFile::read(dir).filter(|file| file.ready) {
            print_banner(dir, &running.url, Some("wrenn down"));
            return Ok(0);
        }
        if let Some(status) = child.try_wait()? {
            bail!(
                "the platform did not start ({status}); the end of {}:\n{}",
                log_path.display(),
                tail(&log_path)
            );
        }
        tokio::time::sleep(TEND).await;
    }
    bail!("the platform is not up after {} s; see {}", READY_LIMIT.as_secs(), log_path.display())
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Everything that runs, in the order in which it was started.
struct Platform {
    store: Store,
    cluster: Option<(Cluster, Server)>,
    control: Role,
    agent: Role,
    /// Tells when the log file was moved away.
    hangup: Signal,
    /// When the database had last heard of this host before it was started: a platform that was just stopped still counts
    /// as online.
    heard_before: Option<OffsetDateTime>,
}

async fn supervise(settings: &Settings, dir: &Path, args: &UpArgs) -> anyhow::Result<u8> {
    let Some(_lock) = DirLock::take(dir)? else {
        bail!("another `wrenn up` is starting in {}; wait for it or stop it", dir.display());
    };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let url = local_url(settings.listen.value);
    let mut run_file = RunFile { process: ProcessId::own()?, url: url.clone(), ready: false };
    run_file.write(dir)?;
    let mut platform = start(settings, dir, &url, args).await?;
    let outcome = tokio::select! {
        outcome = run_platform(&mut platform, &mut run_file, dir, &url, args.background) => outcome,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    RunFile::remove(dir);
    stop(platform, dir);
    outcome.map(|()| 0)
}

async fn run_platform(
    platform: &mut Platform,
    run_file: &mut RunFile,
    dir: &Path,
    url: &str,
    background: bool,
) -> anyhow::Result<()> {
    let limit = Instant::now() + READY_LIMIT;
    while !platform.is_ready(dir, url).await {
        platform.tend()?;
        if Instant::now() > limit {
            bail!(
                "the platform did not answer within {} s; the messages above say why",
                READY_LIMIT.as_secs()
            );
        }
        platform.rest().await;
    }
    run_file.ready = true;
    run_file.write(dir)?;
    if !background {
        print_banner(dir, url, Some("Ctrl-C"));
    }
    loop {
        platform.tend()?;
        platform.rest().await;
    }
}

async fn start(settings: &Settings, dir: &Path, url: &str, args: &UpArgs) -> anyhow::Result<Platform> {
    let cluster = match &settings.database_url.value {
        Some(_) => None,
        None => {
            let cluster = Cluster::open(dir)?;
            let server = cluster.start()?;
            Some((cluster, server))
        }
    };
    let database_url = match (&settings.database_url.value, &cluster) {
        (Some(given), _) => given.expose().to_owned(),
        (None, Some((cluster, _))) => cluster.url()?,
        (None, None) => bail!("no database"),
    };
    let secrets = Secrets::open_or_create(dir)?;
    let store = Store::connect(&database_url).await.context("cannot reach the database")?;
    let token = bootstrap(&store, dir, url).await?;
    if let Some(email) = &args.admin_email {
        people::ensure_admin(&store, dir, email, args.admin_password.as_deref()).await?;
    }
    let heard_before = local_host(&store, dir).await?.and_then(|host| host.last_heard);
    let mut env = settings.to_env();
    env.push(("DATABASE_URL".to_owned(), database_url));
    let mut control_env = env.clone();
    if settings.settle_ms.source == Source::Default && is_emulated(settings) {
        control_env.retain(|(name, _)| name != "WRENN_SETTLE_MS");
        control_env.push(("WRENN_SETTLE_MS".to_owned(), EMULATED_SETTLE.as_millis().to_string()));
    }
    add_secrets(&mut control_env, secrets);
    let mut agent_env = env;
    agent_env.retain(|(name, _)| !CONTROL_ONLY.contains(&name.as_str()));
    agent_env.push(("WRENN_CONTROL_URL".to_owned(), url.to_owned()));
    if let Some(token) = token {
        agent_env.push(("WRENN_REGISTRATION_TOKEN".to_owned(), token));
    }
    let hangup = signal(SignalKind::hangup())?;
    let control = Role::start("control-plane", control_env, &UP_ONLY)?;
    let agent = Role::start("agent", agent_env, &CONTROL_ONLY)?;
    Ok(Platform { store, cluster, control, agent, hangup, heard_before })
}

/// Gives the control plane the secrets of the data directory, except where it is given others.
fn add_secrets(env: &mut Vec<(String, String)>, secrets: Secrets) {
    let given = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    if given("WRENN_JWT_SECRET").is_none() {
        env.push(("WRENN_JWT_SECRET".to_owned(), secrets.jwt_secret));
    }
    if given("WRENN_SECRETS_KEY").is_none() {
        let old = secrets.old_secrets_keys.into_iter().chain(given("WRENN_SECRETS_KEYS_OLD"));
        env.push(("WRENN_SECRETS_KEYS_OLD".to_owned(), old.collect::<Vec<_>>().join(",")));
        env.push(("WRENN_SECRETS_KEY".to_owned(), secrets.secrets_key));
    }
}

fn is_emulated(settings: &Settings) -> bool {
    let choice = roles::accelerator_choice(settings.accel.value);
    wrenn_vmm::Accelerator::detect(choice).is_ok_and(|found| found == wrenn_vmm::Accelerator::Tcg)
}

/// Brings the schema up to date and makes what a first start needs: a team with a key, and a place for the local
/// host. Returns the host's registration token where it has to register.
async fn bootstrap(store: &Store, dir: &Path, url: &str) -> anyhow::Result<Option<String>> {
    store.migrate().await.context("cannot bring the database's schema up to date")?;
    ensure_key(store, dir, url).await?;
    ensure_host(store, dir).await
}

/// Makes sure that the `env` file holds a key that works.
async fn ensure_key(store: &Store, dir: &Path, url: &str) -> anyhow::Result<()> {
    let stored = context::read_env_file(&dir.join(ENV_FILE)).unwrap_or_default();
    let mut key = stored.get("WRENN_API_KEY").cloned();
    if let Some(new) = admin::ensure_default_team_and_key(store).await? {
        key = Some(new.key);
    } else if !admin::key_works(store, key.as_deref().unwrap_or_default()).await? {
        key = Some(admin::create_key(store, "local").await?.key);
    }
    let text = format!("WRENN_API_KEY={}\nWRENN_BASE_URL={url}\n", key.unwrap_or_default());
    wrenn_agent::record::write_atomically(&dir.join(ENV_FILE), text.as_bytes(), 0o600)?;
    Ok(())
}

/// Keeps the host's credentials where the database knows the host, else replaces them by a registration token.
async fn ensure_host(store: &Store, dir: &Path) -> anyhow::Result<Option<String>> {
    let credentials_dir = dir.join("agent");
    if let Some(stored) = wrenn_agent::Credentials::load(&credentials_dir)? {
        if admin::host_state(store, stored.host_id).await?.is_some() {
            return Ok(None);
        }
        std::fs::remove_dir_all(&credentials_dir)?;
    }
    Ok(Some(hosts::ensure_local_host(store).await?.token))
}

/// What the database knows of this machine as a host; `None` where it knows none of that name.
async fn local_host(store: &Store, dir: &Path) -> anyhow::Result<Option<HostState>> {
    let Some(credentials) = wrenn_agent::Credentials::load(&dir.join("agent"))? else { return Ok(None) };
    Ok(admin::host_state(store, credentials.host_id).await?)
}

impl Platform {
    /// Whether the API answers and the local host takes capsules.
    async fn is_ready(&self, dir: &Path, url: &str) -> bool {
        let Ok(Some(host)) = local_host(&self.store, dir).await else { return false };
        let Ok(client) = wrenn_client::Client::new(url, "") else { return false };
        let heard_anew = host.last_heard.is_some() && host.last_heard != self.heard_before;
        host.status == HostStatus::Online && heard_anew && client.health().await.is_ok()
    }

    /// Restarts what has died.
    fn tend(&mut self) -> anyhow::Result<()> {
        if let Some((cluster, server)) = &mut self.cluster
            && server.ended()
        {
            error!("PostgreSQL ended; restarting it");
            *server = cluster.start()?;
        }
        self.control.tend()?;
        self.agent.tend()
    }

    /// The pause between two looks, or shorter where a SIGHUP has to be passed on to the roles.
    async fn rest(&mut self) {
        tokio::select! {
            () = tokio::time::sleep(TEND) => {}
            _ = self.hangup.recv() => {
                self.control.hang_up();
                self.agent.hang_up();
            }
        }
    }
}

/// Stops everything in the reverse order, and says what goes on.
fn stop(platform: Platform, dir: &Path) {
    info!("stopping");
    platform.agent.stop(STOP_LIMIT);
    platform.control.stop(STOP_LIMIT);
    if let Some((_, server)) = platform.cluster {
        server.stop();
    }
    let left = super::down::running_capsules(dir);
    if left > 0 {
        output::say(&format!(
            "{left} capsule(s) keep running; `wrenn up` takes them over, `wrenn down --destroy-capsules` removes them."
        ));
    }
}

fn print_banner(dir: &Path, url: &str, stop_with: Option<&str>) {
    let env_path: PathBuf = dir.join(ENV_FILE);
    let env = context::read_env_file(&env_path).unwrap_or_default();
    let key = env.get("WRENN_API_KEY").map_or("", String::as_str);
    let mut out = std::io::stdout().lock();
    let password = dir.join(people::PASSWORD_FILE);
    let password = if password.exists() {
        format!("\n  Administrator  password in {}", password.display())
    } else {
        String::new()
    };
    let stop = stop_with.map(|how| format!("\n  Stop with      {how}")).unwrap_or_default();
    // Nobody may be reading; the platform runs all the same.
    let _closed = writeln!(
        out,
        "\nWrenn is up.\n\n  API            {url}\n  API docs       {url}/docs\n  API key        {key}\n  Environment    {env}{password}{stop}\n\nTry it:\n\n  set -a; . {env}; set +a\n  id=$({wrenn} capsule create -q) && {wrenn} capsule exec \"$id\" -- uname -a\n",
        env = env_path.display(),
        wrenn = program_name(),
    );
}

/// How the reader can call this program: by name where it is on the path, else by its file.
fn program_name() -> String {
    let own = std::env::current_exe().unwrap_or_else(|_| "wrenn".into());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).any(|dir| dir.join("wrenn") == own);
    if on_path { "wrenn".to_owned() } else { own.display().to_string() }
}
