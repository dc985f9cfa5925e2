//! What the agent tells in the platform's log, which is where numbers are that no caller of the API is told.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::time::Instant;
use wrenn_client::CapsuleId;

use crate::lab::Lab;

/// How long a line may be waited for.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// The log from some moment on.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    from: u64,
}

impl Lab {
    /// The log from now on.
    pub(crate) fn log(&self) -> anyhow::Result<Log> {
        let path = self.dir.join("logs/wrenn.log");
        let from = std::fs::metadata(&path).context("the platform writes no log")?.len();
        Ok(Log { path, from })
    }
}

impl Log {
    /// The lines whose message ends so.
    pub(crate) fn lines(&self, message: &str) -> anyhow::Result<Vec<Value>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.lines().filter_map(|line| parse(line, message)).collect())
    }

    /// Waits for a line whose message ends so, about this capsule where one is given.
    pub(crate) async fn wait(&self, message: &str, about: Option<CapsuleId>) -> anyhow::Result<Value> {
        let about = about.map(|id| id.to_string());
        let limit = Instant::now() + LIMIT;
        loop {
            let mut lines = self.lines(message)?.into_iter();
            let found = lines.find(|line| about.is_none() || line["capsule"].as_str() == about.as_deref());
            if let Some(line) = found {
                return Ok(line);
            }
            let missing = || format!("{} has no line that ends with {message:?}", self.path.display());
            (Instant::now() < limit).then_some(()).with_context(missing)?;
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn parse(line: &str, message: &str) -> Option<Value> {
    let line: Value = serde_json::from_str(line).ok()?;
    line["message"].as_str()?.ends_with(message).then_some(line)
}

/// A number in a line; those of 128 bits are written as text.
pub(crate) fn number(line: &Value, field: &str) -> anyhow::Result<u64> {
    let value = &line[field];
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    number.with_context(|| format!("a line of the log has no number {field}: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_either_form_from_lines_that_fit() {
        let text =
            r#"{"level":"INFO","message":"snapshot taken","capsule":"cl-a","still_us":"4711","again":12}"#;
        let line = parse(text, "taken").unwrap();
        assert_eq!((number(&line, "still_us").unwrap(), number(&line, "again").unwrap()), (4711, 12));
        assert!(number(&line, "other").is_err());
        assert!(parse(text, "paused").is_none() && parse("==> no JSON", "JSON").is_none());
    }
}
