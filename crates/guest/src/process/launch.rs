//! From a request to a running process: environment, directory, pipes or terminal, and the task that looks after it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, Uid};
use rustix::pty::OpenptFlags;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wrenn_protocol::process::{ProcessConfig, StartRequest};

use super::input::{Input, window};
use super::output::Output;
use super::spawn::Plan;
use super::table::Table;
use super::{Event, Process, end_event};
use crate::accounts::User;
use crate::error::{Error, Kind, Result};
use crate::paths;
use crate::reaper::{Exit, Reaper};
use crate::settings::Values;

/// `PATH` of every process, unless the capsule or the request sets another.
const BASE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Size of a terminal whose request gives none, columns and rows.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// A process to start and all it takes.
#[derive(Debug)]
pub(super) struct Launch {
    /// What was asked for.
    pub(super) request: StartRequest,
    /// Whose process it is.
    pub(super) user: User,
    /// The settings in force.
    pub(super) values: Arc<Values>,
    /// When it is killed.
    pub(super) deadline: Option<Instant>,
}

/// A running process, and its output from the first byte on.
pub(super) type Launched = (Arc<Process>, mpsc::Receiver<Event>);

/// Both ends of a process's input and output.
struct Channels {
    /// What the process gets as descriptors 0, 1 and 2.
    theirs: [OwnedFd; 3],
    input: Input,
    output: Output,
    terminal: bool,
}

impl Launch {
    /// Starts the process and its task. Blocks while the executable is loaded. Needs the runtime's context.
    pub(super) fn run(self, reaper: &Reaper, table: &Table) -> Result<Launched> {
        let mut request = self.request;
        let config = request.process.take().unwrap_or_default();
        let env = environment(&self.user, &self.values, &config);
        let cwd = working_directory(&self.user, &self.values, &config)?;
        let channels = match request.pty.take() {
            Some(pty) => terminal(&self.user, pty.size.as_option().map(|size| (size.cols, size.rows))),
            None => pipes(request.stdin.unwrap_or(true)),
        };
        let channels =
            channels.map_err(|e| Error::new(Kind::Internal, format!("no pipe or terminal: {e}")))?;
        let plan = Plan {
            command: &config.cmd,
            arguments: &config.args,
            env: &env,
            cwd: &cwd,
            user: &self.user,
            stdio: channels.theirs.each_ref().map(|fd| fd.as_fd()),
            terminal: channels.terminal,
        };
        let (pid, exit) = reaper.spawn(|| plan.start())?;
        drop(channels.theirs);
        let process = Arc::new(Process {
            pid,
            tag: request.tag,
            config,
            input: channels.input,
            audience: std::sync::Mutex::default(),
            ended: CancellationToken::new(),
            reaper: reaper.clone(),
        });
        table.insert(Arc::clone(&process));
        let events = process.subscribe();
        let care = Care { process: Arc::clone(&process), table: table.clone(), deadline: self.deadline };
        tokio::spawn(care.run(channels.output, exit));
        Ok((process, events))
    }
}

/// The task that looks after one process.
struct Care {
    process: Arc<Process>,
    table: Table,
    deadline: Option<Instant>,
}

impl Care {
    async fn run(self, output: Output, exit: oneshot::Receiver<Exit>) {
        let exit = self.watch(output, exit).await;
        self.process.finish(end_event(exit)).await;
        self.table.retire(self.process);
    }

    /// How the process ended, after its last output.
    async fn watch(&self, output: Output, exit: oneshot::Receiver<Exit>) -> Exit {
        let life = async {
            output.pump(&self.process).await;
            exit.await
        };
        tokio::pin!(life);
        let exit = tokio::select! {
            biased;
            exit = &mut life => exit,
            () = until(self.deadline) => {
                self.kill().await;
                life.await
            }
        };
        // The reaper lives as long as the program, so there always is an exit.
        exit.unwrap_or(Exit::Signal(libc::SIGKILL))
    }

    async fn kill(&self) {
        let process = Arc::clone(&self.process);
        // A failure to join would be a panic of the closure, which has nothing to panic about.
        let _ = tokio::task::spawn_blocking(move || process.signal(Signal::KILL)).await;
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn environment(user: &User, values: &Values, config: &ProcessConfig) -> BTreeMap<String, String> {
    let base = [
        ("PATH", BASE_PATH),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("WRENN_SANDBOX", "true"),
        ("E2B_SANDBOX", "true"),
    ];
    let mut env: BTreeMap<_, _> = base.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    env.extend(values.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    env.extend(config.envs.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

/// A home that the image does not have is no reason to refuse a process that did not ask for it.
fn working_directory(user: &User, values: &Values, config: &ProcessConfig) -> Result<String> {
    let asked = config.cwd.as_deref().unwrap_or("");
    let directory = paths::resolve(asked, user, values.default_workdir.as_deref())?;
    if asked.is_empty() && !Path::new(&directory).is_dir() {
        return Ok("/".to_owned());
    }
    Ok(directory)
}

fn pipes(with_stdin: bool) -> io::Result<Channels> {
    let (stdout, their_stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, their_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (their_stdin, input) = if with_stdin {
        let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        (theirs, Input::Pipe(Mutex::new(Some(pipe::Sender::from_owned_fd(ours)?))))
    } else {
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        (null, Input::Nothing)
    };
    Ok(Channels {
        theirs: [their_stdin, their_stdout, their_stderr],
        input,
        output: Output::Pipes {
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
        },
        terminal: false,
    })
}

fn terminal(user: &User, size: Option<(u32, u32)>) -> io::Result<Channels> {
    let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::unlockpt(&ours)?;
    let theirs = rustix::pty::ioctl_tiocgptpeer(
        &ours,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    // Programs open their terminal by name, so it must be the user's.
    rustix::fs::fchown(&theirs, Some(Uid::from_raw(user.uid)), None)?;
    let (cols, rows) = size.map_or(DEFAULT_SIZE, |(cols, rows)| (clamp(cols), clamp(rows)));
    rustix::termios::tcsetwinsize(&ours, window(cols, rows))?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    // SAFETY: an OwnedFd is open and the same until it is dropped, which the AsyncFd does.
    let ours = Arc::new(unsafe { AsyncFd::register(ours) }?);
    Ok(Channels {
        theirs: [theirs.try_clone()?, theirs.try_clone()?, theirs],
        input: Input::Terminal(Arc::clone(&ours), Mutex::new(())),
        output: Output::Terminal(ours),
        terminal: true,
    })
}

/// The kernel keeps terminal sizes in 16 bits.
pub(super) fn clamp(size: u32) -> u16 {
    u16::try_from(size).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_last_word_on_the_environment() {
        let mut values = Values::default();
        values.env.insert("A".into(), "capsule".into());
        values.env.insert("B".into(), "capsule".into());
        let mut config = ProcessConfig::default();
        config.envs.insert("B".into(), "request".into());
        let env = environment(&User::root(), &values, &config);
        assert_eq!(env["A"], "capsule");
        assert_eq!(env["B"], "request");
        assert_eq!(env["PATH"], BASE_PATH);
        assert_eq!((env["HOME"].as_str(), env["USER"].as_str()), ("/root", "root"));
        assert_eq!(env["E2B_SANDBOX"], "true");
    }
}
