//! Asking a person on the terminal. Questions go to standard error, answers come from standard input.

use std::io::{self, IsTerminal, Write};

use anyhow::Context as _;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::output::{self, Hinted};

/// Standard input without echo. Dropping the guard restores what was.
struct NoEcho {
    before: Termios,
}

impl NoEcho {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self { before })
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        // A terminal that is gone has nothing to restore.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Whether there is a person to ask.
pub fn possible() -> bool {
    io::stdin().is_terminal()
}

/// Asks for a line.
///
/// # Errors
/// Where standard input ends or fails first.
pub async fn line(question: &str) -> anyhow::Result<String> {
    ask(question);
    read_line().await
}

/// Asks for a line that does not appear on the terminal. Where standard input is no terminal, it is its next line.
///
/// # Errors
/// Where standard input ends or fails first, or the person interrupts.
pub async fn secret(question: &str) -> anyhow::Result<String> {
    if !possible() {
        return read_line().await;
    }
    // Before the handler is there, an interrupt would end the program and leave the terminal silent.
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let _ = futures::poll!(&mut interrupt);
    let _silent = NoEcho::enter().context("cannot hide what is typed")?;
    ask(question);
    tokio::select! {
        line = read_line() => line,
        _ = &mut interrupt => {
            output::say("");
            anyhow::bail!("interrupted")
        }
    }
}

/// Asks whether something is to be destroyed, unless `yes` says so already.
///
/// # Errors
/// Where the answer is no, or nobody can be asked.
pub async fn confirm(yes: bool, question: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !possible() {
        anyhow::bail!(Hinted::new(
            "this destroys something, and nobody can be asked whether it may".to_owned(),
            "give --yes if it may",
        ));
    }
    let answer = line(&format!("{question} [y/N] ")).await?;
    if !matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        anyhow::bail!("nothing was done");
    }
    Ok(())
}

fn ask(question: &str) {
    let mut stderr = io::stderr().lock();
    // Whoever closed it does not want to be asked, but may still answer.
    let _ = stderr.write_all(output::clean(question).as_bytes()).and_then(|()| stderr.flush());
}

/// The next line without its end.
async fn read_line() -> anyhow::Result<String> {
    let read = || {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|length| (length > 0).then_some(line))
    };
    let line = tokio::task::spawn_blocking(read).await?.context("cannot read standard input")?;
    let line = line.context("standard input ended before an answer")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
