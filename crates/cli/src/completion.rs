//! Shell completion scripts.

use clap_complete::Shell;

use crate::output;

/// Writes the completion script of `command` for `shell` to standard output.
///
/// # Errors
/// Where standard output cannot be written.
pub fn run(shell: Shell, mut command: clap::Command) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    output::write(&script)?;
    Ok(0)
}
