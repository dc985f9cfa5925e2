//! The private PostgreSQL cluster that `wrenn up` runs when no `DATABASE_URL` is given.
//!
//! `postgres/data` is the cluster, `postgres/socket` holds its unix socket; there is no TCP port and no password:
//! the operating system vouches for root (peer authentication). PostgreSQL refuses to run as root, so it runs as the
//! user `postgres` that Debian's package makes. That user may not be able to enter the directories above
//! `WRENN_DIR`; the server therefore runs in a mount namespace of its own in which `postgres/` appears at a path that
//! everybody can reach.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, setgid, setgroups, setuid};

/// Where the server sees `postgres/`, whatever `WRENN_DIR` is.
const INSIDE: &str = "/run/wrenn/postgres";
/// Where Debian keeps the binaries, one directory for each major version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Longest path of a unix socket's directory: 107 bytes less the socket's own name.
const SOCKET_DIR_LIMIT: usize = 107 - "/.s.PGSQL.5432".len();
/// How long a start, with its crash recovery, may take.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a fast stop may take before it becomes an immediate one.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The cluster, stopped or running.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    bin: PathBuf,
    owner: User,
    log: PathBuf,
}

/// A running server; dropping it stops it at once (the cluster survives that, as it would a crash).
#[derive(Debug)]
pub struct Server {
    child: Child,
}

/// The directory of the newest installed PostgreSQL's binaries.
pub fn find_binaries() -> Option<PathBuf> {
    let versions = fs::read_dir(VERSIONS).ok()?;
    let newest = versions
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| Path::new(VERSIONS).join(version.to_string()).join("bin/postgres").exists())
        .max()?;
    Some(Path::new(VERSIONS).join(newest.to_string()).join("bin"))
}

impl Cluster {
    /// The cluster under `dir` (`WRENN_DIR`), made where it is not there yet.
    ///
    /// # Errors
    /// Where PostgreSQL is missing, or the cluster is of another major version.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let bin =
            find_binaries().context("PostgreSQL is not installed; run: apt-get install postgresql-15")?;
        let owner = User::from_name("postgres")?
            .context("there is no user `postgres`; run: apt-get install --reinstall postgresql-common")?;
        let cluster =
            Self { dir: dir.join("postgres"), bin, owner, log: dir.join("logs").join("postgres.log") };
        cluster.make_directories()?;
        if cluster.data().join("PG_VERSION").exists() {
            cluster.check_version()?;
        } else {
            cluster.init()?;
        }
        Ok(cluster)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn make_directories(&self) -> anyhow::Result<()> {
        for dir in [self.dir.clone(), self.dir.join("socket")] {
            fs::create_dir_all(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
            std::os::unix::fs::chown(&dir, Some(self.owner.uid.as_raw()), Some(self.owner.gid.as_raw()))?;
        }
        fs::create_dir_all(INSIDE).with_context(|| format!("cannot make {INSIDE}"))?;
        if let Some(logs) = self.log.parent() {
            fs::create_dir_all(logs)?;
        }
        Ok(())
    }

    fn check_version(&self) -> anyhow::Result<()> {
        let found = fs::read_to_string(self.data().join("PG_VERSION"))?;
        let installed = self.bin.parent().and_then(Path::file_name).unwrap_or_default();
        if installed.to_str() != Some(found.trim()) {
            bail!(
                "{} was made by PostgreSQL {}, and {} is installed; install postgresql-{0}, or upgrade the cluster with pg_upgrade",
                self.data().display(),
                found.trim(),
                installed.display()
            );
        }
        Ok(())
    }

    /// Makes the cluster beside its final place and renames it, so that an interrupted start leaves none.
    fn init(&self) -> anyhow::Result<()> {
        let beside = self.dir.join("data.new");
        if beside.exists() {
            fs::remove_dir_all(&beside)?;
        }
        let mut command = self.command("initdb");
        command.args(["--pgdata", &format!("{INSIDE}/data.new"), "--username=postgres", "--encoding=UTF8"]);
        command.args(["--locale=C.UTF-8", "--auth=peer", "--no-instructions"]);
        let output = command.output().context("cannot run initdb")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        fs::write(beside.join("pg_hba.conf"), "local all all peer map=wrenn\n")?;
        fs::write(beside.join("pg_ident.conf"), "wrenn root postgres\nwrenn postgres postgres\n")?;
        fs::rename(&beside, self.data())?;
        Ok(())
    }

    /// A command of PostgreSQL's, run as its user in the mount namespace described above.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        let confinement = Confinement::new(&self.dir, self.owner.uid, self.owner.gid);
        command.current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
        // SAFETY: the closure only makes system calls on values prepared before the fork; it neither allocates nor
        // takes locks.
        unsafe { command.pre_exec(move || confinement.enter()) };
        command
    }

    /// Starts the server and waits until it takes connections. Must be called from a thread that lives as long as the
    /// server should: the kernel ends the server with it.
    ///
    /// # Errors
    /// Where it does not come up; the message ends with what it logged.
    pub fn start(&self) -> anyhow::Result<Server> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = self.command("postgres");
        command.args(["-D", &format!("{INSIDE}/data"), "-c", "listen_addresses="]);
        command.args(["-c", &format!("unix_socket_directories={INSIDE}/socket")]);
        command.args([
            "-c",
            "max_connections=200",
            "-c",
            "log_destination=stderr",
            "-c",
            "logging_collector=off",
        ]);
        // Its own group, so that a Ctrl-C meant for the supervisor does not stop it out of turn.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut server = Server { child: command.spawn().context("cannot start postgres")? };
        let limit = Instant::now() + START_LIMIT;
        while !self.answers()? {
            if let Some(status) = server.child.try_wait()? {
                bail!("PostgreSQL ended at once ({status}): {}", self.last_words());
            }
            if Instant::now() > limit {
                bail!("PostgreSQL did not come up in {} s: {}", START_LIMIT.as_secs(), self.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.create_database()?;
        Ok(server)
    }

    fn answers(&self) -> anyhow::Result<bool> {
        let mut command = Command::new(self.bin.join("pg_isready"));
        command.arg("--quiet").arg("--host").arg(self.socket_dir()?);
        Ok(command.status().context("cannot run pg_isready")?.success())
    }

    fn create_database(&self) -> anyhow::Result<()> {
        let mut command = Command::new(self.bin.join("createdb"));
        command.arg("--host").arg(self.socket_dir()?).args(["--username=postgres", "wrenn"]);
        let output = command.output().context("cannot run createdb")?;
        let words = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || words.contains("already exists") {
            return Ok(());
        }
        bail!("cannot create the database: {}", words.trim())
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("; ")
    }

    /// The socket's directory by a path short enough for a socket address.
    fn socket_dir(&self) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join("socket");
        if dir.as_os_str().len() <= SOCKET_DIR_LIMIT {
            return Ok(dir);
        }
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        dir.hash(&mut hasher);
        let short = Path::new(INSIDE).with_file_name(format!("pg-{:016x}", hasher.finish()));
        if fs::read_link(&short).ok().as_ref() != Some(&dir) {
            match fs::remove_file(&short) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => symlink(&dir, &short)?,
            }
        }
        Ok(short)
    }

    /// The URL by which the control plane reaches the database.
    ///
    /// # Errors
    /// Where the socket has no usable path.
    pub fn url(&self) -> anyhow::Result<String> {
        let dir = self.socket_dir()?;
        Ok(format!("postgres://postgres@localhost/wrenn?host={}", dir.display()))
    }
}

impl Server {
    /// Whether it ended by itself.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Stops it: sessions are ended and everything is written out.
    pub fn stop(mut self) {
        self.signal(Signal::SIGINT);
        let limit = Instant::now() + STOP_LIMIT;
        while Instant::now() < limit {
            if self.ended() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may have ended meanwhile.
            let _gone = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.ended() {
            self.signal(Signal::SIGQUIT);
            let _status = self.child.wait();
        }
    }
}

/// What a PostgreSQL process is put into between fork and exec.
struct Confinement {
    from: CString,
    uid: Uid,
    gid: Gid,
}

impl Confinement {
    fn new(dir: &Path, uid: Uid, gid: Gid) -> Self {
        Self { from: CString::new(dir.as_os_str().as_bytes()).unwrap_or_default(), uid, gid }
    }

    fn enter(&self) -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some(self.from.as_c_str()), INSIDE, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        setgroups(&[self.gid])?;
        setgid(self.gid)?;
        setuid(self.uid)?;
        // After the change of user, which clears it: no server outlives its supervisor.
        prctl::set_pdeathsig(Signal::SIGINT)?;
        Ok(())
    }
}
