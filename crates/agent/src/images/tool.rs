//! Runs the programs that make images.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{ImageError, Progress};

/// A mirror that fails twice in a row may be in the middle of an update.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(5);
/// Lines of a failed program's output that go into the error.
const TAIL_LINES: usize = 12;

/// A program and the package that has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tool(pub(super) &'static str, pub(super) &'static str);

impl Tool {
    /// A command without surprises: English output, no questions, files that others can read.
    pub(super) fn command(self) -> Command {
        let mut command = Command::new(self.0);
        command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    }

    /// Runs a command to its end. Each line of its standard error goes to `line`; its standard output is returned.
    pub(super) fn run(self, command: &mut Command, line: &dyn Fn(&str)) -> Result<String, ImageError> {
        let io = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => {
                ImageError::ToolMissing { program: self.0.to_owned(), package: self.1 }
            }
            _ => ImageError::io("run", Path::new(self.0), source),
        };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(io)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // Read beside one another: a full pipe would stop the program.
        let reader = std::thread::spawn(move || stdout.map(std::io::read_to_string).transpose());
        let mut lines: Vec<String> = Vec::new();
        for text in
            stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).split(b'\n').map_while(Result::ok))
        {
            let text = String::from_utf8_lossy(&text).trim_end().to_owned();
            line(&text);
            lines.push(text);
        }
        let status = child.wait().map_err(io)?;
        let output = reader.join().ok().and_then(Result::ok).flatten().unwrap_or_default();
        if status.success() {
            return Ok(output);
        }
        let tail = lines.len().saturating_sub(TAIL_LINES);
        let said = lines[tail..].join("; ");
        Err(ImageError::Tool { program: self.0.to_owned(), status: status.to_string(), said })
    }
}

/// Does `work` again when a program fails, as one that downloads may.
pub(super) fn retry<T>(
    progress: Progress,
    mut work: impl FnMut() -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    for _ in 1..ATTEMPTS {
        match work() {
            Err(error @ ImageError::Tool { .. }) => {
                progress(&format!("{error}; trying again in {} s", PAUSE.as_secs()));
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_returned_and_progress_told_line_by_line() {
        let lines = std::sync::Mutex::new(Vec::new());
        let tool = Tool("sh", "dash");
        let mut command = tool.command();
        let output = tool.run(command.args(["-c", "echo out; echo one >&2; echo two >&2"]), &|line| {
            lines.lock().unwrap().push(line.to_owned());
        });
        assert_eq!(
            (output.unwrap().as_str(), lines.into_inner().unwrap().join(",").as_str()),
            ("out\n", "one,two")
        );
    }

    #[test]
    fn a_failure_carries_the_last_words_and_a_missing_program_its_package() {
        let tool = Tool("sh", "dash");
        let error = tool.run(tool.command().args(["-c", "echo why >&2; exit 7"]), &|_| {}).unwrap_err();
        assert!(error.to_string().contains("exit status: 7") && error.to_string().contains("why"), "{error}");
        let tool = Tool("no-such-program", "its-package");
        let error = tool.run(&mut tool.command(), &|_| {}).unwrap_err();
        assert!(error.to_string().contains("apt-get install its-package"), "{error}");
    }
}
